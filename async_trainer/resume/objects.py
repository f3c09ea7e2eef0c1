"""The states of objects with ``state_dict`` and ``load_state_dict``, and of dicts and lists of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch.nn.parallel import DataParallel, DistributedDataParallel

from async_trainer.errors import ConfigurationError
from async_trainer.snapshot.gradients import with_gradients

CAPTURED = (torch.nn.Module, torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler, torch.amp.GradScaler)
"""They are captured whole, mostly without stopping; their state_dict() is taken from the snapshot."""


OF_SCHEDULERS = {"initial_lr", "max_lr", "min_lr", "base_momentum", "max_momentum", "swa_lr"}
"""What those add to the groups of an optimizer."""


def check_objects(objects: Mapping[str, Any]) -> None:
    """Refuse what has no state.

    Raises:
        ConfigurationError: names it.
    """
    for name, value in objects.items():
        _check(value, name)


def _check(value: Any, path: str) -> None:
    if isinstance(value, Mapping):
        for key, part in value.items():
            _check(part, f"{path}[{key!r}]")
    elif isinstance(value, (list, tuple)):
        for place, part in enumerate(value):
            _check(part, f"{path}[{place}]")
    elif not (callable(getattr(value, "state_dict", None)) and callable(getattr(value, "load_state_dict", None))):
        raise ConfigurationError(
            f"checkpoint: {path} is a {type(value).__name__}, without state_dict and load_state_dict; give objects "
            "that have both, or dicts and lists of them"
        )


def live_values(value: Any) -> Any:
    """What is to be captured of ``value``: itself, or the state that it says it has. The training thread."""
    if isinstance(value, Mapping):
        return {key: live_values(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [live_values(part) for part in value]
    if isinstance(value, torch.nn.Module):
        return with_gradients(value) if any(one.grad is not None for one in value.parameters()) else value
    return value if isinstance(value, CAPTURED) else value.state_dict()


def states(value: Any) -> Any:
    """The states of what was captured. Any thread."""
    if isinstance(value, torch.nn.Module):
        state = plain_names(value.state_dict())
        buffers, parameters = plain_names(dict(value.named_buffers())), plain_names(dict(value.named_parameters()))
        return {
            "state": state,
            "buffers": {name: one for name, one in buffers.items() if name not in state},  # not persistent
            "gradients": {name: one.grad for name, one in parameters.items() if one.grad is not None},
        }
    if isinstance(value, CAPTURED):
        return value.state_dict()
    if isinstance(value, dict):
        return {key: states(part) for key, part in value.items()}
    if isinstance(value, list):
        return [states(part) for part in value]
    return value


def load(value: Any, state: Any, path: str) -> None:
    """Hand ``state`` to ``value``. The training thread.

    Raises:
        ConfigurationError: it is of another object.
    """
    try:
        if isinstance(value, Mapping):
            for key, part in value.items():
                load(part, state[key], f"{path}[{key!r}]")
        elif isinstance(value, (list, tuple)):
            for place, part in enumerate(value):
                load(part, state[place], f"{path}[{place}]")
        elif isinstance(value, torch.nn.Module):
            _load_module(value, state)
        else:
            value.load_state_dict(state)
    except ConfigurationError:
        raise
    except Exception as error:
        raise ConfigurationError(
            f"restore: {path}: what was saved is of another {type(value).__name__}: {error}"
        ) from error


def check_optimizers(value: Any, state: Any, path: str) -> None:
    """Refuse an optimizer of another kind, before anything is loaded: torch would take the state, and fail in its step.

    Told by the settings of its groups: each has some that the other hasn't. (A later version of torch may only add
    some.)

    Raises:
        ConfigurationError: names it.
    """
    if isinstance(value, Mapping) and isinstance(state, Mapping):
        for key, part in value.items():
            check_optimizers(part, state.get(key), f"{path}[{key!r}]")
    elif isinstance(value, (list, tuple)) and isinstance(state, (list, tuple)):
        for place, (part, kept) in enumerate(zip(value, state, strict=False)):
            check_optimizers(part, kept, f"{path}[{place}]")
    elif isinstance(value, torch.optim.Optimizer) and isinstance(state, Mapping) and state.get("param_groups"):
        was, now = ({*groups[0]} - OF_SCHEDULERS for groups in (state["param_groups"], value.param_groups))
        if was - now and now - was:
            raise ConfigurationError(
                f"{path}: what was saved is of another optimizer than {type(value).__name__}: its groups have "
                f"{', '.join(sorted(was - now))}, and no {', '.join(sorted(now - was))}; give one of the class "
                "that was trained with"
            )


def plain_names(named: Mapping[str, Any]) -> dict[str, Any]:
    """``named``, as it would be without ``torch.compile``: a snapshot of a compiled module is one of what it wraps."""
    return {name.replace("_orig_mod.", ""): value for name, value in named.items()}


def check_keys(states: Mapping[str, Any], keys: Mapping[str, set[str]]) -> None:
    """Refuse a module whose snapshot has another state than itself: hooks of its ``state_dict`` don't run there.

    Raises:
        ConfigurationError: names the module, and a key.
    """
    for name, expected in keys.items():
        other = sorted(expected ^ states[name]["state"].keys())
        if other:
            raise ConfigurationError(
                f"{name}: its state_dict() and that of its snapshot differ in {other[0]!r}: hooks of state_dict() are "
                "no part of a snapshot; override get_extra_state, or state_dict itself, in its class"
            )


def _load_module(value: torch.nn.Module, state: Mapping[str, Any]) -> None:
    if isinstance(value, (DataParallel, DistributedDataParallel)):  # the same goes for these
        value = value.module
    names = {name.replace("_orig_mod.", ""): name for name in value.state_dict()}
    value.load_state_dict({names.get(name, name): one for name, one in state["state"].items()})
    with torch.no_grad():
        for name, one in plain_names(dict(value.named_buffers())).items():
            if name in state["buffers"]:
                one.copy_(state["buffers"][name])
    gradients = state["gradients"]
    for name, parameter in plain_names(dict(value.named_parameters())).items():
        parameter.grad = gradients[name].to(parameter.device) if name in gradients else None
