"""What a background handler sees of live Ignite and torch objects: engines, and functions that close over any of them.

``show`` runs on the training thread, right before the capture: it puts records in the place of live objects that a copy
can't stand for. ``reveal`` runs on the lane, and makes of them what the handler gets.
"""

from __future__ import annotations

import types
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, NoReturn

import torch
from ignite.engine import Engine, State
from ignite.engine.events import CallableEventWithFilter
from ignite.handlers.base_logger import BaseLogger

from async_trainer.errors import CaptureError, StandInError, UnnamedArgumentError
from async_trainer.snapshot import capture

Select = Mapping[str, Callable[[Any], Any] | None]

TORCH = (torch.nn.Module, torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler, torch.amp.GradScaler)
LIVE = (Engine, torch.nn.Parameter, *TORCH)  # other tensors may be a handler's own, which it goes on writing to
PLAIN = (str, int, float, bool, type(None))
CONTAINERS = (dict, list, tuple)
LEVELS = 3
FLAGS = ("should_terminate", "should_terminate_single_epoch", "should_interrupt")


@dataclass
class Shown:
    """An engine, as of the event."""

    engine: type[Engine]
    state: type[State]
    values: dict[str, Any]  # of the state
    fields: dict[str, Any]  # of the engine
    listened: frozenset[str]  # events that have handlers


@dataclass
class Rebound:
    """A function, and what it closes over, or finds among its globals, that is live."""

    function: Any
    cells: dict[int, Any]
    names: dict[str, Any]


@dataclass
class Stateful:
    """Of an object that is to be saved: its state."""

    state: Any

    def state_dict(self) -> Any:
        """As it was at the event."""
        return self.state


class Held:
    """What is handed over as it is: a logger, an event, a loader."""

    __slots__ = ("value",)

    def __init__(self, value: Any) -> None:
        self.value = value


class Failed:
    """A function of ``select`` has raised."""

    __slots__ = ("error",)

    def __init__(self, error: Exception) -> None:
        self.error = error


capture.register(Held)(lambda held: held)
capture.register(Failed)(lambda failed: failed)


def is_live(value: Any, levels: int = LEVELS) -> bool:
    """Whether ``value`` is, holds, or closes over an engine, a model, an optimizer or the like."""
    if isinstance(value, LIVE):
        return True
    if not levels:
        return False
    if type(value) in CONTAINERS:
        return any(is_live(part, levels - 1) for part in _parts(value))
    return isinstance(value, types.FunctionType) and any(
        is_live(part, levels - 1) for _, _, part in surroundings(value)
    )


def _parts(value: Any) -> Iterator[Any]:
    return iter(value.values() if isinstance(value, dict) else value)


def surroundings(function: types.FunctionType) -> Iterator[tuple[str, int | None, Any]]:
    """What ``function`` closes over, with the number of its cell, and the live globals that it names, with None."""
    for place, cell in enumerate(function.__closure__ or ()):
        try:
            yield function.__code__.co_freevars[place], place, cell.cell_contents
        except ValueError:  # not set yet
            continue
    for name in {name for code in codes_of(function) for name in code.co_names}:
        value = function.__globals__.get(name)
        if isinstance(value, LIVE):
            yield name, None, value


def codes_of(function: types.FunctionType) -> Iterator[types.CodeType]:
    """The code of ``function``, and of the functions in it."""
    stack = [function.__code__]
    while stack:
        code = stack.pop()
        yield code
        stack.extend(one for one in code.co_consts if isinstance(one, types.CodeType))


def show(value: Any, select: Select, levels: int = LEVELS) -> Any:
    """What is captured in the place of ``value``, an argument or attribute of a handler. The training thread."""
    if isinstance(value, Engine):
        return show_engine(value, select)
    if isinstance(value, (BaseLogger, CallableEventWithFilter)):
        return Held(value)
    if isinstance(value, types.FunctionType):
        shown = [(name, place, show(part, select, levels - 1)) for name, place, part in surroundings(value) if levels
                 and is_live(part, levels - 1)]  # fmt: skip
        cells = {place: part for _, place, part in shown if place is not None}
        names = {name: part for name, place, part in shown if place is None}
        return Rebound(value, cells, names) if shown else Held(value)
    if type(value) is dict and levels:
        return {key: _show_item(part, select, levels - 1) for key, part in value.items()}
    if type(value) in (list, tuple) and levels:
        return type(value)(show(part, select, levels - 1) for part in value)
    return value


def _show_item(value: Any, select: Select, levels: int) -> Any:
    """Of a dict such as ``to_save``: what has a state is shown by that."""
    if isinstance(value, (*TORCH, Engine, type)) or not hasattr(value, "state_dict"):
        return show(value, select, levels)
    return Stateful(value.state_dict())


def show_engine(engine: Engine, select: Select) -> Shown:
    """What is captured of an engine. The training thread."""
    values: dict[str, Any] = {}
    for name, value in vars(engine.state).items():
        if name in select:
            values[name] = _selected(name, value, select[name])
        elif name == "dataloader":
            values[name] = Held(value)
        elif name != "batch":
            values[name] = value
    fields: dict[str, Any] = {name: value for name, value in vars(engine).items() if type(value) in PLAIN}
    fields |= {name: Held(getattr(engine, name)) for name in ("logger", "last_event_name")}
    fields["_state_dict_user_keys"] = list(engine.state_dict_user_keys)
    fields["_allowed_events"] = Held(list(engine._allowed_events))
    listened = frozenset(name_of(event) for event, handlers in engine._event_handlers.items() if handlers)
    return Shown(type(engine), type(engine.state), values, fields, listened)


def name_of(event: Any) -> str:
    """The name of an event, which may be a string."""
    return str(getattr(event, "name", event))


def _selected(name: str, value: Any, function: Callable[[Any], Any] | None) -> Any:
    try:
        return None if function is None else function(value)
    except Exception as error:  # not essential: it is the handler's error, not the training's
        failure = CaptureError(f"select={{{name!r}: ...}} raised {type(error).__name__}: {error}")
        failure.__cause__ = error
        return Failed(failure)


def reveal(value: Any) -> Any:
    """What the handler gets for what was captured of ``show(...)``. The lane's thread."""
    if isinstance(value, Held):
        return value.value
    if isinstance(value, Failed):
        raise value.error
    if isinstance(value, Shown):
        return _make_engine(value)
    if isinstance(value, Rebound):
        return _make_function(value)
    if type(value) is dict:
        return {key: reveal(part) for key, part in value.items()}
    if type(value) in (list, tuple):
        return type(value)(map(reveal, value))
    return value


def _make_engine(shown: Shown) -> Engine:
    engine: Engine = object.__new__(_seen_class((SeenEngine, shown.engine)))
    state = object.__new__(_seen_class((SeenState, shown.state)))
    for name, value in shown.values.items():
        vars(state)[name] = reveal(value) if isinstance(value, (Held, Failed)) else value
    vars(engine).update({name: reveal(value) for name, value in shown.fields.items()})
    vars(engine).update(state=state, _event_handlers=defaultdict(list), _listened=shown.listened)
    return engine


def _make_function(rebound: Rebound) -> types.FunctionType:
    live = rebound.function
    cells = list(live.__closure__ or ())
    for place, part in rebound.cells.items():
        cells[place] = types.CellType(reveal(part))
    names = {name: reveal(part) for name, part in rebound.names.items()}
    spaces = {**live.__globals__, **names} if names else live.__globals__
    function = types.FunctionType(live.__code__, spaces, live.__name__, live.__defaults__, tuple(cells))
    function.__kwdefaults__ = live.__kwdefaults__
    return function


@cache
def _seen_class(bases: tuple[type, type]) -> Any:
    _, theirs = bases
    return type(theirs.__name__, bases, {"__module__": theirs.__module__})


class SeenState:
    """The state of an engine, as of the event."""

    def __getattr__(self, name: str) -> NoReturn:
        if name == "batch":
            raise UnnamedArgumentError(
                "engine.state.batch is not copied unless it is asked for: "
                "background(handler, select={'batch': lambda batch: batch})"
            )
        raise AttributeError(f"the engine's state had no {name!r} at this event")

    def __setattr__(self, name: str, value: Any) -> NoReturn:
        raise StandInError(f"engine.state.{name} can't be set in the background: nobody would see it. {INLINE}")


class SeenEngine:
    """An engine, as of the event. What would change the run raises."""

    _listened: frozenset[str]

    def fire_event(self, event_name: Any) -> None:
        """Nobody hears it. Where somebody would in the training, that is an error."""
        if name_of(event_name) in self._listened:
            raise StandInError(f"engine.fire_event({event_name}): its handlers are with the live engine. {INLINE}")

    def __getstate__(self) -> NoReturn:
        raise StandInError("an engine as a background handler sees it can't be copied")


INLINE = "Handlers that steer the training run inline: pass this one without background(...)"


def _refusal(name: str) -> Callable[..., NoReturn]:
    def refuse(self: Any, *args: Any, **kwargs: Any) -> NoReturn:
        raise StandInError(f"engine.{name}() does nothing in the background: the engine is a snapshot. {INLINE}")

    return refuse


for _name in ("terminate", "terminate_epoch", "interrupt", "run", "set_data", "add_event_handler", "on",
              "remove_event_handler", "load_state_dict"):  # fmt: skip
    setattr(SeenEngine, _name, _refusal(_name))
