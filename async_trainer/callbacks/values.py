"""What callbacks are given in a Trainer and in a plain loop alike: metrics, and where they run."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from async_trainer.callback import label
from async_trainer.errors import ConfigurationError
from async_trainer.suggest import suggestion
from async_trainer.train.state import FrozenTrainerState


def metric_values(metrics: Any) -> dict[str, float]:
    """The values of the last evaluation, by name.

    Args:
        metrics: a ``MetricsHandler``, or, in a plain loop, a mapping of names to numbers; None: there are none.
    """
    last: Mapping[str, Any] = metrics if isinstance(metrics, Mapping) else getattr(metrics, "last", {})
    return {name: float(value) for name, value in last.items()}


def metric_value(metrics: Any, name: str, where: str) -> float:
    """The value of a metric in the last evaluation.

    Args:
        metrics: as for :func:`metric_values`.
        name: the metric's.
        where: what asks for it, for messages: ``"EarlyStopping: metric"``.

    Raises:
        ConfigurationError: there is no such metric; tells those that there are.
    """
    values = metric_values(metrics)
    if name not in values:
        raise _unknown(name, values, where)
    return values[name]


def check_metric_at_start(metrics: Any, name: str, where: str) -> None:
    """Refuse, at the start of a training, the name of a metric that there won't be.

    Raises:
        ConfigurationError: as for :func:`metric_value`.
    """
    names = tuple(metrics) if isinstance(metrics, Mapping) else getattr(metrics, "names", ())
    if not names or name in names:  # a plain loop may not know them yet
        return
    if not any(name.startswith(f"{one}_") for one in names):  # one of several values of a metric: f1_0, f1_1
        raise _unknown(name, names, where)


def _unknown(name: str, names: Iterable[str], where: str) -> ConfigurationError:
    there = ", ".join(names) or "none"
    return ConfigurationError(f"{where}={name!r}: there is no such metric{suggestion(name, names)}; there are: {there}")


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
