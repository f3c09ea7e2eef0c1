"""What a trainer is given, checked before anything is touched."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch

from async_trainer.errors import ConfigurationError
from async_trainer.events import RUN_STARTS, Event
from async_trainer.handler import CallbacksHandler
from async_trainer.suggest import suggestion
from async_trainer.train.config import ComputationalConfig, OptimizationConfig
from async_trainer.train.maps import Maps
from async_trainer.train.metrics import MetricsHandler
from async_trainer.train.model import Model
from async_trainer.train.split import Split

_EVENTS = {event.value: event for event in Event}
RUN_ARGUMENTS = tuple(dict.fromkeys(name for event in sorted(RUN_STARTS) for name in event.arguments))
"""What the start of one run or another brings: its later hooks may name it."""


def as_maps(maps: Any) -> Maps:
    """A directory, or its path."""
    if not isinstance(maps, (Maps, str, os.PathLike)):
        raise ConfigurationError(f"maps must be a directory, not {maps!r}")
    return maps if isinstance(maps, Maps) else Maps(maps)


def as_metrics(metrics: Any) -> MetricsHandler:
    """A MetricsHandler, a dict of metrics, or None."""
    if metrics is None or isinstance(metrics, Mapping):
        return MetricsHandler(**(metrics or {}))
    if not isinstance(metrics, MetricsHandler):
        raise ConfigurationError(f"metrics must be a MetricsHandler, or a dict of metrics by name, not {metrics!r}")
    return metrics


def as_optimization(optimization: Any) -> OptimizationConfig:
    """An OptimizationConfig; None: the default."""
    if optimization is not None and not isinstance(optimization, OptimizationConfig):
        raise ConfigurationError(f"optimization must be an OptimizationConfig, not {optimization!r}")
    return optimization or OptimizationConfig()


def as_computational(computational: Any) -> ComputationalConfig:
    """A ComputationalConfig; None: the default."""
    if computational is not None and not isinstance(computational, ComputationalConfig):
        raise ConfigurationError(f"computational must be a ComputationalConfig, not {computational!r}")
    return computational or ComputationalConfig()


def check_model(model: Any) -> None:
    """Refuse what is no Model."""
    if not isinstance(model, Model):
        hint = "; wrap it: SupervisedModel(network, loss, optimizer)" if isinstance(model, torch.nn.Module) else ""
        raise ConfigurationError(f"model must be a Model, not a {type(model).__name__}{hint}")


def check_optimizers(optimizers: Any) -> dict[str, torch.optim.Optimizer]:
    """What a model has built: optimizers by name."""
    if not isinstance(optimizers, dict) or not optimizers:
        raise ConfigurationError(
            f"build_optimizers must return optimizers by name, such as {{'optimizer': ...}}, not {optimizers!r}"
        )
    return optimizers


def check_hooks(callbacks: CallbacksHandler) -> None:
    """Refuse a hook that names what neither its event nor the start of a run brings: a trainer's events are known."""
    for one in callbacks.attached:
        for name, hook in one.hooks.items():
            event = _EVENTS.get(name)
            brought = () if event is None else tuple(dict.fromkeys((*event.arguments, *RUN_ARGUMENTS)))
            for required in hook.required if brought else ():
                if required not in brought and required != "event":
                    raise ConfigurationError(
                        f"{one.name}.{name} names {required!r}, which neither this event nor the start of a run brings"
                        f"{suggestion(required, brought)}; there are: {', '.join(brought)}. Give the parameter a "
                        "default to make it optional"
                    )


def check_open(callbacks: CallbacksHandler) -> None:
    """Refuse a handler that has ended: its background callbacks would get nothing."""
    if callbacks.closed:
        raise ConfigurationError(
            "callbacks: this handler is closed, and its background callbacks get no more events; copy.copy(handler) is "
            "a new one with the same callbacks"
        )


def check_split(split: Any) -> None:
    """Refuse what is no Split."""
    if not isinstance(split, Split):
        raise ConfigurationError(f"split must be a Split: Split(0, train, val, batch_size=32); not {split!r}")


def check_loader(dataloader: Any) -> None:
    """Refuse what gives no batches, or gives them once only."""
    if isinstance(dataloader, (str, Mapping, torch.Tensor)) or not isinstance(dataloader, Iterable):
        raise ConfigurationError(f"dataloader must give batches each time it is iterated, not {dataloader!r}")
    if isinstance(dataloader, Iterator):
        raise ConfigurationError("dataloader is an iterator, which is used up after one run; give a DataLoader")
