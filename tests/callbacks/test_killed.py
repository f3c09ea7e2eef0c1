"""A Trainer that is killed, and resumed, with all that it writes: each row, file and value is there once."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

pytest.importorskip("mlflow")
pytest.importorskip("sqlalchemy")

from mlflow import MlflowClient
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from async_trainer.callbacks.wandb_files import read_rows
from tests.callbacks.servers import mlflow_server

ROOT = Path(__file__).parents[2]
TRAINING = """
import os, signal, sys
from pathlib import Path
import matplotlib.figure, torch
from async_trainer import Callback, OptimizationConfig, Split, SupervisedModel, Trainer
from async_trainer.callbacks import (
    Checkpoint, Figures, Histograms, MetricsLog, MLflow, ModelCheckpoint, SampleImages, TensorBoard, TrainingCheckpoint,
    WandB,
)

folder, uri, end = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])


class Kill(Callback):
    steers = True

    def on_batch_end(self, *, state):
        if state.called == "train" and state.optim_step == end:
            os.kill(os.getpid(), signal.SIGKILL)


def draw(metrics):
    figure = matplotlib.figure.Figure()
    figure.subplots().plot(list(metrics.last.values()))
    return figure


def images(output):
    one = next(iter(output.values()))
    return one.reshape(-1, 1, 1, 1)


if __name__ == "__main__":
    torch.manual_seed(0)
    x = torch.randn(64, 4)
    data = torch.utils.data.TensorDataset(x, x.sum(1, keepdim=True))
    model = SupervisedModel(torch.nn.Linear(4, 1), torch.nn.MSELoss(), lambda params: torch.optim.SGD(params, lr=0.01))
    quiet = {"x_disable_stats": True, "x_disable_meta": True, "disable_git": True, "save_code": False}
    callbacks = [
        TrainingCheckpoint(every_n_steps=5, wait=True), MetricsLog(), MetricsLog(folder / "rows.parquet"),
        TensorBoard(), Histograms(every=2), SampleImages(images), Figures(draw),
        ModelCheckpoint("loss"), Checkpoint(every_n_steps=6),
        MLflow(uri, params={"seed": 3}), WandB("p", mode="offline", run_id="abc", settings=quiet), Kill(),
    ]
    split = Split(0, data, data, batch_size=8)
    if end == 13:
        optimization = OptimizationConfig(num_epochs=3)
        Trainer(folder / "maps", model, optimization=optimization, callbacks=callbacks).train(split)
    else:
        Trainer.from_maps(folder / "maps", model=model, callbacks=callbacks).resume(0, split)
"""


def events(folder: Path, kind: str, tag: str) -> list[int]:
    """The steps of a tag, as TensorBoard shows them."""
    read: Any = EventAccumulator(str(folder), size_guidance={kind: 0}).Reload()
    return [one.step for one in getattr(read, kind.capitalize())(tag)]


@pytest.mark.slow
def test_all_that_a_killed_training_writes_is_there_once_when_it_is_resumed(tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text(TRAINING)
    (tmp_path / "server").mkdir()
    environment = {name: value for name, value in os.environ.items() if name != "WANDB_SERVICE"}
    environment |= {"PYTHONPATH": str(ROOT), "WANDB_ERROR_REPORTING": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
    environment |= {f"WANDB_{name}_DIR": str(tmp_path / "wandb") for name in ("CONFIG", "CACHE", "DATA")}
    with mlflow_server(tmp_path / "server") as uri:
        for end, status in ((13, -signal.SIGKILL), (0, 0)):
            command = [sys.executable, str(tmp_path / "train.py"), str(tmp_path), uri, str(end)]
            ran = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)
            assert ran.returncode == status, ran.stdout + ran.stderr
            assert "are lost" not in ran.stderr
        client = MlflowClient(uri)
        (run,) = client.search_runs(["0"])
        history = {key: client.get_metric_history(run.info.run_id, key) for key in run.data.metrics}
    assert (run.info.status, run.data.params["seed"]) == ("FINISHED", "3")
    steps, ends = [*range(1, 25)], [8, 16, 24]
    assert [one.step for one in history["loss"]] == steps
    assert [one.step for one in history["validation/loss"]] == ends
    logs = tmp_path / "maps" / "split-0" / "logs"
    rows = [json.loads(line) for line in (logs / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] + 1 for row in rows if "batch" in row] == steps
    assert [row["step"] for row in rows if "batch" not in row] == ends
    table = pd.read_parquet(tmp_path / "rows.parquet")
    assert [step + 1 for step in table[table.name == "loss"].step] == steps
    assert [row["step"] for row in read_rows(logs, "abc") if "loss" in row] == steps
    assert events(logs / "tensorboard", "scalars", "loss") == steps
    assert events(logs / "tensorboard-histograms", "histograms", "weights/network.weight") == steps[1::2]
    assert events(logs / "tensorboard-samples", "images", "samples") == ends
    assert len([*logs.glob("figures/*.png")]) == 3
    checkpoints = {path.name for path in (tmp_path / "maps" / "split-0" / "checkpoints").iterdir()}
    assert checkpoints >= {f"step-{step}.pt" for step in (6, 12, 18, 24)}
