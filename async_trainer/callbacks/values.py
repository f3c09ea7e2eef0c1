"""What callbacks are given in a Trainer and in a plain loop alike: metrics, and where they run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from async_trainer.callback import label
from async_trainer.errors import ConfigurationError
from async_trainer.suggest import suggestion
from async_trainer.train.state import FrozenTrainerState


def metric_names(metrics: Any) -> tuple[str, ...]:
    """The names of ``metrics``: a ``MetricsHandler``, or, in a plain loop, a mapping of names to numbers."""
    return tuple(metrics) if isinstance(metrics, Mapping) else tuple(metrics.names)


def metric_value(metrics: Any, name: str, where: str) -> float:
    """The last value of a metric.

    Args:
        metrics: as for :func:`metric_names`.
        name: the metric's.
        where: what asks for it, for messages: ``"EarlyStopping: metric"``.

    Raises:
        ConfigurationError: there is no such metric; tells those that there are.
    """
    check_metric(metrics, name, where)
    value = metrics[name] if isinstance(metrics, Mapping) else metrics.get_metric_value(name)
    return float(value)


def check_metric(metrics: Any, name: str, where: str) -> None:
    """Refuse the name of a metric that isn't there.

    Raises:
        ConfigurationError: as for :func:`metric_value`.
    """
    names = metric_names(metrics)
    if name not in names:
        raise ConfigurationError(
            f"{where}={name!r}: there is no such metric{suggestion(name, names)}; there are: "
            f"{', '.join(names) or 'none'}"
        )


def check_metric_at_start(metrics: Any, name: str, where: str) -> None:
    """As :func:`check_metric`, at the start of a training: the names of a plain loop may not be known by then."""
    if metrics is not None and metric_names(metrics):
        check_metric(metrics, name, where)


def refuse_background(callback: object, state: Any) -> None:
    """Refuse to steer a training from the background, where the hooks' state is a copy.

    Raises:
        ConfigurationError: names the callback and the remedy.
    """
    if isinstance(state, FrozenTrainerState):
        name = label(callback)
        raise ConfigurationError(
            f"{name} steers the training, and can't do that in the background: pass it as {name}(...), without "
            "background(...)"
        )
