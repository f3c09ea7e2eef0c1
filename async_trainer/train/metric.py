"""One metric: a function of the evaluation step's output, or an object with update, compute and reset."""

from __future__ import annotations

import copy
import inspect
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from async_trainer.errors import ConfigurationError
from async_trainer.suggest import suggestion

SAMPLE = "sample"
_ALIASES = {"input": "preds"}  # torch's losses call predictions "input"


class Metric(ABC):
    """A metric within a MetricsHandler. The training thread."""

    def __init__(self, name: str) -> None:
        self.name = name

    @abstractmethod
    def fresh(self) -> Metric:
        """The same metric, with nothing counted."""

    @abstractmethod
    def reset(self) -> None:
        """Forget what was counted."""

    @abstractmethod
    def update(self, output: Mapping[str, Any], size: int) -> Tensor | None:
        """Look at a batch of ``size`` samples; the values of its samples, shape (size,), if it has such."""

    def count(self, values: np.ndarray[Any, Any]) -> None:
        """Count the values of samples in, once they have come from the device: where :meth:`update` returns
        such, and only there."""
        raise NotImplementedError

    @abstractmethod
    def compute(self) -> dict[str, Any]:
        """Its columns, and their values over all samples."""


class Function(Metric):
    """A function: the mean of its values."""

    def __init__(self, name: str, function: Callable[..., Any]) -> None:
        super().__init__(name)
        self._function = function
        self._parameters = Parameters(name, function)
        self.reset()

    def fresh(self) -> Function:
        return Function(self.name, self._function)

    def reset(self) -> None:
        self._sum, self._samples = 0.0, 0

    def update(self, output: Mapping[str, Any], size: int) -> Tensor:
        values = self._tensor(self._function(**self._parameters.of(output)))
        if values.dim() == 0:
            return values.expand(size)
        if len(values) != size:
            raise ConfigurationError(
                f"metric {self.name}: it returned {len(values)} values for a batch of {size} samples; return one for "
                "each, or a single one for all"
            )
        return values.flatten(1).to(wide(values.device)).mean(1) if values.dim() > 1 else values

    def _tensor(self, returned: Any) -> Tensor:
        if isinstance(returned, np.ndarray):
            returned = np.ascontiguousarray(returned).reshape(returned.shape)  # torch takes no negative strides
        try:
            values = torch.as_tensor(returned).detach()
        except (RuntimeError, TypeError, ValueError) as error:
            raise ConfigurationError(
                f"metric {self.name}: it must return numbers, one for each sample or a single one for all, not "
                f"{type(returned).__name__}: {error}"
            ) from error
        if values.is_complex():
            raise ConfigurationError(f"metric {self.name}: it must return real numbers, not {values.dtype}")
        return values

    def count(self, values: np.ndarray[Any, Any]) -> None:
        self._sum += float(values.sum())
        self._samples += len(values)

    def compute(self) -> dict[str, Any]:
        return {self.name: self._sum / self._samples if self._samples else float("nan")}


class Stateful(Metric):
    """What counts by itself: torchmetrics."""

    def __init__(self, name: str, metric: Any) -> None:
        super().__init__(name)
        self._metric = metric
        many = hasattr(metric, "items") and callable(metric.items)  # a MetricCollection: each takes what it names
        self._parameters = None if many else Parameters(name, metric.update)
        self._counted = False
        self._device: torch.device | None = None

    def fresh(self) -> Stateful:
        metric = copy.deepcopy(self._metric)
        metric.reset()
        return Stateful(self.name, metric)

    def reset(self) -> None:
        self._metric.reset()
        self._counted = False

    def update(self, output: Mapping[str, Any], size: int) -> None:
        # Its **kwargs are for those that it wraps, of which none takes the samples' names.
        known = {name: value for name, value in output.items() if name != SAMPLE}
        taken = known if self._parameters is None else self._parameters.of(known)
        devices = {value.device for value in taken.values() if isinstance(value, Tensor)}
        device = next(iter(devices - {torch.device("cpu")}), torch.device("cpu"))
        if devices and device != self._device and callable(getattr(self._metric, "to", None)):
            self._metric.to(device)
            self._device = device
        self._metric.update(**taken)
        self._counted = True

    def compute(self) -> dict[str, Any]:
        if not self._counted:  # some would raise, some say 0
            return {self.name: float("nan")}
        return _columns(self.name, self._metric.compute())


class Parameters:
    """Which parts of an output a function takes, by its parameters' names."""

    def __init__(self, metric: str, function: Callable[..., Any]) -> None:
        self._metric = metric
        called = function.forward if isinstance(function, nn.Module) else function
        try:
            parameters = inspect.signature(called).parameters.values()
        except (TypeError, ValueError):
            raise ConfigurationError(
                f"metric {metric}: {function!r} doesn't tell its parameters; wrap it: lambda preds, target: ..."
            ) from None
        kinds = inspect.Parameter
        named = [one for one in parameters if one.kind in (kinds.POSITIONAL_OR_KEYWORD, kinds.KEYWORD_ONLY)]
        if any(one.kind is kinds.POSITIONAL_ONLY and one.default is kinds.empty for one in parameters):
            raise ConfigurationError(
                f"metric {metric}: {function!r} has parameters without a name; wrap it: lambda preds, target: ..."
            )
        self._all = any(one.kind is kinds.VAR_KEYWORD for one in parameters)
        if not (named or self._all) and any(one.kind is kinds.VAR_POSITIONAL for one in parameters):
            raise ConfigurationError(
                f"metric {metric}: {function!r} names no parameter; wrap it: lambda preds, target: ..."
            )
        self._required = [one.name for one in named if one.default is kinds.empty]
        self._optional = [one.name for one in named if one.default is not kinds.empty]

    def of(self, output: Mapping[str, Any]) -> dict[str, Any]:
        """The arguments for a call.

        Raises:
            ConfigurationError: the output lacks one.
        """
        taken = dict(output) if self._all else {name: output[name] for name in self._optional if name in output}
        for name in self._required:
            key = name if name in output else _ALIASES.get(name, name)
            if key not in output:
                raise ConfigurationError(
                    f"metric {self._metric} names {name!r}, which the output of evaluation_step has not"
                    f"{suggestion(name, [str(key) for key in output])}; it has: {', '.join(map(str, output))}"
                )
            taken[name] = output[key]
        return taken


def is_stateful(metric: Any) -> bool:
    """Whether ``metric`` counts by itself."""
    return not isinstance(metric, type) and all(
        callable(getattr(metric, name, None)) for name in ("update", "compute", "reset")
    )


def per_sample_loss(loss: Callable[..., Any]) -> Callable[..., Any]:
    """``loss`` as a function of ``preds`` and ``target``, with a value per sample if it has a ``reduction``.

    A loss that sums has for each sample the sum over its elements; one that averages, their mean. Class weights, and
    classes to ignore, count in each sample's value: the samples are averaged alike, where torch would divide by the sum
    of the weights.
    """
    # Its own attribute, for what wraps a loss (torch.compile) would switch it off in the loss that trains.
    reduction = getattr(loss, "__dict__", {}).get("reduction")
    if reduction in ("mean", "sum"):
        loss = copy.copy(loss)  # a module's copy shares its buffers, which go to the device with the model
        loss.reduction = "none"  # type: ignore[attr-defined]
    unreduced = loss

    def compute(preds: Any, target: Any) -> Any:
        values = unreduced(preds, target)
        return values.flatten(1).sum(1) if reduction == "sum" and values.dim() > 1 else values

    return compute


def wide(device: torch.device) -> torch.dtype:
    """The widest floats of ``device``."""
    return torch.float32 if device.type == "mps" else torch.float64


def _columns(name: str, value: Any) -> dict[str, Any]:
    """``value``, however nested, as numbers by column: a part's key, or its place, is added to the name."""
    if isinstance(value, (Tensor, np.ndarray)):
        value = value.item() if math.prod(value.shape) == 1 else value.tolist()
    if isinstance(value, Mapping):
        parts = value.items()
    elif isinstance(value, (list, tuple)):
        parts = dict(enumerate(value)).items()
    else:
        return {name: value.item() if isinstance(value, np.generic) else value}
    return {column: number for key, part in parts for column, number in _columns(f"{name}_{key}", part).items()}
