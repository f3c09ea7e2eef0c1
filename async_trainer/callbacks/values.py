"""What callbacks are given in a Trainer and in a plain loop alike: metrics, and where they run."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor

from async_trainer.errors import ConfigurationError
from async_trainer.suggest import suggestion


def metric_values(metrics: Any, where: str = "metrics") -> dict[str, float]:
    """The values of the last evaluation, by name.

    Args:
        metrics: a ``MetricsHandler``, or, in a plain loop, a mapping of names to numbers; None: there are none.
        where: what asks for them, for messages.

    Raises:
        TypeError: one is no number; names it.
    """
    return {name: number(name, value, where) for name, value in last_values(metrics).items()}


def last_values(metrics: Any) -> Mapping[str, Any]:
    """The same, whatever they are."""
    last: Mapping[str, Any] = metrics if isinstance(metrics, Mapping) else getattr(metrics, "last", {})
    return last


def number(name: str, value: Any, where: str) -> float:
    """``value``, a number or a tensor of one.

    Raises:
        TypeError: it is none; names it.
    """
    try:
        return float(value.item() if isinstance(value, Tensor) else value)
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        shape = f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
        shape = "one that no float can hold" if isinstance(error, OverflowError) else shape
        raise TypeError(f"{where}: {name} must be a number, or a tensor of one, not {shape}") from error


def check_counts(where: str, **options: Any) -> None:
    """Options of a constructor that count something.

    Args:
        where: the callback, for messages.
        options: by name.

    Raises:
        ConfigurationError: one is no whole number, or less than 1; names it.
    """
    for option, value in options.items():
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ConfigurationError(f"{where}: {option} must be a whole number, 1 or more, not {value!r}")


def metric_value(metrics: Any, name: str, where: str) -> float:
    """The value of a metric in the last evaluation.

    Args:
        metrics: as for :func:`metric_values`.
        name: the metric's.
        where: what asks for it, for messages: ``"EarlyStopping: metric"``.

    Raises:
        ConfigurationError: there is no such metric; tells those that there are.
    """
    values = metric_values(metrics, where)
    if name not in values:
        raise _unknown(name, values, where)
    return values[name]


def check_metric(arguments: Mapping[str, Any], name: str, where: str) -> None:
    """Refuse, before a training, a metric that there won't be.

    Args:
        arguments: those that the training starts with; a plain loop may not know its metrics yet.
        name: the metric's.
        where: what asks for it, for messages: ``"EarlyStopping: metric"``.

    Raises:
        ConfigurationError: there is no such metric, or no validation data to compute it on.
    """
    split, metrics = arguments.get("split"), arguments.get("metrics")
    if getattr(split, "val_loader", split) is None and split is not None:
        raise ConfigurationError(f"{where}={name!r}: {split!r} has no validation data to compute it on")
    names = tuple(metrics) if isinstance(metrics, Mapping) else getattr(metrics, "names", ())
    if not names or name in names:
        return
    if not any(name.startswith(f"{one}_") for one in names):  # one of several values of a metric: f1_0, f1_1
        raise _unknown(name, names, where)


def _unknown(name: str, names: Iterable[str], where: str) -> ConfigurationError:
    there = ", ".join(names) or "none"
    return ConfigurationError(f"{where}={name!r}: there is no such metric{suggestion(name, names)}; there are: {there}")
