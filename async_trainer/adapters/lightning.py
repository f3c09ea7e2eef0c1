"""PyTorch Lightning: its callbacks, loggers and checkpoint IO, in the background."""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable
from typing import Any, TypeVar, Unpack, cast

from async_trainer.adapters.adapted import adapt
from async_trainer.adapters.lightning_io import Writer
from async_trainer.adapters.lightning_trainer import show_trainer
from async_trainer.adapters.reading import functions_of, loads, stores
from async_trainer.callback import BackgroundOptions, label, snake_case
from async_trainer.callback import background as in_background
from async_trainer.errors import ConfigurationError
from async_trainer.handler import CallbacksHandler
from async_trainer.states import visits

T = TypeVar("T")

PACKAGES = ("lightning", "pytorch_lightning", "lightning_fabric")
STEER = (
    "EarlyStopping", "Checkpoint", "LearningRateMonitor", "GradientAccumulationScheduler", "StochasticWeightAveraging",
    "WeightAveraging", "BaseFinetuning", "ModelPruning", "Timer", "BatchSizeFinder", "LearningRateFinder",
    "SpikeDetection",
)  # fmt: skip
"""Of Lightning's own callbacks those that write to the trainer, the module or the metrics, and their subclasses."""

LIVE = ("ProgressBar", "DeviceStatsMonitor", "ThroughputMonitor", "ModelSummary", "BasePredictionWriter")
"""Those that look into the live trainer where no snapshot shows it."""

EVENTS = {"setup": "on_setup", "teardown": "on_teardown"}
"""The hooks whose events are not called like them."""

NOT_EVENTS = ("on_save_checkpoint", "on_load_checkpoint")
GRADIENTS = ("on_after_backward", "on_before_optimizer_step", "on_before_zero_grad")
"""The events at which there are gradients: the module comes with them."""


def make_handler(**settings: Any) -> CallbacksHandler:
    """A :class:`CallbacksHandler` that knows Lightning's events, for ``background(..., handler=)``.

    Args:
        **settings: as for :class:`CallbacksHandler`: ``max_snapshot_bytes``, ``stall_timeout``, ...
    """
    base = _callback_base()
    events = [EVENTS.get(hook, hook) for hook in _hooks_of(base)]
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
    arguments that they read: of the trainer a view, of the module a replica, as of the event. Before Lightning saves, and
    at the end of ``fit``, ``validate``, ``test`` and ``predict``, what was emitted is handled.

    Args:
        target: one, or a list of them, which share a handler.
        handler: of :func:`make_handler`; several that share it are captured for once, and have one table of
            ``handler.stats()``. Default: one of their own.
        **options: as for :func:`async_trainer.background`; of a logger or a checkpoint IO without ``every``, ``when`` and
            ``select``. A checkpoint IO has ``on_error="raise_at_end"`` unless told otherwise.

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


class BackgroundCallback:
    """A callback whose hooks run in the background. Made with Lightning's ``Callback`` as its base.

    Attributes:
        handler: its handler.
    """

    def __init__(self, callback: Any, handler: CallbacksHandler, options: dict[str, Any]) -> None:
        if isinstance(callback, BackgroundCallback) or "_adapted" in vars(callback):
            raise ConfigurationError(f"{label(callback)} is in the background already")
        base: Any = type(self).__mro__[2]
        hooks = {
            EVENTS.get(hook, hook): (hook, names)
            for hook, names in _hooks_of(base).items()
            if getattr(getattr(callback, hook), "__func__", None) is not vars(base)[hook]
        }
        _refuse_steering(callback, [method for method, _ in hooks.values()])
        self._saves = [hook for hook in NOT_EVENTS if _overrides(callback, hook, base)]
        if self._saves and options.get("placement") == "process":
            raise ConfigurationError(
                f"{label(callback)}.{self._saves[0]} needs the live trainer, and can't run in a process: use "
                "placement='thread', or state_dict() and load_state_dict()"
            )
        callback.log = callback.log_dict = refuse_log
        self._adapted = adapt(callback, hooks)
        self._callback = callback
        handler.add_callbacks([in_background(self._adapted, **options)])
        self._one = handler.attached[-1]
        self.handler = handler
        # As Lightning asks, by the function, whether a callback has a state.
        self.state_dict = functools.wraps(callback.state_dict)(functools.partial(self._state_dict))

    @property
    def __class__(self) -> Any:  # for isinstance()
        return type(vars(self)["_callback"]) if "_callback" in vars(self) else type(self)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or "_adapted" not in vars(self):
            raise AttributeError(name)
        return getattr(self._adapted.callback, name)

    def __repr__(self) -> str:
        return f"<{label(self._callback)}, in the background>"

    @property
    def state_key(self) -> str:
        """The callback's own: a checkpoint doesn't tell where it ran."""
        return str(self._callback.state_key)

    @property
    def _legacy_state_key(self) -> Any:
        return self._callback._legacy_state_key

    def _state_dict(self) -> dict[str, Any]:
        """The callback's state when exactly the events so far were handled: Lightning saves. Waits for the lanes."""
        return cast(dict[str, Any], self.handler.state_dict().get(self._one.name, {}))

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Handed to the callback, where its hooks run. Waits for the lanes."""
        self.handler._ensure_started()
        self.handler._pool.barrier(visits([self._one], {self._one.name: state_dict}), {}).wait()

    def on_save_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        """What the callback adds to a checkpoint, on the training thread: its lane is idle then."""
        self._at_rest("on_save_checkpoint", trainer, pl_module, checkpoint)

    def on_load_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        """As for saving."""
        self._at_rest("on_load_checkpoint", trainer, pl_module, checkpoint)

    def _at_rest(self, hook: str, *live: Any) -> None:
        if hook in self._saves:
            self.handler.flush()
            getattr(self._callback, hook)(*live)

    def _fire(self, hook: str, names: tuple[str, ...], live: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        """One event for all callbacks of the handler, when the last of them is called: inline ones come first."""
        trainer = live[0]
        if _last(trainer, self.handler) is not self:
            return
        show_trainer(type(trainer))
        arguments = dict(zip(names, live, strict=False)) | keywords
        if hook in GRADIENTS:
            from async_trainer.snapshot.gradients import with_gradients

            arguments["pl_module"] = with_gradients(arguments["pl_module"])
        self.handler.call_event(EVENTS.get(hook, hook), **arguments)
        if hook == "on_exception":
            self.handler.drain(arguments["exception"])
        elif hook == "teardown":
            self.handler.finish()
        self._bring_back()

    def _bring_back(self) -> None:
        """Of a callback in a process, its attributes as they are there."""
        if self._adapted.callback is not self._callback:
            vars(self._callback).update(vars(self._adapted.callback))


class BackgroundLogger:
    """A logger whose calls are made in the background. Made with Lightning's ``Logger`` as its base.

    Attributes:
        handler: its handler.
    """

    def __init__(self, logger: Any, handler: CallbacksHandler, options: dict[str, Any]) -> None:
        self._live = logger
        self._made = not hasattr(type(logger), "experiment")
        self._calls = handler.proxy(logger, **options)
        self.handler = handler

    @property
    def __class__(self) -> Any:  # for isinstance()
        return type(vars(self)["_live"]) if "_live" in vars(self) else type(self)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or "_calls" not in vars(self):
            raise AttributeError(name)
        return getattr(self._calls, name)

    def __repr__(self) -> str:
        return f"<{label(self._live)}, in the background>"

    @property
    def experiment(self) -> Any:
        """The logger's own, its calls made in the background; made here, where it isn't yet."""
        live = self._at_rest()
        made = live.experiment
        self._made = True
        return made if made is None else self._calls.experiment

    def _at_rest(self) -> Any:
        """The logger; until its experiment is made, while no call is: each would make one."""
        if not self._made:
            self.handler.flush()
        return self._live

    def log_metrics(self, *args: Any, **kwargs: Any) -> None:
        """In the background."""
        self._calls.log_metrics(*args, **kwargs)

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """In the background."""
        self._calls.log_hyperparams(*args, **kwargs)

    def save(self) -> None:
        """In the background."""
        self._calls.save()

    def log_graph(self, *args: Any, **kwargs: Any) -> None:
        """On the training thread, behind what was logged: it runs the live module, once."""
        self.handler.flush()
        self._live.log_graph(*args, **kwargs)

    def after_save_checkpoint(self, checkpoint_callback: Any) -> None:
        """On the training thread, behind what was logged: it reads files that Lightning may remove next."""
        self.handler.flush()
        self._live.after_save_checkpoint(checkpoint_callback)

    def finalize(self, status: str) -> None:
        """In the background, and waited for: at the end of ``fit``, ``test``, ..., what was logged is there."""
        self._calls.finalize(status)
        _end(self.handler)


class BackgroundCheckpointIO:
    """A checkpoint IO that writes in the background. Made with Lightning's ``CheckpointIO`` as its base.

    Attributes:
        handler: its handler.
    """

    def __init__(self, io: Any, handler: CallbacksHandler, options: dict[str, Any]) -> None:
        self._live = io
        given = {"name": snake_case(label(io)), "on_error": "raise_at_end", **options}
        self._calls: Any = handler.proxy(Writer(io), **cast(BackgroundOptions, given))
        self.handler = handler

    @property
    def __class__(self) -> Any:  # for isinstance()
        return type(vars(self)["_live"]) if "_live" in vars(self) else type(self)

    def __repr__(self) -> str:
        return f"<{label(self._live)}, in the background>"

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Captured here, written in the background: there as a whole, on disk, or not at all."""
        self._calls.save(checkpoint, str(path), storage_options)

    def remove_checkpoint(self, path: Any) -> None:
        """Behind what was saved before; not while the newest could not be written."""
        self._calls.remove(str(path))

    def load_checkpoint(self, *args: Any, **kwargs: Any) -> Any:
        """Behind what was saved before. The training thread."""
        self.handler.flush()
        return self._live.load_checkpoint(*args, **kwargs)

    def teardown(self) -> None:
        """The end of a run: what was saved is there."""
        _end(self.handler)
        self._live.teardown()


MIXINS: dict[str, type] = {
    "Callback": BackgroundCallback,
    "Logger": BackgroundLogger,
    "CheckpointIO": BackgroundCheckpointIO,
}


def refuse_log(*args: Any, **kwargs: Any) -> None:
    """In the place of a callback's ``log`` and ``log_dict``."""
    raise ConfigurationError(
        "self.log() writes to the metrics of the training, which has gone on: a background hook can't. Log with a logger "
        "(trainer.logger.log_metrics), or leave the callback inline"
    )


def _end(handler: CallbacksHandler) -> None:
    error = sys.exc_info()[1]  # Lightning ends a run that has failed from within its except clause
    if error is None:
        handler.finish()
    else:
        handler.drain(error)


def _last(trainer: Any, handler: CallbacksHandler) -> Any:
    for one in reversed(trainer.callbacks):
        if issubclass(type(one), BackgroundCallback) and one.handler is handler:
            return one
    return None


def _callback_base() -> Any:
    """Lightning's ``Callback``, of the package that is in use."""
    for name in ("lightning.pytorch", "pytorch_lightning"):
        if name in sys.modules:
            return sys.modules[name].Callback
    import lightning.pytorch

    return lightning.pytorch.Callback


@functools.cache
def _hooks_of(base: Any) -> dict[str, tuple[str, ...]]:
    """Lightning's hooks, and the names of their arguments."""
    names = [name for name in vars(base) if name.startswith("on_") or name in EVENTS]
    return {
        name: tuple(inspect.signature(vars(base)[name]).parameters)[1:] for name in names if name not in NOT_EVENTS
    }


@functools.cache
def _class_for(mixin: type, base: Any) -> Any:
    namespace: dict[str, Any] = {"__module__": __name__}
    if mixin is BackgroundCallback:
        namespace |= {hook: _firing(hook, names) for hook, names in _hooks_of(base).items()}
    elif mixin is BackgroundLogger:  # what the base defines, and so __getattr__ doesn't see
        mine = vars(BackgroundLogger)
        names = [name for cls in base.__mro__ for name, one in vars(cls).items() if isinstance(one, property)]
        namespace |= {name: _passed_on(name) for name in names if name not in mine and not name.startswith("__")}
    return type(base)(mixin.__name__, (mixin, base), namespace)


def _firing(hook: str, names: tuple[str, ...]) -> Callable[..., None]:
    def fire(self: Any, *live: Any, **keywords: Any) -> None:
        self._fire(hook, names, live, keywords)

    return fire


def _passed_on(name: str) -> Any:
    return property(lambda self: getattr(self._at_rest(), name))


def _overrides(callback: Any, hook: str, base: Any) -> bool:
    return getattr(getattr(callback, hook), "__func__", None) is not vars(base)[hook]


def _refuse_steering(callback: Any, hooks: list[str]) -> None:
    """Refuse a callback that changes the training, as far as its code tells.

    Raises:
        ConfigurationError: names what it does.
    """
    name = label(callback)
    for base in type(callback).__mro__:
        if base.__module__.partition(".")[0] in PACKAGES and base.__name__ in STEER:
            raise _steers(name, f"derives from {base.__name__}" if base.__name__ != name else "writes to the live trainer")
        if base.__module__.partition(".")[0] in PACKAGES and base.__name__ in LIVE:
            raise ConfigurationError(
                f"{name} looks into the live trainer, further than a snapshot shows it, and can't do that in the "
                "background: pass it as it is, without lightning.background(...)"
            )
    for hook in hooks:
        method = getattr(callback, hook)
        names = list(inspect.signature(method).parameters)[:2]
        for use in stores(method):
            if use.variable in names:
                raise _steers(name, f"sets {use.variable}.{use.attribute} in {hook}")
        for use in loads(method):
            if use.variable in names[1:] and use.attribute in ("log", "log_dict"):
                raise _steers(name, f"calls {use.variable}.{use.attribute}() in {hook}")
    for function in functions_of(type(callback), "lightning"):
        for use in stores(function):
            if use.attribute == "should_stop":
                raise _steers(name, f"sets {use.variable}.should_stop")
        for use in loads(function):
            if use.variable == "self" and use.attribute in ("log", "log_dict"):
                raise _steers(name, f"calls self.{use.attribute}(), which writes to the metrics of the training")


def _steers(name: str, what: str) -> ConfigurationError:
    return ConfigurationError(
        f"{name} {what}: it steers the training, and can't do that in the background. Pass it as it is, without "
        "lightning.background(...)"
    )
