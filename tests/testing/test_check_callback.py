"""check_callback passes what does the same however it runs, and names what does not."""

from __future__ import annotations

import json
import os
import re
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from async_trainer import Callback, TrainerState, capture
from async_trainer.demo.callbacks import Checkpoints, Figures, MetricsLog
from async_trainer.demo.store import Store
from async_trainer.errors import LaneError
from async_trainer.snapshot import Kind
from async_trainer.testing import check_callback


class Log(Callback):
    """A row per loss and per epoch; counts its bytes, and takes back what came after its state."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.offset = 0

    def open(self) -> None:
        self.file = self.path.open("ab")
        self.file.truncate(self.offset)

    def on_train_start(self) -> None:
        self.open()

    def on_resume(self) -> None:
        self.open()

    def write(self, *row: Any) -> None:
        self.offset += self.file.write(json.dumps(row).encode() + b"\n")
        self.file.flush()

    def on_backward_step_start(self, *, state: TrainerState, loss: Any) -> None:
        self.write(state.optim_step, loss.item())

    def on_optimization_step_end(self, *, model: Any, optimizers: Any) -> None:
        momentum = optimizers["optimizer"].state_dict()["state"][0]["momentum_buffer"]
        self.write(float(model.network[0].weight.detach().sum()), float(momentum.sum()))

    def on_metrics_computation_end(self, *, detailed_metrics_df: Any) -> None:
        self.write(*detailed_metrics_df["loss"])

    def on_validation_end(self, *, metrics: Mapping[str, float]) -> None:
        self.write(metrics.get_metric_value("loss"))

    def state_dict(self) -> dict[str, Any]:
        return {"offset": self.offset}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        self.offset = state_dict["offset"]


class AsyncLog(Log):
    async def on_backward_step_start(self, *, state: TrainerState, loss: Any) -> None:  # type: ignore[override]
        self.write(state.optim_step, loss.item())


@pytest.mark.parametrize("make", [Log, pytest.param(AsyncLog, marks=pytest.mark.slow)])
def test_a_callback_that_counts_its_bytes_passes(make: type[Log]) -> None:
    check_callback(lambda directory: make(directory / "log"))


@pytest.mark.slow
def test_the_metrics_log_of_the_demo_passes() -> None:
    check_callback(lambda directory: MetricsLog(directory / "metrics.jsonl"))


@pytest.mark.slow
def test_a_callback_that_takes_nothing_back_is_found() -> None:
    class Doubles(Log):
        def open(self) -> None:
            self.file = self.path.open("ab")

    with pytest.raises(AssertionError, match=r"file 'log' differs between inline and inline, resumed"):
        check_callback(lambda directory: Doubles(directory / "log"))
    check_callback(lambda directory: Doubles(directory / "log"), exactly_once=False)


def test_a_callback_that_depends_on_where_it_runs_is_found() -> None:
    class Keeps(Log):
        def on_train_start(self, **kwargs: Any) -> None:
            self.open()

        def on_batch_start(self, *, state: TrainerState) -> None:
            self.live = state  # inline it is the run's own, and goes on; in the background it is as of the event

        def on_batch_end(self) -> None:
            self.write(self.live.optim_step)

    with pytest.raises(AssertionError, match="file 'log' differs between inline and synchronous"):
        check_callback(lambda directory: Keeps(directory / "log"))


def test_a_hook_that_fails_in_the_background_is_raised() -> None:
    class Steers(Log):
        def on_epoch_end(self, *, state: TrainerState) -> None:
            state.should_stop = state.should_stop or False

    with pytest.raises(Exception, match=re.escape("state.should_stop can't be set in the background")):
        check_callback(lambda directory: Steers(directory / "log"))


def test_it_fails_where_hooks_get_live_objects(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(capture, "kinds", {})
    monkeypatch.setattr(capture, "kind", lambda cls: Kind("live", None))
    with pytest.raises((AssertionError, LaneError), match=r"differs between inline and thread|epoch -1, step -1"):
        check_callback(lambda directory: Log(directory / "log"))


@pytest.mark.slow
def test_the_checkpoints_of_the_demo_pass() -> None:
    def read(directory: Path) -> dict[str, Any]:
        return {path.name: torch.load(path, weights_only=True) for path in sorted(directory.glob("*.pt"))}

    check_callback(lambda directory: Checkpoints(Store(directory, latency=0.0), every=4), read=read)


class RehearsedFigures(Figures):
    """The demo's figures, drawn of what the rehearsal's tiny model gives."""

    def on_metrics_computation_start(self, *, output: Mapping[str, Any], **kwargs: Any) -> None:
        prediction, target = output["preds"], output["target"]
        digits = {
            "images": prediction.sum(1).reshape(-1, 1, 1, 1).expand(-1, 1, 8, 8).clone(),
            "labels": target.argmax(1),
            "logits": torch.nn.functional.pad(prediction, (0, 8), value=-9.0),
        }
        super().on_metrics_computation_start(output=digits)


@pytest.mark.slow
def test_the_figures_of_the_demo_pass() -> None:
    check_callback(RehearsedFigures)


def test_a_callback_that_depends_on_its_process_is_found() -> None:
    mine = os.getpid()

    class Here(Log):
        def on_train_end(self) -> None:
            self.write("mine" if os.getpid() == mine else "another")

    with pytest.raises(AssertionError, match="file 'log' differs between inline and process"):
        check_callback(lambda directory: Here(directory / "log"))


def test_one_that_can_not_be_sent_to_a_process_is_checked_elsewhere_and_a_warning_says_why() -> None:
    class Locks(Log):
        def __init__(self, path: Path) -> None:
            super().__init__(path)
            self.lock = threading.Lock()

    with pytest.warns(UserWarning, match=r"not checked there: Locks.lock can't be sent to a process"):
        check_callback(lambda directory: Locks(directory / "log"))
