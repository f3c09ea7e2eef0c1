"""PyTorch Lightning: its callbacks, loggers and checkpoint IO, in the background."""

from __future__ import annotations

import functools
import inspect
import sys
from typing import Any, TypeVar, Unpack, cast

from async_trainer.adapters.lightning_callback import EVENTS, BackgroundCallback, firing, hooks_of
from async_trainer.adapters.lightning_io import BackgroundCheckpointIO
from async_trainer.adapters.lightning_logger import BackgroundLogger, passed_on
from async_trainer.adapters.lightning_steering import PACKAGES
from async_trainer.callback import BackgroundOptions, label
from async_trainer.errors import ConfigurationError
from async_trainer.handler import CallbacksHandler

T = TypeVar("T")


MIXINS: dict[str, type] = {
    "Callback": BackgroundCallback,
    "Logger": BackgroundLogger,
    "CheckpointIO": BackgroundCheckpointIO,
}


def make_handler(**settings: Any) -> CallbacksHandler:
    """A :class:`CallbacksHandler` that knows Lightning's events, for ``background(..., handler=)``.

    Args:
        **settings: as for :class:`CallbacksHandler`: ``max_snapshot_bytes``, ``stall_timeout``, ...
    """
    base = _callback_base()
    events = [EVENTS.get(hook, hook) for hook in hooks_of(base)]
    return CallbacksHandler(events=[*events, *settings.pop("events", ())], **settings)


def background(target: T, *, handler: CallbacksHandler | None = None, **options: Unpack[BackgroundOptions]) -> T:
    """Run a Lightning callback, logger or checkpoint IO in the background, in order, on snapshots.

    ::

        trainer = L.Trainer(
            logger=lightning.background(MLFlowLogger()),
            callbacks=[EarlyStopping("val_loss"), lightning.background(Plots())],
            plugins=[lightning.background(TorchCheckpointIO())],
        )

    What it returns is what Lightning takes it for: ``isinstance`` says the same as before. A callback's hooks get the
    arguments that they read: of the trainer a view, of the module a replica, as of the event. Before Lightning saves,
    and at the end of ``fit``, ``validate``, ``test`` and ``predict``, what was emitted is handled.

    Args:
        target: one, or a list of them, which share a handler.
        handler: of :func:`make_handler`; several that share it are captured for once, and have one table of
            ``handler.stats()``. Default: one of their own.
        **options: as for :func:`async_trainer.background`; of a logger or a checkpoint IO without ``every``, ``when``
            and ``select``. A checkpoint IO has ``on_error="raise_at_end"`` unless told otherwise.

    Raises:
        ConfigurationError: it steers the training, or can't be run so; names what it does, and the remedy.
    """
    if isinstance(target, (list, tuple)):
        shared = handler or make_handler()
        return cast(T, [background(one, handler=shared, **options) for one in target])
    for base in type(target).__mro__:
        mixin = MIXINS.get(base.__name__) if base.__module__.partition(".")[0] in PACKAGES else None
        if mixin is not None:
            made = _class_for(mixin, base)(target, handler or make_handler(), dict(options))
            return cast(T, made)
    if inspect.isclass(target):
        raise ConfigurationError(f"{target.__name__} is a class: pass an instance, {target.__name__}()")
    raise ConfigurationError(
        f"lightning.background() takes Lightning's callbacks, loggers and checkpoint IOs, not {label(target)}"
    )


def _callback_base() -> Any:
    """Lightning's ``Callback``, of the package that is in use."""
    for name in ("lightning.pytorch", "pytorch_lightning"):
        if name in sys.modules:
            return sys.modules[name].Callback
    import lightning.pytorch

    return lightning.pytorch.Callback


@functools.cache
def _class_for(mixin: type, base: Any) -> Any:
    namespace: dict[str, Any] = {"__module__": __name__}
    if mixin is BackgroundCallback:
        namespace |= {hook: firing(hook, names) for hook, names in hooks_of(base).items()}
    elif mixin is BackgroundLogger:  # what the base defines, and so __getattr__ doesn't see
        namespace |= passed_on(base)
    return type(base)(mixin.__name__, (mixin, base), namespace)
