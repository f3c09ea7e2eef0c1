"""Lightning's own loggers: what they have written is the same, inline and in the background, after a break too."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("lightning")

import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, MLFlowLogger, TensorBoardLogger, WandbLogger

from async_trainer.adapters import lightning
from tests.adapters.lightning_runs import Net, data, make_trainer
from tests.adapters.sinks import QUIET, mlflow_database, of_csv, of_mlflow, of_tensorboard, of_wandb, wandb_offline

__all__ = ["mlflow_database", "wandb_offline"]  # fixtures
pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.slow]

Make = Callable[[Path, str], Any]


def inline(one: Any) -> Any:
    return one


def run(folder: Path, wrap: Any, make: Make) -> None:
    """A training that breaks, and goes on from its checkpoint."""
    for part, breaks_at in (("broken", 6), ("resumed", -1)):
        torch.manual_seed(0)
        logger = wrap(make(folder, part))
        logger.log_hyperparams({"lr": 0.01, "net": "small"})
        checkpoints = ModelCheckpoint(folder / "checkpoints", save_top_k=1, save_last=True)
        trainer = make_trainer(folder, [checkpoints], logger)
        path = folder / "checkpoints" / "last.ckpt" if part == "resumed" else None
        fit = trainer.fit
        if part == "broken":
            with pytest.raises(OSError, match="the machine breaks"):
                fit(Net(breaks_at), data(), data())
        else:
            fit(Net(breaks_at), data(), data(), ckpt_path=path, weights_only=True)
            assert trainer.global_step == 8
            trainer.test(Net(), data(), verbose=False)


def test_csv(tmp_path: Path) -> None:
    for name, wrap in (("a", inline), ("b", lightning.background)):
        run(tmp_path / name, wrap, lambda folder, part: CSVLogger(folder, name="logs", version=part))
    a, b = of_csv(tmp_path / "a"), of_csv(tmp_path / "b")
    assert a.keys() == {"broken", "resumed"}
    assert a["resumed"].count("\n") > 4
    assert a == b


def test_tensorboard(tmp_path: Path) -> None:
    for name, wrap in (("a", inline), ("b", lightning.background)):
        run(tmp_path / name, wrap, lambda folder, part: TensorBoardLogger(folder, name="logs", version=part))
    a, b = of_tensorboard(tmp_path / "a"), of_tensorboard(tmp_path / "b")
    assert [step for step, _ in a["logs/broken"]["loss"]] == [0, 1, 2, 3, 4, 5]
    assert [step for step, _ in a["logs/resumed"]["loss"]] == [4, 5, 6, 7]
    assert a == b


def test_mlflow(tmp_path: Path, mlflow_database: str) -> None:
    for name, wrap in (("a", inline), ("b", lightning.background)):

        def make(folder: Path, part: str) -> Any:
            files = f"file:{folder / 'files'}"
            return MLFlowLogger(folder.name, part, mlflow_database, artifact_location=files, log_model=True)

        run(tmp_path / name, wrap, make)
    a, b = of_mlflow(mlflow_database, "a"), of_mlflow(mlflow_database, "b")
    assert [one[0] for one in a] == ["FAILED", "FINISHED"]
    assert a[0][1] == {"lr": "0.01", "net": "small"}
    assert [step for step, _ in a[1][2]["loss"]] == [4, 5, 6, 7]
    assert a[1][3]  # its checkpoint
    assert a == b
    steps = {path.parent.name for path in (tmp_path / "b" / "files").rglob("*.ckpt")}
    assert steps == {path.parent.name for path in (tmp_path / "a" / "files").rglob("*.ckpt")} != set()


def test_wandb(tmp_path: Path, wandb_offline: Any) -> None:
    for name, wrap in (("a", inline), ("b", lightning.background)):

        def make(folder: Path, part: str) -> Any:
            folder.mkdir(exist_ok=True)
            wandb_offline.finish()
            settings = wandb_offline.Settings(**QUIET)
            return WandbLogger(part, folder, version=part, offline=True, project="p", settings=settings)

        run(tmp_path / name, wrap, make)
        wandb_offline.finish()
    a, b = of_wandb(tmp_path / "a"), of_wandb(tmp_path / "b")
    assert len(a) == 2
    assert a[0][0] == {"lr": "0.01", "net": '"small"'}
    assert [row["trainer/global_step"] for row in a[1][1] if "loss" in row] == [4, 5, 6, 7]
    assert a == b
