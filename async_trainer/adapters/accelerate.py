"""Hugging Face Accelerate: its trackers, in the background."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Iterable
from pathlib import PurePath
from typing import Any, TypeVar, Unpack, cast

from async_trainer.adapters.disguise import Disguise, end_run
from async_trainer.adapters.mlflow_runs import runs_of_this_thread
from async_trainer.callback import BackgroundOptions, label
from async_trainer.errors import ConfigurationError
from async_trainer.handler import CallbacksHandler
from async_trainer.suggest import suggestion

T = TypeVar("T")

VALUES = (str, bytes, int, float, dict, list, tuple, set, PurePath)
"""What a tracker's attribute may be to be read as it is, behind what was logged."""


def background(tracker: T, *, handler: CallbacksHandler | None = None, **options: Unpack[BackgroundOptions]) -> T:
    """Make the calls of an Accelerate tracker in the background, in order, on captured values.

    ::

        accelerator = Accelerator(log_with=[accelerate.background(MyTracker())])

    What it returns is what Accelerate takes it for: ``isinstance`` says the same as before.

    Args:
        tracker: a ``GeneralTracker``.
        handler: one that others share, a plain loop's own, say. Default: one of its own.
        **options: as for :func:`async_trainer.background`, but ``every``, ``when``, ``select``.

    Raises:
        ConfigurationError: it is no tracker, or an option that can't work.
    """
    for base in type(tracker).__mro__:
        if base.__name__ == "GeneralTracker" and base.__module__.startswith("accelerate."):
            if issubclass(type(tracker), BackgroundTracker):
                raise ConfigurationError(f"{label(tracker)} is in the background already")
            return cast(T, _class_for(base)(tracker, handler or CallbacksHandler(), dict(options)))
    if inspect.isclass(tracker):
        raise ConfigurationError(f"{tracker.__name__} is a class: pass an instance, {tracker.__name__}(...)")
    raise ConfigurationError(f"accelerate.background() takes Accelerate's trackers, not {label(tracker)}")


def offload(
    accelerator: Any, *names: str, handler: CallbacksHandler | None = None, **options: Unpack[BackgroundOptions]
) -> CallbacksHandler:
    """Move trackers that ``accelerator.init_trackers(...)`` has made to the background.

    ::

        accelerator = Accelerator(log_with="wandb")
        accelerator.init_trackers("digits")
        accelerate.offload(accelerator)  # accelerator.log(...) takes microseconds now

    Args:
        accelerator: its trackers are replaced in place.
        *names: which, by their names (``"wandb"``). Default: all.
        handler: one that others share. Default: one for all of them.
        **options: as for :func:`background`.

    Returns:
        The handler.

    Raises:
        ConfigurationError: there is no such tracker (yet).
    """
    there = [one.name for one in accelerator.trackers]
    for name in names or (() if there else ("",)):
        if name not in there:
            known = f"it has {', '.join(there)}" if there else "it has none: call accelerator.init_trackers(...) first"
            raise ConfigurationError(
                f"offload(): the accelerator has no tracker {name}{suggestion(name, there)}; {known}"
            )
    handler = handler or CallbacksHandler()
    accelerator.trackers[:] = [
        background(one, handler=handler, **options) if not names or one.name in names else one
        for one in accelerator.trackers
    ]
    return handler


class BackgroundTracker(Disguise):
    """A tracker whose calls are made in the background. Made with Accelerate's ``GeneralTracker`` as its base."""

    def __init__(self, tracker: Any, handler: CallbacksHandler, options: dict[str, Any]) -> None:
        self._live = tracker
        self._of_mlflow = any(base.__name__ == "MLflowTracker" for base in type(tracker).__mro__)
        if self._of_mlflow and options.get("placement") == "process":
            raise ConfigurationError(
                f"{label(tracker)} logs to the run that is active in this process, and can't do that in another: use "
                "placement='thread'"
            )
        self._calls = handler.proxy(tracker, **cast(BackgroundOptions, options))
        self.handler = handler
        self._share_runs()

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or "_calls" not in vars(self):
            raise AttributeError(name)
        value = getattr(self._live, name, None)
        if not isinstance(value, VALUES):
            return getattr(self._calls, name)
        if name in getattr(self._live, "__dict__", ()):  # else its class's, such as its name
            self.handler.flush()
        return getattr(self._live, name)

    @property
    def tracker(self) -> Any:
        """What the tracker wraps: its calls are made in the background, too."""
        live = self._live.tracker
        return live if live is None else self._calls.tracker

    def start(self) -> None:
        """On the calling thread, as it makes what ``tracker`` is."""
        self._live.start()
        self._share_runs()

    def _share_runs(self) -> None:
        share = runs_of_this_thread() if self._of_mlflow else None
        if share is not None:
            self._live.share_runs = share
            self._calls.share_runs()

    def store_init_configuration(self, values: dict[str, Any]) -> None:
        """In the background."""
        self._calls.store_init_configuration(values)

    def log(self, values: dict[str, Any], step: int | None = None, **kwargs: Any) -> None:
        """In the background; the values are captured now."""
        self._calls.log(values, step=step, **kwargs)

    def finish(self) -> None:
        """In the background, and waited for: what was logged is there."""
        self._calls.finish()
        end_run(self.handler)


@functools.cache
def _class_for(base: Any) -> Any:
    def one(name: str) -> Any:
        return property(lambda self: getattr(self._live, name))

    shown = {name: one(name) for name in _attributes(vars(base))}
    return type("BackgroundTracker", (BackgroundTracker, base), {"__module__": __name__, **shown})


def _attributes(names: Iterable[str]) -> list[str]:
    """What the base defines, and so ``__getattr__`` doesn't see."""
    return [name for name in names if not name.startswith("__") and name not in vars(BackgroundTracker)]
