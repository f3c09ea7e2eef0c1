"""Trainer.resume: what it refuses, and how a run that is asked to end leaves."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from async_trainer import Callback, OptimizationConfig, Split, SupervisedModel, Trainer, background
from async_trainer.errors import ConfigurationError
from async_trainer.resume.bundles import Bundles
from tests.resume.kit import Noisy, Stops, StopsAt, computational, difference, outcome, split, trainer


class Notes(Callback):
    def __init__(self) -> None:
        self.seen: list[Any] = []

    def on_train_start(self, *, state: Any) -> None:
        self.seen.append(("on_train_start", state.current_epoch))

    def on_resume(self, *, state: Any) -> None:
        self.seen.append(("on_resume", state.current_epoch))

    def on_epoch_start(self, *, state: Any) -> None:
        self.seen.append(("on_epoch_start", state.current_epoch))

    def on_epoch_end(self, *, state: Any) -> None:
        self.seen.append(("on_epoch_end", state.current_epoch))

    def on_train_end(self, *, state: Any) -> None:
        self.seen.append(("on_train_end", state.current_epoch))

    def load_state_dict(self, state_dict: Any) -> None:
        self.seen.append(("load_state_dict", dict(state_dict)))


def files(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_a_resumed_run_fires_on_resume_then_loads_then_goes_on(tmp_path: Path) -> None:
    with pytest.raises(Stops):
        trainer(tmp_path / "maps", Notes(), StopsAt(2, 0), wait=True).train(split(), computational())
    notes = Notes()
    trainer(tmp_path / "maps", notes, resume=True).resume(0, split())
    assert notes.seen == [
        ("on_resume", 0), ("load_state_dict", {}), ("on_epoch_start", 3), ("on_epoch_end", 3), ("on_train_end", 3),
    ]  # fmt: skip


def test_what_can_not_be_resumed_is_refused_and_nothing_touched(tmp_path: Path) -> None:
    folder = tmp_path / "maps"
    with pytest.raises(Stops):
        trainer(folder, StopsAt(2, 0)).train(split(), computational())
    before = files(folder)

    def refused(match: str, *, index: int = 0, data: Split | None = None, model: Noisy | None = None) -> None:
        made = Trainer.from_maps(folder, model=model or Noisy())
        with pytest.raises(ConfigurationError, match=match):
            made.resume(index, data)
        assert files(folder) == before

    refused("no training was started on it", index=3, data=split())
    refused(r"can't be read back; give resume\(0, Split")
    other = split()
    other.index = 1
    refused("this is split 1, and split 0 is to be resumed", data=other)
    data = torch.utils.data.TensorDataset(torch.ones(12, 4), torch.ones(12, 1))
    refused("the training was of other data", data=Split(0, data, batch_size=4))
    model = Noisy()
    model.network[0] = torch.nn.Linear(4, 9)
    refused("model: the one that was trained is another: network.0.weight is of shape", data=split(), model=model)


def test_a_finished_run_and_one_without_checkpoints_are_refused(tmp_path: Path) -> None:
    made = trainer(tmp_path / "maps")
    made.train(split(), computational())
    with pytest.raises(ConfigurationError, match="finished: there is nothing to resume"):
        made.resume(0)
    with pytest.raises(Stops):
        Trainer(tmp_path / "others", Noisy(), callbacks=[StopsAt(1, 2)]).train(split(), computational())
    with pytest.raises(ConfigurationError, match=r"no resume state was taken: attach a TrainingCheckpoint\(\)"):
        Trainer.from_maps(tmp_path / "others", model=Noisy()).resume(0, split())


def test_a_run_that_is_alive_is_waited_for_then_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from async_trainer.train import lock

    monkeypatch.setattr(lock, "LOCK_PATIENCE", 0.2)
    with pytest.raises(Stops):
        trainer(tmp_path / "maps", StopsAt(2, 0)).train(split(), computational())
    made = trainer(tmp_path / "maps", resume=True)
    with (
        lock.locked(made.maps.split(0), made.callbacks),
        pytest.raises(ConfigurationError, match="split 0 is in use"),
    ):
        made.resume(0, split())
    assert made.resume(0, split()).shape[0] == 3
    assert not (made.maps.split(0).path / "run.lock").exists()


def test_after_999999_bundles_the_next_is_the_newest(tmp_path: Path) -> None:
    for number in (999_998, 999_999, 1_000_000):
        (tmp_path / f"bundle-{number:06}").mkdir()
    bundles = Bundles(tmp_path)
    assert [path.name for path in bundles.paths] == ["bundle-1000000", "bundle-999999", "bundle-999998"]
    assert bundles.draft().name == "bundle-1000001"


def test_overwrite_deletes_nothing_of_a_training_that_another_process_runs(tmp_path: Path) -> None:
    from async_trainer.train import lock

    with pytest.raises(Stops):
        trainer(tmp_path / "maps", StopsAt(2, 0)).train(split(), computational())
    made = trainer(tmp_path / "maps", resume=True)
    there = sorted(path.name for path in made.maps.path.rglob("*"))
    with (
        lock.locked(made.maps.split(0), made.callbacks),
        pytest.raises(ConfigurationError, match=r"overwrite=True: split 0 of .* is in use"),
    ):
        Trainer(tmp_path / "maps", Noisy(), overwrite=True)
    assert sorted(path.name for path in made.maps.path.rglob("*")) == there
    assert not Trainer(tmp_path / "maps", Noisy(), overwrite=True).maps.splits


def test_another_optimizer_is_refused_by_what_it_has(tmp_path: Path) -> None:
    with pytest.raises(Stops):
        trainer(tmp_path / "maps", StopsAt(2, 0)).train(split(), computational())
    other = SupervisedModel(Noisy().network, torch.nn.MSELoss(), lambda params: torch.optim.RMSprop(params, lr=0.01))
    made = Trainer.from_maps(tmp_path / "maps", model=other)
    with pytest.raises(ConfigurationError, match=r"another optimizer than RMSprop: its groups have .*no alpha"):
        made.resume(0, split())
    assert trainer(tmp_path / "maps", resume=True).resume(0, split()).shape[0] == 3  # it goes on with the right one


SIGTERM = """
import os, signal, sys
from pathlib import Path
from async_trainer import Callback
from tests.resume.kit import computational, split, trainer

class Terminated(Callback):
    def on_batch_end(self, *, state):
        if state.stage == "training" and (state.current_epoch, state.current_train_batch) == (2, 5):
            os.kill(os.getpid(), signal.SIGTERM)

trainer(Path(sys.argv[1]), Terminated(), steps=None).train(split(), computational())
"""


def test_at_sigterm_a_checkpoint_is_taken_where_the_training_was(tmp_path: Path) -> None:
    whole = trainer(tmp_path / "whole", steps=None)
    expected = outcome(whole, whole.train(split(), computational()))
    done = subprocess.run([sys.executable, "-c", SIGTERM, str(tmp_path / "maps")], capture_output=True, timeout=120)
    assert done.returncode == 128 + signal.SIGTERM, done.stderr
    made = trainer(tmp_path / "maps", resume=True, steps=None)
    state = Bundles(made.maps.split(0).resume).read().objects["extra"]["state"]
    assert (state["current_epoch"], state["current_train_batch"]) == (2, 5)  # in the middle of an accumulation
    assert difference(expected, outcome(made, made.resume(0, split()))) == []


def test_workers_and_a_generator_of_the_loader_go_on_too(tmp_path: Path) -> None:
    def data() -> Split:
        made = split(workers=2)
        loader = torch.utils.data.DataLoader(
            made.train_loader.dataset, batch_size=4, shuffle=True, num_workers=2,  # type: ignore[attr-defined]
            generator=torch.Generator().manual_seed(9),
        )  # fmt: skip
        return Split(0, loader, made.val_loader)

    whole = trainer(tmp_path / "whole", steps=None)
    expected = outcome(whole, whole.train(data(), computational()))
    with pytest.raises(Stops):
        trainer(tmp_path / "maps", StopsAt(2, 5)).train(data(), computational())
    made = trainer(tmp_path / "maps", resume=True)
    assert difference(expected, outcome(made, made.resume(0, data()))) == []


class AtTheEnd(Callback):
    def __init__(self) -> None:
        self.count = 0

    def on_test_end(self) -> None:
        self.count += 1


def test_a_process_lane_goes_on_after_the_lock_of_a_run_has_gone(tmp_path: Path) -> None:
    at_the_end = AtTheEnd()
    callbacks = [background(at_the_end, placement="process")]
    made = Trainer(tmp_path / "maps", Noisy(), optimization=OptimizationConfig(num_epochs=1), callbacks=callbacks)
    made.train(split(), computational())
    made.test("split-0_final", "again", dataloader=split().val_loader)
    assert at_the_end.count == 1
    made.callbacks.close()


def test_a_run_that_had_been_asked_to_stop_does_not_train_on(tmp_path: Path) -> None:
    class Asks(Callback):
        def on_epoch_end(self, *, state: Any) -> None:
            state.should_stop = state.should_stop or state.current_epoch == 2

    whole = trainer(tmp_path / "whole", Asks())
    expected = outcome(whole, whole.train(split(), computational()))
    interrupted = trainer(tmp_path / "maps", Asks())
    interrupted._save_final = lambda run: (_ for _ in ()).throw(Stops)  # type: ignore[method-assign]
    with pytest.raises(Stops):
        interrupted.train(split(), computational())
    made = trainer(tmp_path / "maps", Asks(), resume=True)
    assert difference(expected, outcome(made, made.resume(0, split()))) == []


def test_a_validation_loader_with_a_generator_of_its_own_goes_on_too(tmp_path: Path) -> None:
    def data() -> Split:
        made = split()
        val = torch.utils.data.DataLoader(
            made.val_loader.dataset, batch_size=8, shuffle=True,  # type: ignore[union-attr]
            generator=torch.Generator().manual_seed(4),
        )  # fmt: skip
        return Split(0, made.train_loader, val)

    whole = trainer(tmp_path / "whole")
    expected = outcome(whole, whole.train(data(), computational()))
    with pytest.raises(Stops):
        trainer(tmp_path / "maps", StopsAt(2, 5)).train(data(), computational())
    made = trainer(tmp_path / "maps", resume=True)
    assert difference(expected, outcome(made, made.resume(0, data()))) == []
