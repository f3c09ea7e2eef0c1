"""A place that can't be written to when a training starts, and can be later: what comes then is there."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from async_trainer import CallbacksHandler, TrainerState, background
from async_trainer.callbacks.metrics_log import MetricsLog
from async_trainer.callbacks.tensorboard import TensorBoard
from async_trainer.callbacks.wandb import WandB
from async_trainer.callbacks.wandb_files import read_rows
from async_trainer.errors import LaneError
from async_trainer.files import AppendedFile, appended
from async_trainer.routes import EventInfo
from tests.callbacks.test_tensorboard import points

Kind = tuple[Callable[[Path], Any], Callable[[Path], list[float]]]
"""Makes a callback that writes into a folder, and reads the losses that are there."""


def csv_losses(folder: Path) -> list[float]:
    rows = pd.read_csv(folder / "m.csv")
    return [float(value) for value in rows["value"][rows["name"] == "loss"]]


def parquet_losses(folder: Path) -> list[float]:
    rows = pd.read_parquet(folder / "m.parquet")
    return [float(value) for value in rows["value"][rows["name"] == "loss"]]


def wandb(folder: Path) -> WandB:
    pytest.importorskip("wandb")
    quiet = {"x_disable_stats": True, "x_disable_meta": True, "disable_git": True, "save_code": False}
    return WandB("tests", mode="offline", folder=folder, run_id="late", config={"seed": 3}, settings=quiet)


KINDS: dict[str, Kind] = {
    "jsonl": (
        lambda folder: MetricsLog(folder / "m.jsonl"),
        lambda folder: pd.read_json(folder / "m.jsonl", lines=True)["loss"].tolist(),
    ),
    "csv": (lambda folder: MetricsLog(folder / "m.csv"), csv_losses),
    "parquet": (lambda folder: MetricsLog(folder / "m.parquet"), parquet_losses),
    "TensorBoard": (TensorBoard, lambda folder: [value for _, value in points(folder)["loss"]]),
    "WandB": (wandb, lambda folder: [row["loss"] for row in read_rows(folder, "late")]),
}


def log_batches(handler: CallbacksHandler, numbers: range) -> None:
    for number in numbers:
        state = TrainerState(current_epoch=1, current_train_batch=number, optim_step=number - 1)
        handler.call_event("on_backward_step_start", state=state, loss=torch.tensor(float(number)))


@pytest.mark.parametrize("kind", KINDS)
def test_what_can_t_be_opened_at_the_start_is_with_the_next_event_that_comes(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    if kind == "parquet":
        pytest.importorskip("pyarrow")
    if kind == "TensorBoard":
        pytest.importorskip("tensorboard")
    for name in ("CONFIG", "CACHE", "DATA"):
        monkeypatch.setenv(f"WANDB_{name}_DIR", str(tmp_path))
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    make, losses = KINDS[kind]
    folder = tmp_path / "mount" / "logs"
    folder.parent.write_text("not mounted yet")
    handler = CallbacksHandler([background(make(folder))])
    handler.call_event("on_train_start", state=TrainerState())
    log_batches(handler, range(1, 3))
    assert handler.flush().failed == 3
    folder.parent.unlink()
    log_batches(handler, range(3, 6))
    handler.call_event("on_train_end", state=TrainerState())
    with pytest.raises(LaneError, match=r"NotADirectoryError|FileExistsError"):  # which is told at the end
        handler.close()
    assert losses(folder) == [3.0, 4.0, 5.0]


def test_a_resume_without_a_state_keeps_all_lines_also_when_it_opens_late(tmp_path: Path) -> None:
    folder = tmp_path / "mount"
    folder.write_text("not mounted yet")
    file = AppendedFile(folder / "a")
    with pytest.raises(OSError, match="mount"):
        file.resume()
    with pytest.raises(OSError, match="mount"):  # rather than a state that would cut off all
        file.state_dict()
    folder.unlink()
    folder.mkdir()
    (folder / "a").write_text("earlier\n")
    for attempt in (1, 2):
        file.begin(EventInfo("on_batch_end", 1, attempt))
        file.write("one\n")
    assert file.state_dict() == {"size": 12}
    file.close()
    assert (folder / "a").read_text() == "earlier\none\n"


def test_a_file_that_another_run_has_is_not_replaced_when_that_run_has_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(appended, "_lock", _refuse)
    (tmp_path / "m.jsonl").write_text('{"of": "the other"}\n')
    handler = CallbacksHandler([background(MetricsLog(tmp_path / "m.jsonl"))])
    handler.call_event("on_train_start", state=TrainerState())
    handler.flush()
    monkeypatch.undo()
    log_batches(handler, range(1, 3))
    with pytest.raises(LaneError, match="another process writes to it"):
        handler.close()
    assert (tmp_path / "m.jsonl").read_text() == '{"of": "the other"}\n'


def _refuse(descriptor: int, path: Path) -> None:
    raise BlockingIOError(11, "another process writes to it", str(path))
