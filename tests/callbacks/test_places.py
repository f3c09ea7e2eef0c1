"""Two callbacks that would write the same files: refused before the training, as each would spoil the other's."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from async_trainer import Callback, CallbacksHandler, TrainerState, background, inline
from async_trainer.callbacks import (
    Checkpoint,
    Figures,
    Histograms,
    MetricsLog,
    ModelCheckpoint,
    SampleImages,
    TensorBoard,
)
from async_trainer.errors import ConfigurationError
from async_trainer.train.maps import Maps


def draw(metrics: Any) -> None:
    pass


def images(output: Any) -> Any:
    return output


SPOILT: dict[str, Callable[[Path], list[Any]]] = {
    "rhythms": lambda folder: [Checkpoint(every_n_steps=1, keep=2), Checkpoint(every_n_steps=10)],
    "objects": lambda folder: [
        Checkpoint(every_n_epochs=1, folder=folder),
        Checkpoint("optimizers", every_n_epochs=1, folder=folder / "x" / ".."),
    ],
    "figures": lambda folder: [Figures(draw), Figures(draw, every=2)],
    "event files": lambda folder: [TensorBoard(folder), Histograms(folder)],
    "samples": lambda folder: [SampleImages(images), SampleImages(images)],
    "logs": lambda folder: [MetricsLog(), inline(MetricsLog())],
    "metrics": lambda folder: [ModelCheckpoint("f1/x"), ModelCheckpoint("f1 x")],
}
APART: dict[str, Callable[[Path], list[Any]]] = {
    "checkpoints": lambda folder: [
        Checkpoint(every_n_steps=1),
        Checkpoint(every_n_epochs=1),
        Checkpoint(every_n_steps=1, format="safetensors"),
        Checkpoint(every_n_steps=1, folder=folder),
    ],
    "metrics": lambda folder: [ModelCheckpoint("f1", last=True), ModelCheckpoint("loss", last=True)],
    "figures": lambda folder: [Figures(draw), Figures(draw, folder=folder)],
    "logs": lambda folder: [MetricsLog(), MetricsLog(folder / "log.csv"), TensorBoard(), Histograms()],
}


def begin(callbacks: list[Any], folder: Path, event: str) -> None:
    handler = CallbacksHandler(callbacks)
    try:
        handler.call_event(event, state=TrainerState(split_idx=0), maps=Maps(folder))
    finally:
        handler.close()


@pytest.mark.parametrize("event", ["on_train_start", "on_resume"])
@pytest.mark.parametrize("which", SPOILT)
def test_two_that_would_write_the_same_files_are_refused(which: str, event: str, tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    with pytest.raises(ConfigurationError, match=r"(\w+) and (\w+) would both write .*give one of them another place"):
        begin(SPOILT[which](tmp_path), tmp_path, event)


@pytest.mark.parametrize("which", APART)
def test_those_that_write_others_are_not(which: str, tmp_path: Path) -> None:
    begin(APART[which](tmp_path / "other"), tmp_path, "on_train_start")


def test_a_callback_of_ones_own_may_say_so_too_and_one_may_be_of_several_trainings(tmp_path: Path) -> None:
    class Log(Callback):
        def check_training(self, **arguments: Any) -> str:
            return str(tmp_path / "log.txt")

        def on_train_end(self) -> None:
            pass

    one = background(Log(), name="one")
    handler = CallbacksHandler([one])
    for _ in range(2):
        handler.call_event("on_train_start")
        handler.call_event("on_train_end")
    handler.add_callbacks([background(Log(), name="other")])
    with pytest.raises(ConfigurationError, match=r"^one and other would both write .*log.txt"):
        handler.call_event("on_train_start")
    handler.close()
