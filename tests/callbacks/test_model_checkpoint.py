"""ModelCheckpoint: which weights are written when, the same however it runs, and whole whatever happens."""

from __future__ import annotations

import copy
import math
import pickle
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import cloudpickle
import pytest
import torch
from torch import nn

from async_trainer import CallbacksHandler, TrainerState, background, inline
from async_trainer.callback import as_record
from async_trainer.callbacks.model_checkpoint import ModelCheckpoint
from async_trainer.errors import ConfigurationError, LaneError
from async_trainer.files.weights import load_weights
from async_trainer.snapshot import capture
from async_trainer.testing import Rehearsal, check_callback, hold
from async_trainer.train.maps import Maps

NAN = math.nan
METRIC = "mse" if not hasattr(Rehearsal(Path()).metrics, "names") else "loss"
WAYS = pytest.mark.parametrize("wrap", [inline, background])


class Net(nn.Module):
    """Counts its captures: a class of its own, for a registered capture."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(3))


class Run:
    """Epochs whose weights are the epoch's number."""

    def __init__(self, callback: Any, *, maps: Maps | None = None, split_idx: int = 0) -> None:
        self.net = Net()
        self.state = TrainerState(called="train", split_idx=split_idx)
        self.handler = callback if isinstance(callback, CallbacksHandler) else CallbacksHandler([callback])
        self.always = {"model": self.net, "maps": maps, "state": self.state}

    def start(self) -> Run:
        self.state.current_epoch = 0
        self.handler.call_event("on_train_start", **self.always, optimizers={}, metrics={})
        return self

    def epoch(self, value: float | None = None) -> Run:
        self.state.current_epoch += 1
        self.state.optim_step += 10
        with torch.no_grad():
            self.net.weight.fill_(self.state.current_epoch)
        if value is not None:
            self.handler.call_event("on_validation_end", **self.always, metrics={"loss": value})
        self.handler.call_event("on_epoch_end", **self.always)
        return self

    def epochs(self, values: Sequence[float]) -> Run:
        for value in values:
            self.epoch(value)
        return self


def saved(folder: Path) -> dict[str, int]:
    """The files there, and of which epoch their weights are."""
    found = {}
    for path in sorted(folder.iterdir()):
        weights, about = load_weights(path)
        assert weights["weight"].eq(about["epoch"]).all()
        found[path.name] = about["epoch"]
    return found


@pytest.fixture
def captures() -> Any:
    """How often the model of a Run was captured for the background."""
    counts: list[int] = []

    @capture.register(Net)
    def _(live: Net) -> Net:
        counts.append(1)
        return copy.deepcopy(live)

    yield counts
    del capture._registered[Net]
    capture.kinds.clear()
    capture.references.clear()


# ------------------------------------------------------------------------------------------------- what is written


@WAYS
@pytest.mark.parametrize(
    ("mode", "values", "best"),
    [
        ("min", [3.0, 2.0, 2.0, 5.0], 2),
        ("max", [3.0, 2.0, 7.0, 7.0], 3),
        ("min", [NAN, 4.0, NAN, 5.0], 2),
        ("max", [NAN, -4.0, NAN], 2),
        ("min", [math.inf, 4.0, -math.inf, 0.0], 3),
    ],
)
def test_the_best_is_the_first_of_the_best_values_and_never_nan(
    tmp_path: Path, wrap: Callable[[Any], Any], mode: str, values: list[float], best: int
) -> None:
    run = Run(wrap(ModelCheckpoint("loss", mode=mode, folder=tmp_path))).start().epochs(values)
    run.handler.close()
    assert saved(tmp_path) == {"best-loss.pt": best}


@WAYS
def test_nan_alone_writes_nothing(tmp_path: Path, wrap: Callable[[Any], Any]) -> None:
    Run(wrap(ModelCheckpoint("loss", folder=tmp_path))).start().epochs([NAN, NAN]).handler.close()
    assert list(tmp_path.iterdir()) == []


@WAYS
@pytest.mark.parametrize("kind", ["pt", "safetensors"])
def test_chosen_epochs_and_the_last_go_to_the_checkpoints_of_the_split(
    tmp_path: Path, wrap: Callable[[Any], Any], kind: str
) -> None:
    if kind == "safetensors":
        pytest.importorskip("safetensors")
    maps = Maps(tmp_path)
    callback = ModelCheckpoint("loss", epochs=[1, 3], last=True, format=kind)
    Run(wrap(callback), maps=maps, split_idx=4).start().epochs([2.0, 1.0, 3.0, 4.0]).handler.close()
    names = {"best-loss": 2, "epoch-1": 1, "epoch-3": 3, "last": 4}
    assert saved(maps.split(4).checkpoints) == {f"{name}.{kind}": epoch for name, epoch in names.items()}
    assert maps.split(4).checkpoint_names == tuple(names)


def test_a_file_tells_its_epoch_its_step_and_the_metrics_of_that_epoch(tmp_path: Path) -> None:
    Run(inline(ModelCheckpoint("loss", folder=tmp_path))).start().epochs([2.0, 1.0])
    assert load_weights(tmp_path / "best-loss.pt")[1] == {"epoch": 2, "optim_step": 20, "metrics": {"loss": 1.0}}


def test_a_metric_with_a_slash_makes_a_file_and_no_folder(tmp_path: Path) -> None:
    callback = ModelCheckpoint("val/loss", folder=tmp_path)
    state = TrainerState(current_epoch=1)
    callback.on_validation_end(model=nn.Linear(1, 1), state=state, metrics={"val/loss": 1.0})
    assert [path.name for path in tmp_path.iterdir()] == ["best-val-loss.pt"]


def test_a_wrapped_model_is_written_without_its_wrapper(tmp_path: Path) -> None:
    callback = ModelCheckpoint(last=True, folder=tmp_path)
    callback.on_epoch_end(model=nn.DataParallel(nn.Linear(1, 1)), state=TrainerState(current_epoch=1))
    assert set(load_weights(tmp_path / "last.pt")[0]) == {"weight", "bias"}


def test_each_training_has_a_best_of_its_own(tmp_path: Path) -> None:
    maps = Maps(tmp_path)
    handler = CallbacksHandler([ModelCheckpoint("loss")])
    Run(handler, maps=maps, split_idx=0).start().epochs([1.0, 2.0])
    handler.flush()
    with hold(handler):  # the lane has not begun the second training when its epochs are judged
        Run(handler, maps=maps, split_idx=1).start().epochs([7.0, 5.0, 6.0])
    handler.close()
    assert saved(maps.split(0).checkpoints) == {"best-loss.pt": 1}
    assert saved(maps.split(1).checkpoints) == {"best-loss.pt": 2}


# --------------------------------------------------------------------------------------------- what it costs the loop


def test_the_model_is_captured_only_where_it_is_written(tmp_path: Path, captures: list[int]) -> None:
    run = Run(ModelCheckpoint("loss", epochs=[5], folder=tmp_path)).start()
    for value in (3.0, 4.0, NAN, 2.0, 2.5, 6.0):
        run.epoch(value)
        run.handler.flush()
    run.handler.close()
    assert len(captures) == 3  # epochs 1 and 4 are the best, 5 was asked for
    assert saved(tmp_path) == {"best-loss.pt": 4, "epoch-5.pt": 5}


def test_a_lane_that_lags_behind_writes_what_one_that_does_not_would(tmp_path: Path) -> None:
    run = Run(ModelCheckpoint("loss", folder=tmp_path)).start()
    with hold(run.handler):
        run.epochs([3.0, 1.0, 2.0])
    run.handler.flush()
    assert saved(tmp_path) == {"best-loss.pt": 2}
    assert run.handler.state_dict() == {"model_checkpoint": {"best": 1.0, "best_epoch": 2}}
    run.handler.close()


def test_it_runs_in_the_background_unless_told_otherwise_and_a_copy_judges_for_itself() -> None:
    callback = ModelCheckpoint("loss", folder="a")
    assert as_record(callback).options.on_error == "raise_at_end"  # type: ignore[union-attr]
    for made in (
        cloudpickle.loads(cloudpickle.dumps(as_record(callback))),
        pickle.loads(pickle.dumps(as_record(callback))),
        copy.deepcopy(as_record(callback)),
    ):
        assert made.callback is not callback
        assert made.options.when["on_epoch_end"].__self__ is made.callback


# ------------------------------------------------------------------------------------------------ failures and resume


def test_a_best_that_could_not_be_written_does_not_count(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    run = Run(ModelCheckpoint("loss", folder=folder)).start().epoch(3.0)
    run.handler.flush()
    (folder / "best-loss.pt").rename(tmp_path / "aside")
    (folder / "best-loss.pt").mkdir()  # nothing can be moved over it
    run.epoch(1.0)
    run.handler.flush()
    (folder / "best-loss.pt").rmdir()
    run.epoch(2.0)
    with pytest.raises(LaneError, match="model_checkpoint") as raised:
        run.handler.close()
    assert raised.value.report is not None
    assert raised.value.report.failed == 1
    assert saved(folder) == {"best-loss.pt": 3}


@WAYS
def test_a_resumed_training_keeps_the_best_of_before(tmp_path: Path, wrap: Callable[[Any], Any]) -> None:
    first = Run(wrap(ModelCheckpoint("loss", folder=tmp_path))).start().epochs([3.0, 2.0])
    states = first.handler.state_dict()
    first.handler.close()
    assert torch.save(states, tmp_path.parent / "states.pt") is None
    second = Run(wrap(ModelCheckpoint("loss", folder=tmp_path)))
    second.handler.call_event("on_resume", **second.always, optimizers={}, metrics={})
    second.handler.load_state_dict(torch.load(tmp_path.parent / "states.pt", weights_only=True))
    second.state.current_epoch = 2
    second.epoch(2.5)
    second.handler.flush()
    assert saved(tmp_path) == {"best-loss.pt": 2}
    second.epoch(1.0).handler.close()
    assert saved(tmp_path) == {"best-loss.pt": 4}


def test_it_does_the_same_however_it_runs() -> None:
    def read(directory: Path) -> dict[str, Any]:
        return {path.name: load_weights(path) for path in directory.iterdir()}

    check_callback(lambda directory: ModelCheckpoint(METRIC, epochs=[1, 3], last=True, folder=directory), read=read)


def test_a_training_without_the_metric_or_a_folder_says_so_at_its_start() -> None:
    callback = ModelCheckpoint("los", folder="anywhere")
    with pytest.raises(ConfigurationError, match=r"metric='los'.*did you mean 'loss'.*there are: loss"):
        callback.check_training(state=TrainerState(), metrics={"loss": 1.0})
    with pytest.raises(ConfigurationError, match=r"ModelCheckpoint writes to the folder of the split.*give a folder="):
        ModelCheckpoint("loss").check_training(state=TrainerState(split_idx=0))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "would write nothing"),
        ({"metric": 3}, "metric must be a metric's name"),
        ({"metric": "loss", "mode": "mim"}, "did you mean 'min'"),
        ({"metric": "loss", "mode": []}, "mode must be 'min' or 'max'"),
        ({"last": True, "format": "pth"}, "format must be 'pt' or 'safetensors', not 'pth'; did you mean 'pt'"),
        ({"epochs": 5}, r"epochs must be whole numbers, 1 or more, such as \[10, 20\]"),
        ({"epochs": [0]}, "1 or more"),
        ({"epochs": [1.5]}, "1 or more"),
        ({"epochs": []}, "there is none"),
        ({"last": 1}, "last must be True or False"),
        ({"last": True, "folder": 7}, "folder must be a path"),
        ({"metrc": "loss"}, "did you mean 'metric'"),
    ],
)
def test_arguments_that_can_not_work_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        ModelCheckpoint(**arguments)


# --------------------------------------------------------------------------------------------------------- kill -9

CHILD = """
import sys, torch
from torch import nn
from async_trainer import CallbacksHandler, TrainerState
from async_trainer.callbacks.model_checkpoint import ModelCheckpoint

folder, format = sys.argv[1:]
model, state = nn.Linear(300, 300), TrainerState(called="train")
handler = CallbacksHandler([ModelCheckpoint("loss", epochs=range(1, 10**6), last=True, folder=folder, format=format)])
handler.call_event("on_train_start", model=model, state=state)
while True:
    state.current_epoch += 1
    with torch.no_grad():
        model.weight.fill_(state.current_epoch)
    handler.call_event("on_validation_end", model=model, state=state, metrics={"loss": -state.current_epoch})
    handler.call_event("on_epoch_end", model=model, state=state)
    if state.current_epoch == 3:
        handler.flush()  # so that there is something to load, however slow the machine is
        print("writing", flush=True)
"""


def test_after_kill_9_everything_under_a_final_name_loads(tmp_path: Path) -> None:
    kinds = ["pt", "safetensors"] if find_spec("safetensors") else ["pt", "pt"]
    children = [
        subprocess.Popen([sys.executable, "-c", CHILD, str(tmp_path / str(n)), kind], stdout=subprocess.PIPE)
        for n, kind in enumerate(kinds)
    ]
    moments = random.Random()
    for child in children:
        assert child.stdout is not None
        assert child.stdout.readline() == b"writing\n"
        time.sleep(moments.uniform(0, 0.15))  # nothing is waited for: it is the moment of the kill
        child.send_signal(signal.SIGKILL)
        child.wait()
        child.stdout.close()
    for folder in tmp_path.iterdir():
        final = [path for path in folder.iterdir() if not path.name.startswith(".")]
        assert len(final) >= 3
        for path in final:
            weights, about = load_weights(path)
            assert weights["weight"].eq(about["epoch"]).all()
