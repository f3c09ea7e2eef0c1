"""Standing for an object of another library, so that the library doesn't see a difference."""

from __future__ import annotations

import sys
from typing import Any

from async_trainer.callback import label
from async_trainer.handler import CallbacksHandler


class Disguise:
    """``isinstance`` takes it for the object that it stands for.

    Attributes:
        handler: its handler.
    """

    _live: Any
    handler: CallbacksHandler

    @property  # type: ignore[misc]
    def __class__(self) -> Any:
        own = vars(self)
        return type(own["_live"]) if "_live" in own else type(self)

    def __repr__(self) -> str:
        return f"<{label(self._live)}, in the background>"


def end_run(handler: CallbacksHandler) -> None:
    """Wait for the lanes at the end of a run, and raise what is to be raised; while an error ends it, wait for
    ``shutdown_timeout`` at most."""
    error = sys.exc_info()[1]  # theirs end a run that has failed from within an except clause
    if error is None:
        handler.finish()
    else:
        handler.drain(error)
