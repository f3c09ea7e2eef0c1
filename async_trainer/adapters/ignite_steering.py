"""Ignite handlers that steer the training: refused in the background, as far as their class or their code tells."""

from __future__ import annotations

import dis
import functools
import types
from typing import Any

import torch
from ignite import handlers as theirs
from ignite.engine import Engine
from ignite.handlers.state_param_scheduler import StateParamScheduler
from ignite.metrics import Metric

from async_trainer.adapters.ignite_engine import codes_of, is_live, surroundings
from async_trainer.callback import label
from async_trainer.errors import ConfigurationError

STEER = (
    theirs.EarlyStopping, theirs.TerminateOnNan, theirs.TimeLimit, theirs.BaseParamScheduler, StateParamScheduler,
    theirs.ReduceLROnPlateauScheduler, theirs.EMAHandler, theirs.FastaiLRFinder, theirs.EpochOutputStore, Metric,
)  # fmt: skip
"""Of Ignite's own those that write to the engine, its state or an optimizer, and their subclasses."""

TIME = (theirs.Timer, theirs.BasicTimeProfiler, theirs.HandlersTimeProfiler)
"""Those that measure the engine where it runs."""

CONTROLS = frozenset({"terminate", "terminate_epoch", "interrupt", "set_data", "fire_event"})
STEPS = frozenset({"step", "zero_grad"})


def title(target: Any) -> str:
    """How messages call a handler: by its name, or its class's."""
    return str(getattr(target, "__name__", None) or label(target))


def refuse_steering(target: Any) -> None:
    """Refuse a handler that steers.

    Raises:
        ConfigurationError: names what it does, and the remedy.
    """
    owner = getattr(target, "__self__", target)
    if isinstance(owner, STEER):
        _refuse(title(target), f"{label(owner)} writes to the engine or an optimizer")
    if isinstance(owner, TIME):
        _refuse(title(target), f"{label(owner)} measures the engine where it runs")
    if isinstance(owner, Engine):
        _refuse(title(target), f"it is a method of an engine, {title(target)}()")
    if isinstance(owner, (torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler, torch.nn.Module)):
        _refuse(title(target), f"it is a method of a live {label(owner)}")
    if isinstance(target, functools.partial):
        if is_live([*target.args, *target.keywords.values()]):
            raise ConfigurationError(
                f"{title(target.func)} is bound to live objects by functools.partial: give them to add_event_handler, "
                "which hands them over as they are at the event"
            )
        return refuse_steering(target.func)
    function = _function_of(target)
    if function is not None:
        _refuse_function(title(target), function)
    return None


def _function_of(target: Any) -> types.FunctionType | None:
    """The code that runs, where it is the user's own: Ignite's are known by their classes."""
    if not isinstance(target, (types.FunctionType, types.MethodType)):
        target = type(target).__call__
    function = getattr(target, "__func__", target)
    if not isinstance(function, types.FunctionType) or function.__module__.partition(".")[0] == "ignite":
        return None
    return function


def _refuse_function(name: str, function: types.FunctionType) -> None:
    live = {type(value) for _, _, value in surroundings(function)}
    steps = any(issubclass(cls, (torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler)) for cls in live)
    runs = any(issubclass(cls, Engine) for cls in live)
    for code in codes_of(function):
        called = CONTROLS | (STEPS if steps else frozenset()) | ({"run"} if runs else frozenset())
        for method in sorted(called.intersection(code.co_names)):
            _refuse(name, f"it calls .{method}()")
        before: Any = None
        for one in dis.get_instructions(code):
            if one.opname == "STORE_ATTR" and before == "state":
                _refuse(name, f"it sets engine.state.{one.argval}")
            if one.opname != "CACHE":
                before = one.argval if one.opname == "LOAD_ATTR" else None


def _refuse(name: str, what: str) -> None:
    raise ConfigurationError(
        f"{name} steers the training, and can't do that in the background ({what}): add it to the engine as it is, "
        "without background(...)"
    )
