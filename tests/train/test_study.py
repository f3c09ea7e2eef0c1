"""A real study from end to end: the digits, in five folds, stopped early; its best checkpoints, tested."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Subset, TensorDataset

from async_trainer import ComputationalConfig, OptimizationConfig, Split, SupervisedModel, Trainer
from async_trainer.callbacks import EarlyStopping, LRScheduler, MetricsLog, ModelCheckpoint

datasets = pytest.importorskip("sklearn.datasets")


def accuracy(preds: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return preds.argmax(1) == target


def digits() -> TensorDataset:
    bunch = datasets.load_digits()
    return TensorDataset(torch.as_tensor(bunch.images, dtype=torch.float32) / 16, torch.as_tensor(bunch.target))


def model() -> SupervisedModel:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    return SupervisedModel(net, nn.CrossEntropyLoss(), lambda params: torch.optim.Adam(params, lr=1e-2))


def test_five_folds_of_the_digits(tmp_path: Path) -> None:
    data = digits()
    study, held_out = Subset(data, range(1400)), DataLoader(Subset(data, range(1400, len(data))), batch_size=128)
    trainer = Trainer(
        tmp_path / "digits",
        model(),
        metrics={"accuracy": accuracy},
        optimization=OptimizationConfig(num_epochs=20),
        callbacks=[
            EarlyStopping("accuracy", mode="max", patience=2),
            LRScheduler(lambda optimizer: torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)),
            ModelCheckpoint("accuracy", mode="max"),
            MetricsLog(),
        ],
    )
    curves = {
        split.index: trainer.train(split, ComputationalConfig(seed=split.index))
        for split in Split.k_folds(study, 5, batch_size=140)
    }
    report = pd.concat(
        [trainer.test(f"split-{index}_best-accuracy", "held-out", dataloader=held_out) for index in curves]
    )
    assert report["accuracy"].mean() > 0.85
    assert report["accuracy"].nunique() > 1, "each fold has a model of its own"
    assert min(map(len, curves.values())) < 20, "stopped early"
    for index, curve in curves.items():
        folder = trainer.maps.split(index)
        assert folder.checkpoint_names == ("best-accuracy", "final")
        rows = [json.loads(line) for line in (folder.logs / "metrics.jsonl").read_text().splitlines()]
        validated = [row["validation/accuracy"] for row in rows if "validation/accuracy" in row]
        assert validated == list(curve["accuracy"])
        best: Any = trainer.validate(index, ["accuracy"], model_checkpoint="best-accuracy")["accuracy"].iloc[0]
        assert best == curve["accuracy"].max(), "the checkpoint is of the best epoch, not of a later one"

    again = Trainer.from_maps(tmp_path / "digits", model=model(), metrics={"accuracy": accuracy})
    first = again.test("split-0_best-accuracy", "held-out", dataloader=held_out)
    pd.testing.assert_frame_equal(first, report.iloc[[0]])
    trainer.callbacks.close().raise_for_errors()
