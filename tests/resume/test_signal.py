"""A scheduler's warning: a checkpoint is taken, and the training goes on; in a real process, with a process lane."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from async_trainer import Callback, background
from async_trainer.callbacks import MetricsLog, TrainingCheckpoint
from async_trainer.errors import ConfigurationError
from async_trainer.resume.bundles import Bundles
from tests.resume.kit import Noisy, OptimizationConfig, Trainer, computational, difference, outcome, split

SCRIPT = """
import os, signal, sys
from pathlib import Path
from async_trainer import Callback
from tests.resume.kit import computational, split
from tests.resume.test_signal import warned

class Warned(Callback):
    def on_batch_end(self, *, state):
        at = state.stage, state.current_epoch, state.current_train_batch
        if at == ("training", 2, 3):
            os.killpg(os.getpid(), signal.SIGUSR1)  # the whole process group, as schedulers do
        if at == ("training", 2, 5):
            os.kill(os.getpid(), signal.SIGKILL)

made = warned(Path(sys.argv[1]), Warned(), wait=True)
made.train(split(), computational())
"""


def warned(folder: Path, *callbacks: Any, resume: bool = False, wait: bool = False) -> Trainer:
    asks = TrainingCheckpoint(every_n_epochs=None, at_signal=signal.SIGUSR1, wait=wait)
    given = [*callbacks, asks, MetricsLog(), background(MetricsLog(folder / "second.jsonl"), placement="process")]
    if resume:
        return Trainer.from_maps(folder, model=Noisy(), callbacks=given)
    return Trainer(folder, Noisy(), optimization=OptimizationConfig(num_epochs=3), callbacks=given)


@pytest.mark.slow
def test_at_a_warning_one_is_taken_after_the_batch_and_the_training_and_its_processes_go_on(tmp_path: Path) -> None:
    whole = warned(tmp_path / "whole")
    expected = outcome(whole, whole.train(split(), computational()))
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tmp_path / "maps")], capture_output=True, text=True, timeout=120,
        start_new_session=True,
    )  # fmt: skip
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert "died" not in done.stderr
    made = warned(tmp_path / "maps", resume=True)
    state = Bundles(made.maps.split(0).resume).read().objects["extra"]["state"]
    assert (state["current_epoch"], state["current_train_batch"]) == (2, 3)
    assert difference(expected, outcome(made, made.resume(0, split()))) == []
    second = [(tmp_path / name / "second.jsonl").read_bytes() for name in ("whole", "maps")]
    assert second[0] == second[1]


class Signals(Callback):
    """At some batches, the first time."""

    def __init__(self, *batches: int) -> None:
        self.batches = batches
        self.heard: list[Any] = []

    def on_batch_end(self, *, state: Any) -> None:
        self.heard.append(signal.getsignal(signal.SIGUSR1))
        if state.stage == "training" and state.current_epoch == 1 and state.current_train_batch in self.batches:
            signal.raise_signal(signal.SIGUSR1)


def test_the_signal_is_given_back_at_the_end_however_that_comes(tmp_path: Path) -> None:
    before = signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    try:
        signals = Signals(2)
        made = Trainer(
            tmp_path / "maps", Noisy(), optimization=OptimizationConfig(num_epochs=1),
            callbacks=[signals, TrainingCheckpoint(every_n_epochs=None, at_signal=signal.SIGUSR1)],
        )  # fmt: skip
        made.train(split(), computational())
        assert signal.SIG_IGN not in signals.heard
        assert signal.getsignal(signal.SIGUSR1) is signal.SIG_IGN
        assert len(Bundles(made.maps.split(0).resume).paths) == 1
    finally:
        signal.signal(signal.SIGUSR1, before)


def test_one_that_comes_while_another_is_written_is_taken_after_it(tmp_path: Path) -> None:
    class Waits(Callback):
        """Lets the pending one come to its end before batch 5."""

        def on_batch_start(self, *, state: Any, callbacks: Any) -> None:
            if state.stage == "training" and state.current_train_batch == 5:
                gate.append("open")
                callbacks._settle_checkpoint(60)

    class Holds(Callback):
        def on_batch_end(self, *, state: Any) -> None:
            while not gate:
                time.sleep(0.001)

    gate: list[str] = []
    asks = TrainingCheckpoint(every_n_epochs=None, every_n_steps=1, at_signal=signal.SIGUSR1, keep=9)
    made = Trainer(
        tmp_path / "maps", Noisy(), optimization=OptimizationConfig(num_epochs=1, accumulation_steps=2),
        callbacks=[Waits(), Signals(3), asks, background(Holds())],
    )  # fmt: skip
    made.train(split(), computational())
    found = sorted(Bundles(made.maps.split(0).resume).paths)
    extras = [torch.load(path / "objects.pt", weights_only=True)["extra"] for path in found]
    # After batch 2, for its step; at 3 the signal comes, while that one still waits for the lane; so after 5.
    assert [extra["state"]["current_train_batch"] for extra in extras][:2] == [2, 5]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL, 0, "USR1", True])
def test_a_signal_that_can_not_ask_is_refused(number: Any) -> None:
    with pytest.raises(ConfigurationError, match="at_signal must be a signal such as"):
        TrainingCheckpoint(at_signal=number)
