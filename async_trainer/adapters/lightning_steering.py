"""Lightning callbacks that change the training, or look further into it than a snapshot shows: refused."""

from __future__ import annotations

import inspect
from typing import Any

from async_trainer.adapters.reading import functions_of, loads, steps, stores
from async_trainer.callback import label
from async_trainer.errors import ConfigurationError

PACKAGES = ("lightning", "pytorch_lightning", "lightning_fabric")
REMEDY = (
    "use strategy='ddp', which starts the script once per rank, in place of a strategy that starts or forks processes "
    "from a running trainer (ddp_spawn, ddp_fork, ddp_notebook); or pass it as it is, without lightning.background(...)"
)
"""Of what is in the background in one process, for another."""

STEER = (
    "EarlyStopping", "Checkpoint", "LearningRateMonitor", "GradientAccumulationScheduler", "StochasticWeightAveraging",
    "WeightAveraging", "BaseFinetuning", "ModelPruning", "Timer", "BatchSizeFinder", "LearningRateFinder",
    "SpikeDetection",
)  # fmt: skip
"""Of Lightning's own callbacks those that write to the trainer, the module or the metrics, and their subclasses."""

LIVE = ("ProgressBar", "DeviceStatsMonitor", "ThroughputMonitor", "ModelSummary", "BasePredictionWriter")
"""Those that look into the live trainer where no snapshot shows it."""


def refuse_log(*args: Any, **kwargs: Any) -> None:
    """In the place of a callback's ``log`` and ``log_dict``."""
    raise ConfigurationError(
        "self.log() writes to the metrics of the training, which has gone on: a background hook can't. Log with a "
        "logger (trainer.logger.log_metrics), or leave the callback inline"
    )


def refuse_steering(callback: Any, hooks: list[str]) -> None:
    """Refuse a callback that changes the training, as far as its code tells.

    Raises:
        ConfigurationError: names what it does.
    """
    name = label(callback)
    for base in type(callback).__mro__:
        if base.__module__.partition(".")[0] in PACKAGES and base.__name__ in STEER:
            raise _steers(
                name, f"derives from {base.__name__}" if base.__name__ != name else "writes to the live trainer"
            )
        if base.__module__.partition(".")[0] in PACKAGES and base.__name__ in LIVE:
            raise ConfigurationError(
                f"{name} looks into the live trainer, further than a snapshot shows it, and can't do that in the "
                "background: pass it as it is, without lightning.background(...)"
            )
    for hook in hooks:
        method = getattr(callback, hook)
        names = list(inspect.signature(method).parameters)[:2]
        for use in stores(method):
            if use.variable in names:
                raise _steers(name, f"sets {use.variable}.{use.attribute} in {hook}")
        for use in loads(method):
            if use.variable in names[1:] and use.attribute in ("log", "log_dict"):
                raise _steers(name, f"calls {use.variable}.{use.attribute}() in {hook}")
    for function in functions_of(type(callback), "lightning"):
        for use in stores(function):
            if use.attribute == "should_stop":
                raise _steers(name, f"sets {use.variable}.should_stop")
        for use in steps(function):
            raise _steers(name, f"calls {use.attribute}() of {use.variable}")
        for use in loads(function):
            if use.variable == "self" and use.attribute in ("log", "log_dict"):
                raise _steers(name, f"calls self.{use.attribute}(), which writes to the metrics of the training")


def _steers(name: str, what: str) -> ConfigurationError:
    return ConfigurationError(
        f"{name} {what}: it steers the training, and can't do that in the background. Pass it as it is, without "
        "lightning.background(...)"
    )
