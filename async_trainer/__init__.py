"""Training callbacks in the background: each in order, on snapshots, while the loop goes on."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from async_trainer.callback import Callback as Callback
    from async_trainer.callback import background as background
    from async_trainer.callback import inline as inline
    from async_trainer.errors import AsyncTrainerError as AsyncTrainerError
    from async_trainer.events import Event as Event
    from async_trainer.handler import CallbacksHandler as CallbacksHandler
    from async_trainer.snapshot import capture as capture
    from async_trainer.snapshot import keep as keep
    from async_trainer.snapshot.gradients import with_gradients as with_gradients
    from async_trainer.train.config import ComputationalConfig as ComputationalConfig
    from async_trainer.train.config import OptimizationConfig as OptimizationConfig
    from async_trainer.train.maps import Maps as Maps
    from async_trainer.train.metrics import MetricsHandler as MetricsHandler
    from async_trainer.train.model import Model as Model
    from async_trainer.train.model import SupervisedModel as SupervisedModel
    from async_trainer.train.split import Split as Split
    from async_trainer.train.state import TrainerState as TrainerState
    from async_trainer.train.trainer import Trainer as Trainer

_HOMES = {
    "AsyncTrainerError": "async_trainer.errors",
    "Callback": "async_trainer.callback",
    "CallbacksHandler": "async_trainer.handler",
    "ComputationalConfig": "async_trainer.train.config",
    "Event": "async_trainer.events",
    "Maps": "async_trainer.train.maps",
    "MetricsHandler": "async_trainer.train.metrics",
    "Model": "async_trainer.train.model",
    "OptimizationConfig": "async_trainer.train.config",
    "Split": "async_trainer.train.split",
    "SupervisedModel": "async_trainer.train.model",
    "Trainer": "async_trainer.train.trainer",
    "TrainerState": "async_trainer.train.state",
    "background": "async_trainer.callback",
    "capture": "async_trainer.snapshot",
    "inline": "async_trainer.callback",
    "keep": "async_trainer.snapshot",
    "with_gradients": "async_trainer.snapshot.gradients",
}
__all__ = sorted(_HOMES)
__version__ = "0.1.0"


if not TYPE_CHECKING:  # else a misspelt name would be Any

    def __getattr__(name: str) -> Any:
        if name not in _HOMES:
            raise AttributeError(f"module 'async_trainer' has no attribute {name!r}")
        value = globals()[name] = getattr(import_module(_HOMES[name]), name)
        return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
