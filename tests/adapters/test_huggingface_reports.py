"""Transformers' own callbacks that report: what they have written is the same, inline and in the background."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("transformers")

import transformers
from transformers.integrations import MLflowCallback, TensorBoardCallback, WandbCallback

from async_trainer.adapters import huggingface
from tests.adapters.huggingface_runs import Breaks, make_trainer
from tests.adapters.sinks import mlflow_database, of_mlflow, of_tensorboard, of_wandb, wandb_offline

__all__ = ["mlflow_database", "wandb_offline"]  # fixtures
pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.slow]
transformers.logging.set_verbosity_error()


def inline(trainer: Any, *callbacks: Any) -> None:
    """Leaves them where they are."""


BOTH = (("a", inline), ("b", huggingface.offload))


def train(folder: Path, move: Any, callback: Any, *more: Any, resume: bool = False, **options: Any) -> Any:
    """Returns the trainer: MLflow's callback ends the active run when it is collected."""
    trainer = make_trainer(folder / "out", [callback, *more], **options)
    handler = move(trainer, type(callback))
    if more:
        with pytest.raises(OSError, match="the machine breaks"):
            trainer.train()
        if handler is not None:
            handler.close()
    else:
        trainer.train(resume_from_checkpoint=resume)
        assert trainer.state.global_step == 8
    return trainer


def without(folder: Path, found: Any) -> Any:
    """With the folder's own name out of it."""
    return json.loads(json.dumps(found).replace(str(folder), ""))


def test_tensorboard_after_a_break_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("tensorboard")
    for name, move in BOTH:
        for part in ("broken", "resumed"):
            monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / name / part))
            more = [Breaks(5)] if part == "broken" else []
            train(tmp_path / name, move, TensorBoardCallback(), *more, resume=not more)
    a, b = of_tensorboard(tmp_path / "a"), of_tensorboard(tmp_path / "b")
    assert [step for step, _ in a["broken"]["train/loss"]] == [1, 2, 3, 4, 5]
    assert [step for step, _ in a["resumed"]["train/loss"]] == [5, 6, 7, 8]
    assert a == b


def test_wandb_after_a_break_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wandb_offline: Any) -> None:
    monkeypatch.setenv("WANDB_CONSOLE", "off")
    runs = []
    for name, move in BOTH:
        for part in ("broken", "resumed"):
            more = [Breaks(5)] if part == "broken" else []
            train(tmp_path / name, move, WandbCallback(), *more, resume=not more, run_name=part)
            wandb_offline.finish()
        runs.append(without(tmp_path / name, of_wandb(tmp_path)[-2:]))
    a, b = runs
    assert len(of_wandb(tmp_path)) == 4
    assert a[0][0]["n_embd"] == "16"
    assert [row["train/global_step"] for row in a[1][1] if "train/loss" in row] == [5, 6, 7, 8]
    assert a == b


def test_mlflow_after_a_break_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mlflow_database: str) -> None:
    import mlflow

    mlflow.set_tracking_uri(mlflow_database)
    trainers = []
    for name, move in BOTH:
        monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", name)
        for part in ("broken", "resumed"):
            more = [Breaks(5)] if part == "broken" else []
            trainers.append(train(tmp_path / name, move, MLflowCallback(), *more, resume=not more))
            assert (mlflow.active_run() is None) is (part == "resumed")  # transformers tells nobody of an error
            mlflow.end_run()
    a, b = (without(tmp_path / name, of_mlflow(mlflow_database, name)) for name in "ab")
    assert len(a) == 2
    assert a[0][1]["n_embd"] == "16"
    assert [step for step, _ in a[1][2]["loss"]] == [5, 6, 7, 8]
    assert a == b


def test_mlflow_goes_on_with_the_run_that_is_open(tmp_path: Path, mlflow_database: str) -> None:
    import mlflow

    mlflow.set_tracking_uri(mlflow_database)
    trainers = []
    for name, move in BOTH:
        mlflow.set_experiment(f"open {name}")
        with mlflow.start_run():
            mlflow.log_metric("before", 1.0)
            trainers.append(train(tmp_path / name, move, MLflowCallback()))
            mlflow.log_metric("after", 1.0)
    a, b = (without(tmp_path / name, of_mlflow(mlflow_database, f"open {name}")) for name in "ab")
    ((status, _, history, _),) = a  # one run
    assert status == "FINISHED"
    assert {"before", "loss", "eval_loss", "after"} <= history.keys()
    assert a == b
