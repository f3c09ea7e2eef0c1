"""What a trainer is given, checked before anything is touched."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch.nn.parameter import UninitializedParameter

from async_trainer.errors import ConfigurationError
from async_trainer.events import Event, brought_by
from async_trainer.handler import CallbacksHandler
from async_trainer.suggest import suggestion
from async_trainer.train.config import ComputationalConfig, OptimizationConfig
from async_trainer.train.maps import Maps
from async_trainer.train.metrics import MetricsHandler
from async_trainer.train.model import Model
from async_trainer.train.split import Split

_EVENTS = {event.value: event for event in Event}
_STARTS = {Event.VALIDATE_END: Event.VALIDATE_START, Event.TEST_END: Event.TEST_START}
"""Where a run is no training: what has started it."""


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
    return metrics.subset()  # a trainer adds its model's losses: the given one may be another trainer's too


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


def check_initialized(model: Model) -> None:
    """Refuse a model whose lazy modules have no weights yet."""
    for name, parameter in model.named_parameters():
        if isinstance(parameter, UninitializedParameter):
            raise ConfigurationError(
                f"model: {name} has no weights yet, as its module is lazy; run a batch through the model before"
            )


def check_optimizers(optimizers: Any) -> dict[str, torch.optim.Optimizer]:
    """What a model has built: optimizers by name."""
    if not isinstance(optimizers, dict) or not optimizers:
        raise ConfigurationError(
            f"build_optimizers must return optimizers by name, such as {{'optimizer': ...}}, not {optimizers!r}"
        )
    return optimizers


def check_hooks(callbacks: CallbacksHandler) -> None:
    """Refuse a hook that names what neither its event nor the start of its run brings: a trainer's events are known."""
    for one in callbacks.attached:
        for name, hook in one.hooks.items():
            event = _EVENTS.get(name)
            if event is None:
                continue
            start = _STARTS.get(event, Event.TRAIN_START)
            brought = tuple(dict.fromkeys((*event.arguments, *start.arguments)))
            for required in hook.required:
                if required not in brought and required != "event":
                    raise ConfigurationError(
                        f"{one.name}.{name} names {required!r}, which neither this event nor the start of the run "
                        f"brings{brought_by(required) or suggestion(required, brought)}. There are: "
                        f"{', '.join(brought)}. Give the parameter a default to make it optional"
                    )


def check_open(callbacks: CallbacksHandler) -> None:
    """Refuse a handler that has ended: its background callbacks would get nothing."""
    if callbacks.closed:
        raise ConfigurationError(
            "callbacks: this handler is closed, and its background callbacks get no more events; copy.copy(handler) is "
            "a new one with the same callbacks"
        )


def check_idle(callbacks: CallbacksHandler) -> None:
    """Refuse a run within a hook of a training: it would take the training's model, state and checkpoints from it."""
    if callbacks.resumable is not None:
        raise ConfigurationError(
            "a training is under way, whose model and state this would change: in a hook, use a trainer of its own, "
            "with a copy of the model: Trainer.from_maps(maps.path, model=copy.deepcopy(model))"
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
