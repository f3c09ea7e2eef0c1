"""Callbacks for everyday trainings: those that steer it, those that report it, those that keep its results."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from async_trainer.callbacks.checkpoint import Checkpoint as Checkpoint
    from async_trainer.callbacks.early_stopping import EarlyStopping as EarlyStopping
    from async_trainer.callbacks.figures import Figures as Figures
    from async_trainer.callbacks.histograms import Histograms as Histograms
    from async_trainer.callbacks.lr_scheduler import LRScheduler as LRScheduler
    from async_trainer.callbacks.metrics_log import MetricsLog as MetricsLog
    from async_trainer.callbacks.mlflow import MLflow as MLflow
    from async_trainer.callbacks.model_checkpoint import ModelCheckpoint as ModelCheckpoint
    from async_trainer.callbacks.progress import Progress as Progress
    from async_trainer.callbacks.prometheus import Prometheus as Prometheus
    from async_trainer.callbacks.sample_images import SampleImages as SampleImages
    from async_trainer.callbacks.tensorboard import TensorBoard as TensorBoard
    from async_trainer.callbacks.training_checkpoint import TrainingCheckpoint as TrainingCheckpoint
    from async_trainer.callbacks.upload import Upload as Upload
    from async_trainer.callbacks.wandb import WandB as WandB
    from async_trainer.callbacks.webhook import Webhook as Webhook

_HOMES = {
    "Checkpoint": "async_trainer.callbacks.checkpoint",
    "EarlyStopping": "async_trainer.callbacks.early_stopping",
    "Figures": "async_trainer.callbacks.figures",
    "Histograms": "async_trainer.callbacks.histograms",
    "LRScheduler": "async_trainer.callbacks.lr_scheduler",
    "MLflow": "async_trainer.callbacks.mlflow",
    "MetricsLog": "async_trainer.callbacks.metrics_log",
    "ModelCheckpoint": "async_trainer.callbacks.model_checkpoint",
    "Progress": "async_trainer.callbacks.progress",
    "Prometheus": "async_trainer.callbacks.prometheus",
    "SampleImages": "async_trainer.callbacks.sample_images",
    "TensorBoard": "async_trainer.callbacks.tensorboard",
    "TrainingCheckpoint": "async_trainer.callbacks.training_checkpoint",
    "Upload": "async_trainer.callbacks.upload",
    "WandB": "async_trainer.callbacks.wandb",
    "Webhook": "async_trainer.callbacks.webhook",
}
__all__ = sorted(_HOMES)


if not TYPE_CHECKING:  # else a misspelt name would be Any

    def __getattr__(name: str) -> Any:
        if name not in _HOMES:
            raise AttributeError(f"module 'async_trainer.callbacks' has no attribute {name!r}")
        value = globals()[name] = getattr(import_module(_HOMES[name]), name)
        return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
