"""A disk that is full for a while, or for good: a real one, mounted for the test.

The training goes on; what can't be written is counted, and told at the end, with the file; what comes once there is
room is written, and all that is there can be read.
"""

from __future__ import annotations

import gzip
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from torch import nn

from async_trainer import Callback, CallbacksHandler, ComputationalConfig, Trainer, TrainerState, background
from async_trainer.callbacks import (
    Checkpoint,
    Figures,
    Histograms,
    MetricsLog,
    ModelCheckpoint,
    SampleImages,
    TensorBoard,
    TrainingCheckpoint,
    Upload,
    WandB,
)
from async_trainer.callbacks.wandb_files import read_rows, unwritten
from async_trainer.errors import LaneError
from async_trainer.files.weights import load_weights
from async_trainer.resume.bundles import Bundles
from async_trainer.train.maps import Maps
from async_trainer.train.metrics import read_tsv
from async_trainer.watching import publisher, status
from async_trainer.watching.report.gather import gather
from async_trainer.watching.trace_file import read_trace
from tests.callbacks.servers import serving
from tests.callbacks.small_disk import SmallDisk, small_disk
from tests.callbacks.wandb_backend import KEY, WandBBackend
from tests.train import kit as study
from tests.watch.kit import until

BATCHES = 120
QUIET = {"x_disable_stats": True, "x_disable_meta": True, "disable_git": True, "save_code": False}
BEFORE, AFTER = 1, 4
"""Epochs with room on the disk, around those without."""


@dataclass(frozen=True)
class Kind:
    """A callback that writes into a folder, and reads of which epochs all is there."""

    make: Callable[[Path], Any]
    read: Callable[[Path], set[int]]
    needs: str = "torch"
    keeps: bool = False  # what could not be written, until it can
    notices: Callable[[Path], bool] = lambda folder: True  # whether it knows by now that its disk is full


class Counts:
    """Another callback."""

    def __init__(self) -> None:
        self.batches = 0

    def on_backward_step_start(self) -> None:
        self.batches += 1


class Run:
    """A training that nobody but the callbacks' reports tell of the disk."""

    def __init__(self, callback: Any) -> None:
        self.counts = Counts()
        self.handler = CallbacksHandler([background(callback), background(self.counts)])
        self.model = nn.Linear(40, 60)
        self.state = TrainerState(called="train", num_epochs=4, num_train_batches=BATCHES)
        self.fire("on_train_start")

    def fire(self, event: str, **arguments: Any) -> None:
        self.handler.call_event(event, state=self.state, model=self.model, **arguments)

    def epoch(self) -> None:
        self.state.current_epoch += 1
        for self.state.current_train_batch in range(1, BATCHES + 1):
            self.fire("on_backward_step_start", loss=torch.tensor(float(self.state.optim_step + 1)))
            self.state.optim_step += 1
        for parameter in self.model.parameters():
            parameter.grad = torch.ones_like(parameter)
        self.state.optim_step -= 1
        self.fire("on_optimization_step_start")
        self.state.optim_step += 1
        self.fire("on_validation_start")
        self.fire("on_metrics_computation_start", output=torch.rand(4, 1, 32, 32))
        self.fire("on_validation_end", metrics={"loss": 1.0 / self.state.current_epoch})
        self.fire("on_epoch_end", metrics={"loss": 1.0 / self.state.current_epoch})
        self.handler.flush(60)

    def end(self) -> None:
        self.fire("on_train_end")
        self.handler.close()


def whole(losses: Any) -> set[int]:
    """The epochs of which there is each loss; once, and in order."""
    found = [int(loss) for loss in losses]
    assert found == sorted(set(found))
    return {one for one in range(1, 5) if set(range((one - 1) * BATCHES + 1, one * BATCHES + 1)) <= set(found)}


def jsonl(folder: Path) -> set[int]:
    return whole(pd.read_json(folder / "m.jsonl", lines=True)["loss"].dropna())


def csv(folder: Path) -> set[int]:
    rows = pd.read_csv(folder / "m.csv")
    return whole(rows["value"][rows["name"] == "loss"])


def parquet(folder: Path) -> set[int]:
    rows = pd.read_parquet(folder / "m.parquet")
    return whole(rows["value"][rows["name"] == "loss"])


def events(kind: str, tag: str) -> Callable[[Path], set[int]]:
    """The epochs whose last step has such an event, as TensorBoard's reader finds them."""

    def read(folder: Path) -> set[int]:
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        reader = EventAccumulator(str(folder), size_guidance={"scalars": 0, "histograms": 0, "images": 0})
        reader.Reload()
        found = getattr(reader, kind)(tag)
        return whole(one.value for one in found) if tag == "loss" else {one.step // BATCHES for one in found}

    return read


def figures(folder: Path) -> set[int]:
    from PIL import Image

    for path in folder.glob("*.png"):
        Image.open(path).load()
    assert not [*folder.glob(".*")]
    return {int(path.stem.removeprefix("epoch-")) for path in folder.iterdir()}


def checkpoints(folder: Path) -> set[int]:
    for path in folder.iterdir():
        assert load_weights(path)[0]["weight"].shape == (60, 40)
    return {int(path.stem.rpartition("-")[2]) for path in folder.iterdir()}


def draw(metrics: Any) -> Any:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(2, 2))
    figure.subplots().plot(range(100))
    return figure


def wandb(folder: Path) -> WandB:
    return WandB("tests", mode="offline", folder=folder, run_id="full", settings=QUIET)


def wandb_notices(folder: Path) -> bool:
    return any(unwritten(log) is not None for log in folder.glob("wandb/offline-run-*/logs/debug-internal.log"))


def wandb_losses(folder: Path) -> set[int]:
    return whole(row["loss"] for row in read_rows(folder, "full") if "loss" in row)


KINDS = {
    "jsonl": Kind(lambda folder: MetricsLog(folder / "m.jsonl"), jsonl),
    "csv": Kind(lambda folder: MetricsLog(folder / "m.csv"), csv),
    "parquet": Kind(lambda folder: MetricsLog(folder / "m.parquet"), parquet, "pyarrow", keeps=True),
    "TensorBoard": Kind(TensorBoard, events("Scalars", "loss"), "tensorboard"),
    "Histograms": Kind(
        lambda folder: Histograms(folder, every=BATCHES), events("Histograms", "weights/weight"), "tensorboard"
    ),
    "SampleImages": Kind(
        lambda folder: SampleImages(torch.clone, folder=folder), events("Images", "samples"), "tensorboard"
    ),
    "Figures": Kind(lambda folder: Figures(draw, folder=folder), figures, "matplotlib"),
    "Checkpoint": Kind(lambda folder: Checkpoint(every_n_epochs=1, folder=folder), checkpoints),
    "safetensors": Kind(
        lambda folder: Checkpoint(every_n_epochs=1, folder=folder, format="safetensors"), checkpoints, "safetensors"
    ),
    "WandB": Kind(wandb, wandb_losses, "wandb", notices=wandb_notices),
}
SLOW = [pytest.mark.slow]


@pytest.fixture
def disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[SmallDisk]:
    for name in ("CONFIG", "CACHE", "DATA"):
        monkeypatch.setenv(f"WANDB_{name}_DIR", str(tmp_path))
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    with small_disk(tmp_path / "disk") as mounted:
        yield mounted


@pytest.mark.parametrize("name", [pytest.param(one, marks=SLOW * (one == "WandB")) for one in KINDS])
def test_the_training_goes_on_and_what_comes_once_there_is_room_is_written(name: str, disk: SmallDisk) -> None:
    kind = KINDS[name]
    pytest.importorskip(kind.needs)
    run = Run(kind.make(disk.path / "logs"))
    run.epoch()
    disk.fill()
    run.epoch()
    until(lambda: kind.notices(disk.path / "logs"))  # a process of its own writes
    run.epoch()
    disk.clear()
    failed = run.handler.flush().failed
    assert failed > 0
    run.epoch()
    assert run.handler.flush().failed == failed
    with pytest.raises(LaneError, match=r"(No|no) (space left|room)") as raised:
        run.end()
    assert str(disk.path / "logs") in str(raised.value)
    assert raised.value.report is not None
    assert raised.value.report.failed == failed
    assert run.counts.batches == 4 * BATCHES
    there = kind.read(disk.path / "logs")
    if kind.keeps:
        assert there == {1, 2, 3, 4}
    else:
        if name == "WandB":  # it is behind with its file
            assert there >= {AFTER}
            assert " rows of run full are lost: wandb has not written them to " in str(raised.value)
        else:
            assert there >= {BEFORE, AFTER}
        assert there < {1, 2, 3, 4}


@pytest.mark.parametrize("name", [pytest.param(one, marks=SLOW * (one in ("Figures", "WandB"))) for one in KINDS])
def test_a_disk_that_stays_full_is_told_at_the_end(name: str, disk: SmallDisk) -> None:
    kind = KINDS[name]
    pytest.importorskip(kind.needs)
    run = Run(kind.make(disk.path / "logs"))
    run.epoch()
    disk.fill()
    run.epoch()
    run.epoch()
    with pytest.raises(LaneError, match=r"(No|no) (space left|room)") as raised:
        run.end()
    assert raised.value.report is not None
    assert raised.value.report.failed > 0
    assert run.counts.batches == 3 * BATCHES
    there = kind.read(disk.path / "logs")
    assert there < {1, 2, 3}
    assert BEFORE in there or name == "WandB"


@pytest.mark.slow
def test_an_online_wandb_run_says_at_its_end_that_rows_may_be_lost(
    disk: SmallDisk, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Most often all are on the server; now and then those that were on their way when the disk was full are not."""
    pytest.importorskip("wandb")
    backend = WandBBackend()
    with serving(backend) as server:
        settings = {**QUIET, "base_url": server.url, "api_key": KEY}
        run = Run(WandB("tests", mode="online", folder=disk.path / "logs", run_id="full", settings=settings))
        run.epoch()
        disk.fill()
        for _ in range(3):
            run.epoch()
        with pytest.raises(LaneError, match=r"may be lost.* could not write to .*no space left on device") as raised:
            run.end()
    assert run.counts.batches == 4 * BATCHES
    assert backend.losses("full")
    assert backend.exit_code("full") == 0
    assert KEY not in str(raised.value) + caplog.text


def test_the_count_of_what_failed_is_in_what_is_raised_at_the_end(disk: SmallDisk) -> None:
    run = Run(MetricsLog(disk.path / "m.csv"))
    disk.fill()
    for _ in range(3):
        run.epoch()
    with pytest.raises(LaneError, match=r"No space left on device: '.*m\.csv' \(\d+ times\)"):
        run.end()


@pytest.mark.parametrize("full", ["the files'", "the store's"])
def test_an_upload_waits_for_room_and_has_all_then(full: str, tmp_path: Path, disk: SmallDisk) -> None:
    folder, store = (disk.path / "files", tmp_path / "store")
    if full == "the store's":
        folder, store = tmp_path / "files", disk.path / "store"
    folder.mkdir()
    run = Run(background(Upload(store.as_uri(), folder=folder), retries=0))
    for number in range(3):
        (folder / f"{number}.bin").write_bytes(bytes([number]) * 100_000)
    disk.fill()
    run.epoch()
    (error,) = run.handler.flush().errors
    assert "No space left on device" in str(error)
    assert str(disk.path) in str(error)
    disk.clear()
    run.epoch()
    assert {path.name: path.read_bytes()[0] for path in store.glob("*.bin")} == {f"{n}.bin": n for n in range(3)}
    with pytest.raises(LaneError, match="No space left on device"):
        run.end()
    assert not list(folder.rglob("*.copy"))


def test_what_is_said_of_a_full_disk_holds_no_credentials(disk: SmallDisk, caplog: pytest.LogCaptureFixture) -> None:
    folder = disk.path / "files"
    folder.mkdir()
    (folder / "a.bin").write_bytes(b"a" * 100_000)
    upload = Upload("memory://jane:hunter2@bucket/runs?token=t0p", folder=folder, options={"password": "s3cr3t"})
    run = Run(background(upload, retries=1, backoff=0.01))
    disk.fill()
    run.epoch()
    errors = run.handler.flush().errors
    with pytest.raises(LaneError, match="No space left on device") as raised:
        run.end()
    shown = f"{caplog.text} {errors} {raised.value} {raised.value.report} {run.handler.stats()} {upload!r}"
    assert "No space left on device" in caplog.text
    for secret in ("jane", "hunter2", "t0p", "s3cr3t"):
        assert secret not in shown


def test_a_file_that_grows_is_uploaded_once_there_is_room(tmp_path: Path, disk: SmallDisk) -> None:
    folder, store = disk.path / "files", tmp_path / "store"
    folder.mkdir()
    run = Run(background(Upload(store.as_uri(), folder=folder), retries=0))

    def grow(epoch: int) -> bytes:
        with (folder / "log.txt").open("ab", buffering=0) as file:
            file.write(bytes([epoch]) * 5_000)
        return (folder / "log.txt").read_bytes()

    first = grow(1)
    run.epoch()
    grow(2)
    disk.fill()
    run.epoch()
    assert (store / "log.txt").read_bytes() == first
    assert run.handler.flush().failed == 1
    disk.clear()
    grown = grow(3)
    run.epoch()
    assert (store / "log.txt").read_bytes() == grown
    with pytest.raises(LaneError, match=rf"No space left on device: '{disk.path}/files/"):
        run.end()
    assert [path.name for path in folder.iterdir()] == ["log.txt"]


def test_the_best_model_is_the_best_of_those_that_could_be_written(disk: SmallDisk) -> None:
    run = Run(background(ModelCheckpoint("loss", folder=disk.path / "models")))
    run.epoch()
    disk.fill()
    run.epoch()
    run.epoch()
    weights, about = load_weights(disk.path / "models" / "best-loss.pt")
    assert (about["epoch"], weights["weight"].shape) == (BEFORE, (60, 40))
    disk.clear()
    run.epoch()
    assert load_weights(disk.path / "models" / "best-loss.pt")[1]["epoch"] == AFTER
    with pytest.raises(LaneError, match=r"No space left on device: '.*best-loss\.pt'"):
        run.end()


class Full(Callback):
    """Fills the disk of a training in its second epoch, and empties it in the fourth."""

    steers = True

    def __init__(self, disk: SmallDisk | None, *, comes_back: bool = True) -> None:
        self.disk, self.comes_back = disk, comes_back
        self.losses: list[float] = []

    def on_epoch_start(self, *, state: Any) -> None:
        if self.disk is not None and state.current_epoch == 2:
            self.disk.fill()
        if self.disk is not None and state.current_epoch == 4 and self.comes_back:
            self.disk.clear()

    def on_backward_step_start(self, *, loss: Any) -> None:
        self.losses.append(loss.item())


def a_training(folder: Path, *callbacks: Any) -> Trainer:
    return study.trainer(folder, [TrainingCheckpoint(every_n_steps=1, wait=True), *callbacks], num_epochs=5)


def test_a_training_is_the_same_on_a_disk_that_is_full_for_a_while(
    tmp_path: Path, disk: SmallDisk, caplog: pytest.LogCaptureFixture
) -> None:
    plain, full = Full(None), Full(disk)
    expected = a_training(tmp_path, plain).train(study.split(batches=4), ComputationalConfig(device="cpu", seed=1))
    assert expected is not None
    trainer = a_training(disk.path, full)
    with pytest.raises(LaneError, match=r"No space left on device: '.*/resume/.*\(10 have failed\)"):
        trainer.train(study.split(batches=4), ComputationalConfig(device="cpu", seed=1))
    assert full.losses == plain.losses
    folder = trainer.maps.split(0)
    assert folder.read()["status"] == "ended by LaneError"
    assert read_tsv(folder.metrics).equals(read_tsv(Maps(tmp_path / "maps").split(0).metrics))
    assert load_weights(folder.checkpoint("final"))[1]["epoch"] == 5
    newest = Bundles(folder.resume).read()
    assert newest.objects["extra"]["state"]["current_epoch"] == 5
    assert not [*folder.resume.glob(".*")]
    assert caplog.text.count("the metrics can't be written") == 1
    assert caplog.text.count("the checkpoint failed") == 4  # the 1st, 2nd, 4th, 8th


def test_a_training_whose_disk_stays_full_says_so_and_can_be_resumed(
    disk: SmallDisk, caplog: pytest.LogCaptureFixture
) -> None:
    full = Full(disk, comes_back=False)
    trainer = a_training(disk.path, full)
    with pytest.raises(OSError, match=r"No space left on device: '.*/final\.pt'"):
        trainer.train(study.split(batches=3), ComputationalConfig(device="cpu", seed=1))
    assert len(full.losses) == 15
    assert "that the training was ended by OSError can't be written down: " in caplog.text
    disk.clear()
    again = Full(None)
    resumed = Trainer.from_maps(disk.path / "maps", model=study.net(), callbacks=[again])
    frame = resumed.resume(0, study.split(batches=3))
    assert frame is not None
    assert again.losses == full.losses[3:]
    assert list(frame["epoch"]) == [1, 2, 3, 4, 5]


def test_metrics_that_found_no_room_are_there_at_the_end_if_there_is_room_then(disk: SmallDisk) -> None:
    class UntilTheEnd(Full):
        def on_epoch_end(self, *, state: Any) -> None:
            if state.current_epoch == 5:
                disk.clear()

    trainer = study.trainer(disk.path, [UntilTheEnd(disk, comes_back=False)], num_epochs=5)
    trainer.train(study.split(batches=3), ComputationalConfig(device="cpu", seed=1))
    assert list(read_tsv(trainer.maps.split(0).metrics)["epoch"]) == [1, 2, 3, 4, 5]


def test_ctrl_c_on_a_full_disk_is_ctrl_c(disk: SmallDisk) -> None:
    class Interrupts(Full):
        def on_epoch_end(self, *, state: Any) -> None:
            if state.current_epoch == 2:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        a_training(disk.path, Interrupts(disk)).train(study.split(batches=3))


@pytest.mark.parametrize("comes_back", [True, False])
def test_a_run_that_is_published_there_goes_on_and_can_be_watched_again(
    disk: SmallDisk, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, comes_back: bool
) -> None:
    monkeypatch.setattr(publisher, "EVERY", 0.01)
    counts, folder = Counts(), disk.path / "run"
    with CallbacksHandler([background(counts)], timeline=True) as handler:
        handler.publish(folder)
        batches = fire_until(handler, (folder / status.TIMELINE).exists)
        disk.fill()
        batches += fire_until(handler, lambda: "No space left on device" in caplog.text)
        if comes_back:
            disk.clear()
            batches += fire_until(handler, lambda: status.read(folder / status.NAME).said["steps"]["count"] == 0)
    assert counts.batches == batches
    assert caplog.text.count(f"what the run is doing can't be written to {folder}") == 1
    trace = json.loads(gzip.decompress((folder / status.TIMELINE).read_bytes()))
    assert trace == read_trace(folder / status.TIMELINE)
    assert len(trace["traceEvents"]) > 0
    assert not [*folder.glob(".status.json.*")]
    assert all("steps" in json.loads(line) for line in (folder / status.HISTORY).read_text().splitlines())
    (told,) = gather(folder)
    assert not told.unread
    if comes_back:
        assert status.read(folder / status.NAME).state == "finished"


def test_a_history_has_no_half_lines(
    disk: SmallDisk, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(publisher, "EVERY", 0.01)
    monkeypatch.setattr(status, "write", lambda path, content: None)  # as where there is room just for that
    path = disk.path / "run" / status.HISTORY
    with CallbacksHandler([background(Counts())]) as handler:
        handler.publish(path.parent)
        fire_until(handler, lambda: path.exists() and path.stat().st_size > 0)
        disk.fill()
        fire_until(handler, lambda: "No space left on device" in caplog.text)
        size = path.stat().st_size
        disk.clear()
        fire_until(handler, lambda: path.stat().st_size > size)
    assert all("steps" in json.loads(line) for line in path.read_text().splitlines())


def fire_until(handler: CallbacksHandler, condition: Callable[[], bool]) -> int:
    """Fire batches, a hundred at a time; returns how many."""
    deadline, count = time.monotonic() + 60, 0
    while not condition():
        assert time.monotonic() < deadline
        for _ in range(100):
            handler.call_event("on_backward_step_start", state=TrainerState(optim_step=count))
        handler.flush(60)
        count += 100
    return count
