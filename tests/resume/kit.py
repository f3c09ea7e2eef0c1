"""A training with everything that has a state, to be interrupted."""

from __future__ import annotations

import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from async_trainer import Callback, ComputationalConfig, OptimizationConfig, Split, SupervisedModel, Trainer
from async_trainer.callbacks.early_stopping import EarlyStopping
from async_trainer.callbacks.lr_scheduler import LRScheduler
from async_trainer.callbacks.metrics_log import MetricsLog
from async_trainer.callbacks.training_checkpoint import TrainingCheckpoint

EPOCHS, BATCHES, STEPS = 3, 7, 3  # accumulation: 3, 3, 1


class Noisy(SupervisedModel):
    """Dropout, BatchNorm, and draws from all generators."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        network = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.3), nn.Linear(8, 1))
        super().__init__(network, nn.MSELoss(), lambda params: torch.optim.SGD(params, lr=0.05, momentum=0.9))
        self.register_buffer("seen", torch.zeros(1), persistent=False)

    def forward_step(self, batch: Any) -> Tensor:
        self.seen += 1
        noise = random.random() + float(np.random.rand()) + float(torch.rand(()))
        return super().forward_step(batch) * (1 + 0.01 * noise)


def split(workers: int = 0) -> Split:
    draw = torch.Generator().manual_seed(5)
    features = torch.randn(BATCHES * 4, 4, generator=draw)
    data = TensorDataset(features, features.sum(1, keepdim=True))
    train = DataLoader(data, batch_size=4, shuffle=True, num_workers=workers)
    return Split(0, train, DataLoader(data, batch_size=8))


class Stops(Exception):
    """The interruption."""


class StopsAt(Callback):
    """Interrupts after batch ``batch`` of epoch ``epoch``; 0: at its end."""

    def __init__(self, epoch: int, batch: int, error: type[BaseException] = Stops) -> None:
        self.epoch, self.batch, self.error = epoch, batch, error

    def on_batch_end(self, *, state: Any) -> None:
        if state.stage == "training" and (state.current_epoch, state.current_train_batch) == (self.epoch, self.batch):
            raise self.error

    def on_epoch_start(self, *, state: Any) -> None:
        if self.batch == 0 and state.current_epoch == self.epoch + 1:
            raise self.error


def trainer(folder: Path, *callbacks: Any, resume: bool = False, steps: int | None = 1, wait: bool = False) -> Trainer:
    given = [
        TrainingCheckpoint(every_n_steps=steps, keep=2, wait=wait),
        EarlyStopping("loss", patience=50),
        LRScheduler(lambda optimizer: torch.optim.lr_scheduler.StepLR(optimizer, 2, 0.5)),
        MetricsLog(),
        *callbacks,
    ]
    optimization = OptimizationConfig(num_epochs=EPOCHS, accumulation_steps=STEPS)
    if resume:
        return Trainer.from_maps(folder, model=Noisy(), callbacks=given)
    return Trainer(folder, Noisy(), optimization=optimization, callbacks=given)


def computational() -> ComputationalConfig:
    return ComputationalConfig(device="cpu", seed=3)


def outcome(made: Trainer, frame: Any) -> Mapping[str, Any]:
    """All that must be the same."""
    folder = made.maps.split(0)
    return {
        "weights": {name: one.clone() for name, one in made.model.state_dict().items()},
        "seen": made.model.seen.clone(),
        "frame": frame.to_dict("list"),
        "metrics.tsv": folder.metrics.read_bytes(),
        "log": (folder.logs / "metrics.jsonl").read_bytes(),
        "final": folder.checkpoint("final").read_bytes(),
        "state": dict(vars(made.state)),
        "rng": (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()),
    }


def same(one: Any, other: Any) -> bool:
    if isinstance(one, Mapping):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(torch.equal(one, other)) if isinstance(one, Tensor) else bool(one == other)


def difference(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    return [name for name in one if not same(one[name], other[name])]
