"""The errors that async_trainer raises: one small tree."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from async_trainer.runtime.stats import Report


class AsyncTrainerError(Exception):
    """The root of the errors of this package."""


class ConfigurationError(AsyncTrainerError, ValueError):
    """A callback, an option or an event that can't work; raised where it is given, before anything runs."""


class CaptureError(AsyncTrainerError):
    """An argument of an event can't be copied for the background."""


class StandInError(AsyncTrainerError, AttributeError):
    """A hook used something that it did not name, or that was only valid until the hook returned."""


class UnnamedArgumentError(AsyncTrainerError):
    """A hook used an argument that only its ``**kwargs`` brought, and that is no plain value: it must name it.

    Not an ``AttributeError``: ``hasattr(loss, "item")`` would take it for a no.
    """


class InsideHookError(AsyncTrainerError, RuntimeError):
    """A background hook asked to wait for the lanes, its own among them."""


class LaneError(AsyncTrainerError):
    """A background callback failed, and its ``on_error`` asks that this be raised. The cause is chained.

    Attributes:
        report: what had been handled by then; ``None`` for ``on_error="raise"``.
    """

    report: Report | None = None


class ElsewhereError(Exception):
    """The cause of an error that comes from another process: its traceback there, as text."""

    def __str__(self) -> str:
        return f"in another process:\n{self.args[0]}" if self.args else ""


class EventLostError(AsyncTrainerError):
    """What a proxied call's handle raises when the call was dropped or lost."""


def what_ended(error: BaseException) -> str:
    """What has ended a run that ``error`` has left: ``"ValueError"``, ``"SIGTERM (status 143)"``."""
    if not isinstance(error, SystemExit):
        return type(error).__name__
    status = error.code if isinstance(error.code, int) else int(error.code is not None)
    try:
        what = signal.Signals(status - 128).name  # as shells have it
    except ValueError:
        what = "SystemExit"
    return f"{what} (status {status})"
