"""PyTorch Ignite: its handlers and loggers, in the background."""

from __future__ import annotations

import functools
import inspect
import sys
import types
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, TypeVar, Unpack, cast

import torch
from ignite import handlers as theirs
from ignite.engine import Engine, Events
from ignite.handlers.base_logger import BaseLogger

from async_trainer.adapters.ignite_engine import Held, Rebound, is_live, reveal, show
from async_trainer.adapters.ignite_steering import refuse_steering, title
from async_trainer.adapters.mlflow_runs import runs_of_this_thread
from async_trainer.callback import BackgroundOptions
from async_trainer.errors import ConfigurationError
from async_trainer.handler import CallbacksHandler
from async_trainer.snapshot.gradients import with_gradients

T = TypeVar("T", bound=Callable[..., Any] | BaseLogger)

ENDS = (Events.COMPLETED, Events.TERMINATE, Events.INTERRUPT)


def background(target: T, *, handler: CallbacksHandler | None = None, **options: Unpack[BackgroundOptions]) -> T:
    """Run an Ignite handler or logger in the background, in order, on snapshots.

    ::

        trainer.add_event_handler(Events.EPOCH_COMPLETED(every=5), ignite.background(plot), model)
        logger = ignite.background(TensorboardLogger("runs"))
        logger.attach_output_handler(trainer, Events.ITERATION_COMPLETED, "train", output_transform=lambda x: x)

    A handler gets the engine, and the arguments that it was added with, as they were at the event; so it does with what
    it has as an attribute or closes over, if that is an engine, a model, an optimizer or a tensor. When the run ends
    (completed, terminated, interrupted or with an exception), what was fired is handled, and ``run()`` returns.

    Args:
        target: a function, a callable object such as ``Checkpoint``, a bound method; or a logger, whose handlers then
            run on one lane. The logger itself is returned, for anything else what Ignite takes as a handler.
        handler: whose lanes to use; several that share one have one table of ``handler.stats()``. Default: one of its
            own, which is its ``.handler``.
        **options: as for :func:`async_trainer.background`. Not ``every`` and ``when``: Ignite filters events itself,
            ``Events.ITERATION_COMPLETED(every=50)``. The names in ``select`` are those of attributes of
            ``engine.state``; ``batch`` is captured only where it is selected. A ``Checkpoint`` has
            ``on_error="raise_at_end"`` unless told otherwise.

    Raises:
        ConfigurationError: it steers the training, or can't be run so; names what it does, and the remedy.
    """
    if inspect.isclass(target) or not (callable(target) or isinstance(target, BaseLogger)):
        raise ConfigurationError(f"ignite.background() takes a handler or a logger, not {title(target)}")
    if isinstance(target, BackgroundHandler) or isinstance(
        getattr(target, "__dict__", {}).get("handler"), CallbacksHandler
    ):
        raise ConfigurationError(f"{title(target)} is in the background already")
    for option, remedy in (("every", "every=50"), ("when", "event_filter=...")):
        if options.get(option) is not None:
            raise ConfigurationError(f"{option}=: Ignite filters events itself: Events.ITERATION_COMPLETED({remedy})")
    if options.get("placement") not in (None, "thread"):
        raise ConfigurationError(
            "an Ignite handler runs on a thread: it may hold the engine's own objects. Leave placement out; what takes "
            "much CPU belongs in a function that the handler gives to a process of its own"
        )
    refuse_steering(target)
    lane = Lane(handler or CallbacksHandler(), target, dict(options))
    if isinstance(target, BaseLogger):
        return cast(T, _in_background(target, lane))
    return cast(T, BackgroundHandler(target, lane))


class Lane:
    """What the handlers of one ``background(...)`` share: a lane, and the ends of the runs."""

    def __init__(self, handler: CallbacksHandler, target: Any, options: dict[str, Any]) -> None:
        self.handler = handler
        self.select: Mapping[str, Any] = options.pop("select", None) or {}
        if isinstance(target, theirs.Checkpoint):
            options.setdefault("on_error", "raise_at_end")
        self.call: Any = handler.proxy(Caller(title(target)), **options)
        self._engines: weakref.WeakSet[Engine] = weakref.WeakSet()

    def follow(self, engine: Engine) -> None:
        """Have the end of the engine's run wait for the lane; of the outermost run, where it is inside another's."""
        for one in (engine, _outermost(engine)):
            if one not in self._engines:
                self._engines.add(one)
                for event in ENDS:
                    one.add_event_handler(event, self.ended)
                one.add_event_handler(Events.EXCEPTION_RAISED, self.failed)

    def ended(self, engine: Engine) -> None:
        """The run is over, or pauses. The training thread."""
        if _outermost(engine) is engine:
            self.handler.finish()

    def failed(self, engine: Engine, error: BaseException) -> None:
        """An exception has ended the run. Ignite swallows those that have handlers: only an inline one is a handler
        that has dealt with it. The training thread."""
        if _outermost(engine) is engine:
            self.handler.drain(error)
        listed = _handlers_of(engine, Events.EXCEPTION_RAISED)
        ours = [isinstance(one, BackgroundHandler) or getattr(one, "__func__", None) is Lane.failed for one in listed]
        if all(ours) and listed[-1] == self.failed:
            raise error


class BackgroundHandler:
    """What Ignite takes as the handler: it captures, and pushes to the lane.

    Attributes:
        target: the handler that runs in the background.
        handler: whose lane it is.
    """

    def __init__(self, target: Any, lane: Lane) -> None:
        self.target = target
        self.handler = lane.handler
        self._lane = lane
        self.__signature__ = _Either(target)
        self._owner = target.__self__ if isinstance(target, types.MethodType) else target
        if isinstance(target, (types.FunctionType, functools.partial)):
            self._owner = None

    def __repr__(self) -> str:
        return f"<{title(self.target)}, in the background>"

    def __eq__(self, other: object) -> bool:  # so Ignite finds it, and removes it, by the handler that was wrapped
        return other is self or other == self.target

    def __hash__(self) -> int:
        return hash(self.target)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or "target" not in vars(self):
            raise AttributeError(name)
        if name in ("state_dict", "last_checkpoint"):  # as of now
            self.handler.flush()
        return getattr(self.target, name)

    def __call__(self, engine: Engine, *args: Any, **kwargs: Any) -> None:
        """Capture, and push. The training thread."""
        lane = self._lane
        lane.follow(engine)
        select = lane.select
        given = (engine, *args) if self.__signature__.takes(engine, *args, **kwargs) else args
        seen = {} if self._owner is None else _attributes(self._owner, select)
        target = show(self.target, select) if isinstance(self.target, types.FunctionType) else None
        _watch(lane.handler, (args, kwargs, seen, target))
        shown = [show(one, select) for one in given]
        lane.call(Held(self), target, shown, {name: show(one, select) for name, one in kwargs.items()}, seen)


class _Either(inspect.Signature):
    """Of a handler that may take the engine first, or not: Ignite asks which, and we are to get it anyway."""

    def __init__(self, target: Any) -> None:
        own = inspect.signature(target)
        super().__init__(list(own.parameters.values()))

    def takes(self, *args: Any, **kwargs: Any) -> bool:
        """Whether the handler itself takes all of ``args``."""
        try:
            super().bind(*args, **kwargs)
        except TypeError:
            return False
        return True

    def bind(self, *args: Any, **kwargs: Any) -> inspect.BoundArguments:
        """As Ignite asks it."""
        return super().bind(*args if self.takes(*args, **kwargs) else args[1:], **kwargs)


class Caller:
    """Calls the handlers of a lane, there."""

    def __init__(self, name: str) -> None:
        self.__name__ = name  # the lane's, unless it is given one

    def __call__(self, held: Held, target: Any, args: Any, kwargs: Any, seen: dict[str, Any]) -> None:
        """The lane's thread."""
        _call(held.value, target, args, kwargs, seen)


def _call(handler: Any, target: Any, args: Any, kwargs: Any, seen: dict[str, Any]) -> None:
    args, kwargs, seen = reveal(args), reveal(kwargs), reveal(seen)
    if handler._owner is None or not seen:
        function = reveal(target) if isinstance(target, Rebound) else handler.target
        function(*args, **kwargs)
        return
    # On an object with the same attributes, but for those that are live: what it changes of the others is its own.
    owner: Any = handler._owner
    before = {**vars(owner), **seen}
    stand_in: Any = object.__new__(type(owner))
    vars(stand_in).update(before)
    function = types.MethodType(handler.target.__func__, stand_in) if owner is not handler.target else stand_in
    try:
        function(*args, **kwargs)
    finally:
        received = {id(one) for one in (*args, *kwargs.values())}
        changed = {name: one for name, one in vars(stand_in).items() if before.get(name, _call) is not one}
        vars(owner).update({name: one for name, one in changed.items() if id(one) not in received})


def _attributes(owner: Any, select: Mapping[str, Any]) -> dict[str, Any]:
    """The live attributes of a handler, as they are to be captured. The training thread."""
    found = {name: one for name, one in getattr(owner, "__dict__", {}).items() if name == "to_save" or is_live(one)}
    if "Grads" in type(owner).__name__ and "model" in found:  # GradsScalarHandler, GradsHistHandler, of any logger
        return {"model": with_gradients(found.pop("model")), **{name: show(one, select) for name, one in found.items()}}
    return {name: show(one, select) for name, one in found.items()}


def _watch(handler: CallbacksHandler, values: Iterable[Any]) -> None:
    """Have what the optimizers among ``values`` change be copied while the training goes on."""
    optimizers = [one for one in _flat(values) if isinstance(one, torch.optim.Optimizer)]
    if optimizers:
        handler._store.watch(optimizers)


def _flat(values: Iterable[Any], levels: int = 3) -> Iterator[Any]:
    for value in values:
        if type(value) in (dict, list, tuple) and levels:
            yield from _flat(value.values() if isinstance(value, dict) else value, levels - 1)
        else:
            yield value


def _in_background(logger: BaseLogger, lane: Lane) -> BaseLogger:
    """The logger itself, but what it attaches to an engine runs on its lane, and it closes when that is done."""
    relays: dict[int, Relay] = {}  # Ignite's handles for removal refer to them weakly
    attach, close = logger.attach, logger.close
    if isinstance(logger, theirs.MLflowLogger):  # MLflow's active run is a thread's own: the lane's is to be the same
        run: Any = logger.active_run
        enter = runs_of_this_thread() or functools.partial(logger.start_run, run_id=run.info.run_id)
        lane.call(Held(_Plain(enter)), None, [], {}, {})

    def attach_in_background(engine: Engine, *args: Any, **kwargs: Any) -> Any:
        relay = relays.setdefault(id(engine), Relay(engine, lane))
        return attach(cast(Engine, relay), *args, **kwargs)

    def close_in_background() -> None:
        lane.call(Held(_Plain(close)), None, [], {}, {}).wait()

    vars(logger).update(attach=attach_in_background, close=close_in_background, handler=lane.handler)
    return logger


class _Plain:
    """A call on the lane that sees no engine."""

    _owner = None

    def __init__(self, target: Callable[..., Any]) -> None:
        self.target = target


class Relay:
    """An engine, to a logger: the handlers that it adds run in the background."""

    def __init__(self, engine: Engine, lane: Lane) -> None:
        self._engine = engine
        self._lane = lane

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def add_event_handler(self, event_name: Any, handler: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """As the engine's own."""
        refuse_steering(handler)
        return self._engine.add_event_handler(event_name, BackgroundHandler(handler, self._lane), *args, **kwargs)


def _outermost(engine: Engine) -> Engine:
    """The engine whose ``run()`` is at the bottom of the stack: an evaluator runs inside a handler of the trainer."""
    frame: types.FrameType | None = sys._getframe()
    while frame is not None:
        if frame.f_code is Engine.run.__code__:
            engine = frame.f_locals["self"]
        frame = frame.f_back
    return engine


def _handlers_of(engine: Engine, event: Any) -> list[Any]:
    listed = [one for one, _, _ in engine._event_handlers[event]]
    return [one._parent() if hasattr(one, "_parent") else one for one in listed]
