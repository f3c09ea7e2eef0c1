"""Signals that come in a validation: the training goes on from its start, as if nothing had happened."""

from __future__ import annotations

import copy
import random
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from async_trainer import Callback, background
from async_trainer.callbacks import EarlyStopping, LRScheduler, MetricsLog, TrainingCheckpoint
from async_trainer.errors import ConfigurationError
from async_trainer.files import AppendedFile
from async_trainer.files.weights import save_weights
from async_trainer.resume.bundles import Bundles
from tests.resume import kit
from tests.resume.kit import Noisy, OptimizationConfig, Split, Trainer, computational, difference, outcome

EPOCHS, BATCHES = 3, 4  # of a validation


class Draws(Noisy):
    """Its evaluations draw from all generators, too."""

    def evaluation_step(self, batch: Any) -> dict[str, Any]:
        noise = random.random() + float(np.random.rand()) + float(torch.rand(()))
        output = dict(super().evaluation_step(batch))
        return {**output, "preds": output["preds"] + noise}


class Hardest:
    """A metric that counts by itself, and keeps more than a number of it."""

    def __init__(self) -> None:
        self.seen: list[float] = []

    def reset(self) -> None:
        self.seen = []

    def update(self, preds: Any, target: Any) -> None:
        self.seen += (preds - target).abs().flatten().tolist()

    def compute(self) -> float:
        return sorted(self.seen)[-3]


class Rows(Callback):
    """A row for each batch of trainings and validations, some of them late."""

    def __init__(self, path: Path) -> None:
        self.file = AppendedFile(path)
        self.count = 0

    def on_train_start(self) -> None:
        self.file.replace()

    def on_resume(self) -> None:
        self.file.resume()

    def on_validation_start(self, *, state: Any, event: Any) -> None:
        self.file.begin(event)
        self.file.write(f"validation {state.current_epoch}\n")

    def on_batch_end(self, *, state: Any, event: Any) -> None:
        self.count += 1
        if self.count % 3 == 0:
            time.sleep(0.002)  # nothing is waited for: the lane is behind
        self.file.begin(event)
        self.file.write(
            f"{self.count} {event.seq} {state.stage} {state.current_train_batch} {state.current_val_batch}\n"
        )

    def state_dict(self) -> dict[str, Any]:
        return {"file": self.file.state_dict(), "count": self.count}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        self.file.load_state_dict(state_dict["file"])
        self.count = state_dict["count"]


class Signals(Callback):
    """At a batch of a validation; 0: when it starts, -1: when it ends."""

    def __init__(self, epoch: int, batch: int, number: int = signal.SIGTERM) -> None:
        self.at, self.number = (epoch, batch), number

    def on_batch_end(self, *, state: Any) -> None:
        if state.stage == "evaluation":
            self.look(state, state.current_val_batch)

    def on_validation_start(self, *, state: Any) -> None:
        self.look(state, 0)

    def on_validation_end(self, *, state: Any) -> None:
        self.look(state, -1)

    def look(self, state: Any, batch: int) -> None:
        if (state.current_epoch, batch) == self.at:
            signal.raise_signal(self.number)


def data() -> Split:
    made = kit.split()
    val = DataLoader(made.val_loader.dataset, batch_size=8, shuffle=True)  # type: ignore[union-attr]
    return Split(0, made.train_loader, val)


def trainer(
    folder: Path, *callbacks: Any, resume: bool = False, placement: str = "thread", interval: int = 1
) -> Trainer:
    folder.mkdir(exist_ok=True)
    given = [
        TrainingCheckpoint(wait=True, at_signal=signal.SIGUSR1),
        EarlyStopping("loss", patience=50),
        LRScheduler(lambda optimizer: torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)),
        MetricsLog(),
        Rows(folder / "inline.txt"),
        background(Rows(folder / "thread.txt"), every={"on_batch_end": 2}),
        background(Rows(folder / "other.txt"), placement=placement, name="other"),
        *callbacks,
    ]
    optimization = OptimizationConfig(num_epochs=EPOCHS, accumulation_steps=3, evaluation_interval=interval)
    if resume:
        return Trainer.from_maps(folder / "maps", model=Draws(), metrics={"hardest": Hardest()}, callbacks=given)
    return Trainer(folder / "maps", Draws(), {"hardest": Hardest()}, optimization, given)


def everything(made: Trainer, frame: Any) -> dict[str, Any]:
    """What must be the same, with the state at the end of the last epoch: optimizers, callbacks, generators."""
    folder = made.maps.path.parent
    bundle = Bundles(made.maps.split(0).resume).read()
    rows = {name: (folder / f"{name}.txt").read_bytes() for name in ("inline", "thread", "other")}
    kept = {name: state for name, state in bundle.callbacks.items() if state}
    callbacks = {name: {**state, "path": None} for name, state in kept.items()}  # that is each one's own
    return {**outcome(made, frame), **rows, "objects": bundle.objects, "callbacks": callbacks}


def place(folder: Path) -> tuple[bool, int]:
    """Whether the newest checkpoint is of the start of a validation; and of which epoch."""
    extra = Bundles(folder / "maps" / "split-0" / "resume").read().objects["extra"]
    return extra["loop"]["validates"], extra["state"]["current_epoch"]


def resumed(folder: Path, **options: Any) -> dict[str, Any]:
    made = trainer(folder, resume=True, **options)
    return everything(made, made.resume(0, data()))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Any]:
    made = trainer(tmp_path_factory.mktemp("whole"))
    return everything(made, made.train(data(), computational()))


PLACES = [
    pytest.param(
        epoch,
        batch,
        marks=()
        if (epoch, batch) in ((2, -1), (2, 0), (2, 3))
        else [pytest.mark.slow] + [pytest.mark.soak] * (epoch != 2),
    )
    for epoch in range(1, EPOCHS + 1)
    for batch in range(-1, BATCHES + 1)
]


@pytest.mark.parametrize(("epoch", "batch"), PLACES)
def test_sigterm_in_a_validation_leaves_a_checkpoint_from_which_all_comes_out_the_same(
    tmp_path: Path, whole: Mapping[str, Any], epoch: int, batch: int
) -> None:
    made = trainer(tmp_path, Signals(epoch, batch))
    with pytest.raises(SystemExit, match="143"):
        made.train(data(), computational())
    # After the batch at which it came, the first one if it came before; at the end of the epoch if it came at the end.
    assert (made.state.current_epoch, made.state.current_val_batch) == (epoch, max(batch, 1) if batch >= 0 else BATCHES)
    assert place(tmp_path) == (batch >= 0, epoch)
    assert difference(whole, resumed(tmp_path)) == []


def test_one_that_is_resumed_in_a_validation_may_be_interrupted_there_again(
    tmp_path: Path, whole: Mapping[str, Any]
) -> None:
    with pytest.raises(SystemExit):
        trainer(tmp_path, Signals(2, 3)).train(data(), computational())
    for batch in (2, 0):
        with pytest.raises(SystemExit):
            trainer(tmp_path, Signals(2, batch), resume=True).resume(0, data())
        assert place(tmp_path) == (True, 2)
    assert difference(whole, resumed(tmp_path)) == []


def test_what_a_hook_has_set_in_the_state_within_the_validation_is_as_it_was_before(tmp_path: Path) -> None:
    class Toggles(Callback):
        def on_batch_end(self, *, state: Any) -> None:
            if (state.stage, state.current_epoch, state.current_val_batch) == ("evaluation", 2, 1):
                state.should_stop = not state.should_stop

    made = trainer(tmp_path / "whole", Toggles())
    expected = everything(made, made.train(data(), computational()))
    assert made.state.current_epoch == 2
    with pytest.raises(SystemExit):
        trainer(tmp_path / "killed", Toggles(), Signals(2, 3)).train(data(), computational())
    made = trainer(tmp_path / "killed", Toggles(), resume=True)
    assert difference(expected, everything(made, made.resume(0, data()))) == []


SCRIPT = """
import os, signal, sys
from pathlib import Path
from tests.resume.test_validation import *

class Kills(Signals):
    def look(self, state, batch):
        if (state.current_epoch, batch) == self.at:
            os.killpg(os.getpid(), signal.SIGTERM)  # the whole process group, as schedulers do

interval = int(sys.argv[4])
made = trainer(Path(sys.argv[1]), Kills(int(sys.argv[2]), int(sys.argv[3])), placement="process", interval=interval)
made.train(data(), computational())
"""


@pytest.mark.slow
@pytest.mark.parametrize("interval", [1, 2])
def test_a_real_process_with_processes_of_its_own_ends_with_143_and_goes_on_as_exactly(
    tmp_path: Path, interval: int
) -> None:
    made = trainer(tmp_path / "whole", placement="process", interval=interval)
    expected = everything(made, made.train(data(), computational()))
    epoch, batch = (2 if interval == 2 else random.randint(1, EPOCHS)), random.randint(0, BATCHES)
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tmp_path / "killed"), str(epoch), str(batch), str(interval)],
        capture_output=True, text=True, timeout=120, start_new_session=True,
    )  # fmt: skip
    assert done.returncode == 128 + signal.SIGTERM, done.stderr
    assert place(tmp_path / "killed") == (True, epoch), (epoch, batch)
    found = resumed(tmp_path / "killed", placement="process", interval=interval)
    assert difference(expected, found) == [], (epoch, batch)


class Counts(Callback):
    """Ends the training after a batch of a validation, as a kill would."""

    def __init__(self, epoch: int, batch: int) -> None:
        self.at = (epoch, batch)

    def on_batch_end(self, *, state: Any) -> None:
        if state.stage == "evaluation" and (state.current_epoch, state.current_val_batch) == self.at:
            raise kit.Stops


def test_at_a_warning_in_a_validation_one_is_taken_at_once_and_the_validation_goes_on(
    tmp_path: Path, whole: Mapping[str, Any]
) -> None:
    with pytest.raises(kit.Stops):
        trainer(tmp_path, Signals(2, 1, signal.SIGUSR1), Counts(2, 4)).train(data(), computational())
    assert place(tmp_path) == (True, 2)
    assert difference(whole, resumed(tmp_path)) == []


class Averages(Callback):
    """Validates with other weights; the trainer's own come back at the end."""

    def on_validation_start(self, *, model: Any) -> None:
        self.kept = {name: one.clone() for name, one in model.state_dict().items()}
        for parameter in model.parameters():
            parameter.data.mul_(0.5)

    def on_validation_end(self, *, model: Any) -> None:
        model.load_state_dict(self.kept)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_where_a_hook_has_put_other_weights_in_none_is_taken_and_that_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, number: int
) -> None:
    made = trainer(tmp_path / "whole", Averages())
    expected = everything(made, made.train(data(), computational()))
    ends = [Counts(2, 4)] if number == signal.SIGUSR1 else []
    with pytest.raises((SystemExit, kit.Stops)):
        trainer(tmp_path / "killed", Averages(), Signals(2, 2, number), *ends).train(data(), computational())
    told = [
        record.message for record in caplog.records if "no checkpoint is taken in this validation" in record.message
    ]
    assert len(told) == 1
    assert "network.0.weight" in told[0]
    assert place(tmp_path / "killed") == (False, 1)  # that of the epoch before
    made = trainer(tmp_path / "killed", Averages(), resume=True)
    assert difference(expected, everything(made, made.resume(0, data()))) == []


def test_a_warning_that_could_not_be_heeded_in_a_validation_is_at_the_end_of_its_epoch(tmp_path: Path) -> None:
    asks = TrainingCheckpoint(every_n_epochs=None, at_signal=signal.SIGUSR1, wait=True)
    callbacks = [Averages(), Signals(2, 2, signal.SIGUSR1), asks]
    optimization = OptimizationConfig(num_epochs=EPOCHS)
    made = Trainer(tmp_path / "maps", Draws(), optimization=optimization, callbacks=callbacks)
    made.train(data(), computational())
    assert place(tmp_path) == (False, 2)


def test_a_callback_whose_state_can_not_be_had_costs_the_checkpoint_of_a_validation_not_the_training(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    class Refuses(Callback):
        now = False

        def on_validation_end(self) -> None:
            self.now = True

        def state_dict(self) -> dict[str, Any]:
            if self.now:
                raise RuntimeError("not now")
            return {}

        def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
            pass

    callbacks = [Refuses(), Signals(2, 2), TrainingCheckpoint(every_n_epochs=9)]
    made = Trainer(tmp_path / "maps", Draws(), optimization=OptimizationConfig(num_epochs=3), callbacks=callbacks)
    with pytest.raises(SystemExit, match="143"):
        made.train(data(), computational())
    assert "in this validation no checkpoint can be taken" in caplog.text
    assert Bundles(made.maps.split(0).resume).paths == []


class Validates(Callback):
    """Validates in a hook, with a trainer of its own; SIGTERM comes there."""

    def on_epoch_end(self, *, state: Any, model: Any, maps: Any) -> None:
        if state.current_epoch != 2:
            return
        save_weights(maps.split(0).checkpoints / "own.pt", model.state_dict(), {})
        signals = Signals(0, 2)
        own = Trainer.from_maps(
            maps.path, model=copy.deepcopy(model), metrics={"hardest": Hardest()}, callbacks=[signals]
        )
        assert own.validate(0, None, data().val_loader, "own").shape[0] == 1


def test_sigterm_in_a_validation_that_a_hook_does_is_heeded_where_the_training_may_be_interrupted(
    tmp_path: Path, whole: Mapping[str, Any]
) -> None:
    made = trainer(tmp_path, Validates())
    with pytest.raises(SystemExit, match="143"):
        made.train(data(), computational())
    assert place(tmp_path) == (False, 2)
    assert difference(whole, resumed(tmp_path)) == []


def test_a_hook_of_a_training_can_not_use_its_trainer_until_the_end(tmp_path: Path) -> None:
    class Uses(Callback):
        def on_validation_end(self) -> None:
            for run in (lambda: made.validate(0), lambda: made.resume(0), lambda: made.train(data())):
                with pytest.raises(ConfigurationError, match="a training is under way"):
                    run()
            with pytest.raises(ConfigurationError, match="a training is under way"):
                made.test("split-0_final", "again", dataloader=data().val_loader)

        def on_train_end(self) -> None:
            frames.append(made.validate(0, model_checkpoint="final"))

    frames: list[Any] = []
    made = trainer(tmp_path, Uses())
    made.train(data(), computational())
    assert len(frames) == 1
