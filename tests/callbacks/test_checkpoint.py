"""Checkpoint: states as they were at their step, whole, and the newest of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from async_trainer import CallbacksHandler, TrainerState, background, inline
from async_trainer.callbacks import checkpoint
from async_trainer.callbacks.checkpoint import Checkpoint
from async_trainer.errors import ConfigurationError, LaneError
from async_trainer.files.weights import load_weights
from async_trainer.testing import check_callback, hold, play
from async_trainer.train.maps import Maps

WAYS = pytest.mark.parametrize("wrap", [inline, background])


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def run(handler: CallbacksHandler, steps: range, model: torch.nn.Module, **arguments: Any) -> None:
    for number in steps:
        state = TrainerState(called="train", current_epoch=1, optim_step=number)
        with torch.no_grad():
            model.weight.fill_(number)  # type: ignore[operator, union-attr]
        handler.call_event("on_optimization_step_end", state=state, model=model, **arguments)


@pytest.mark.slow
def test_it_does_the_same_inline_and_in_the_background_and_after_a_resume() -> None:
    def read(directory: Path) -> dict[str, Any]:
        return {path.name: torch.load(path, weights_only=True) for path in directory.iterdir()}

    check_callback(
        lambda directory: Checkpoint(
            "model", "optimizers", every_n_steps=2, every_n_epochs=2, keep=3, folder=directory
        ),
        read=read,
    )


@WAYS
@pytest.mark.parametrize("form", ["pt", "safetensors"])
def test_the_weights_are_those_of_the_step_and_only_the_newest_are_kept(
    tmp_path: Path, wrap: Callable[[Any], Any], form: str
) -> None:
    model = torch.nn.Linear(2, 1)
    callback = Checkpoint(every_n_steps=2, keep=2, format=form, folder=tmp_path)
    with CallbacksHandler([wrap(callback)]) as handler, hold(handler):
        run(handler, range(1, 10), model)
        with torch.no_grad():
            model.weight.fill_(99)
    assert names(tmp_path) == [f"step-6.{form}", f"step-8.{form}"]
    weights, about = load_weights(tmp_path / f"step-8.{form}")
    assert weights["weight"].tolist() == [[8.0, 8.0]]
    assert about == {"epoch": 1, "optim_step": 8}


def test_by_default_they_go_to_the_checkpoints_of_the_split_and_all_are_kept(tmp_path: Path) -> None:
    callback = Checkpoint("model", "optimizers", every_n_epochs=1, every_n_steps=4)
    play(callback, epochs=2, batches=3, directory=tmp_path).raise_for_errors()
    folder = Maps(tmp_path).split(0).checkpoints
    assert names(folder) == ["after-epoch-1.pt", "after-epoch-2.pt", "step-4.pt"]
    content = torch.load(folder / "after-epoch-2.pt", weights_only=True)
    assert set(content) == {"model", "optimizers", "epoch", "optim_step"}
    (state,) = content["optimizers"].values()
    assert state["param_groups"][0]["lr"] == 0.1
    assert (content["epoch"], content["optim_step"]) == (2, 6)


def test_where_nothing_is_due_nothing_is_captured(tmp_path: Path) -> None:
    with CallbacksHandler([Checkpoint(every_n_steps=5, folder=tmp_path)]) as handler:
        run(handler, range(1, 11), torch.nn.Linear(2, 1))
    assert handler.close().delivered == 2


def test_a_full_disk_costs_no_file_that_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save = checkpoint.save_weights

    def full(path: Path, *arguments: Any) -> None:
        if path.name == "step-3.pt":
            raise OSError(28, "No space left on device")
        save(path, *arguments)

    monkeypatch.setattr(checkpoint, "save_weights", full)
    handler = CallbacksHandler([Checkpoint(every_n_steps=1, keep=1, folder=tmp_path)])
    run(handler, range(1, 4), torch.nn.Linear(2, 1))
    with pytest.raises(LaneError, match="No space left"):
        handler.close()
    assert names(tmp_path) == ["step-2.pt"]


def test_what_the_run_does_not_bring_is_named(tmp_path: Path) -> None:
    handler = CallbacksHandler([inline(Checkpoint("grad_scaler", every_n_steps=1, folder=tmp_path))])
    with pytest.raises(ValueError, match="brings no grad_scaler"):
        run(handler, range(1, 2), torch.nn.Linear(2, 1))


@pytest.mark.parametrize(
    ("objects", "arguments", "message"),
    [
        ((), {}, "would write nothing"),
        (("modle",), {"every_n_steps": 1}, "did you mean 'model'"),
        ((), {"every_n_steps": 0}, "every_n_steps must be"),
        ((), {"every_n_epochs": 1, "keep": 0}, "keep must be"),
        ((), {"every_n_steps": 1, "format": "bin"}, "format must be"),
        (("model", "optimizers"), {"every_n_steps": 1, "format": "safetensors"}, "the model alone"),
    ],
)
def test_a_bad_argument_is_refused_by_name(objects: Any, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        Checkpoint(*objects, **arguments)
