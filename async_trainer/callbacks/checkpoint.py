"""Checkpoint: the state of the model, or of anything else of the run, each so many steps or epochs."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import nn

from async_trainer.callback import Callback
from async_trainer.callbacks.model_checkpoint import FORMATS, unwrapped
from async_trainer.callbacks.run_folder import given_folder, split_folder
from async_trainer.callbacks.values import check_counts
from async_trainer.errors import ConfigurationError
from async_trainer.files.atomic import atomic_write
from async_trainer.files.loadable import check_loadable
from async_trainer.files.weights import save_weights
from async_trainer.suggest import refuse_unknown_options, suggestion
from async_trainer.train.state import TrainerState

OBJECTS = ("model", "optimizers", "grad_scaler")
"""What of a run has a state that a checkpoint can hold."""


class Checkpoint(Callback):
    """Writes states every so many steps or epochs, each as a whole or not at all, and keeps the newest. (What
    ``CallbacksHandler.checkpoint()`` gives is another class of that name; all that a training needs to go on is what
    :class:`TrainingCheckpoint` writes.)

    ::

        Checkpoint(every_n_steps=500, keep=3)                   # step-500.pt, step-1000.pt, ...
        Checkpoint("model", "optimizers", every_n_epochs=5)     # after-epoch-5.pt, ...

    For the best epoch's weights there is :class:`ModelCheckpoint`; for all that a resume needs,
    :class:`TrainingCheckpoint`. This one is for snapshots on the way: what is captured at the step is what is written,
    however late.

    The weights alone are written as :func:`async_trainer.files.weights.load_weights` reads them, with ``epoch`` and
    ``optim_step``. With other objects (or without the model) a file is a dict: each object's ``state_dict()`` by name,
    and ``epoch`` and ``optim_step``.

    Args:
        *objects: of ``"model"``, ``"optimizers"``, ``"grad_scaler"``. Default: the model.
        every_n_steps: of optimization steps; after the 500th, the 1000th, ...
        every_n_epochs: at the ends of epochs.
        keep: how many files to keep, of those that it has written; None: all.
        format: ``"pt"``; ``"safetensors"`` for the model alone.
        folder: where to; made if need be. Default: the split's folder of checkpoints in the ``maps`` of the run.

    Raises:
        ConfigurationError: an argument that can't work; neither steps nor epochs are asked for. At the start of a
            training: no folder is given, and the run has no maps.
    """

    @refuse_unknown_options
    def __init__(
        self,
        *objects: str,
        every_n_steps: int | None = None,
        every_n_epochs: int | None = None,
        keep: int | None = None,
        format: str = "pt",  # noqa: A002  # it is what it is
        folder: str | os.PathLike[str] | None = None,
    ) -> None:
        for name in objects:
            if name not in OBJECTS:
                hint = suggestion(name, OBJECTS) if isinstance(name, str) else ""
                raise ConfigurationError(f"Checkpoint: there is no {name!r}{hint}; there are: {', '.join(OBJECTS)}")
        counts = {"every_n_steps": every_n_steps, "every_n_epochs": every_n_epochs, "keep": keep}
        check_counts("Checkpoint", **{option: value for option, value in counts.items() if value is not None})
        if every_n_steps is None and every_n_epochs is None:
            raise ConfigurationError("Checkpoint() would write nothing: give every_n_steps= or every_n_epochs=")
        if format not in FORMATS:
            raise ConfigurationError(f"Checkpoint: format must be {' or '.join(map(repr, FORMATS))}, not {format!r}")
        self.objects = tuple(dict.fromkeys(objects or ("model",)))
        if format == "safetensors" and self.objects != ("model",):
            raise ConfigurationError("Checkpoint: format='safetensors' holds tensors by name: the model alone")
        if format == "safetensors" and find_spec("safetensors") is None:
            raise ConfigurationError(
                "Checkpoint: format='safetensors' needs safetensors: pip install 'async_trainer[safetensors]'"
            )
        self.every_n_steps = every_n_steps
        self.every_n_epochs = every_n_epochs
        self.keep = keep
        self.format = format
        self.folder = given_folder(self, folder)
        self._written: list[str] = []  # names of the files that are kept, the oldest first

    def __repr__(self) -> str:
        often = [f"every_n_steps={self.every_n_steps}"] if self.every_n_steps else []
        often += [f"every_n_epochs={self.every_n_epochs}"] if self.every_n_epochs else []
        return f"Checkpoint({', '.join([*map(repr, self.objects), *often])}, keep={self.keep})"

    @property
    def background(self) -> Mapping[str, Any]:  # type: ignore[override]  # each instance has its own ``when``
        """In the background by default, with what is asked for; what can't be written is raised at the end."""
        return {
            "on_error": "raise_at_end",
            "when": {"on_optimization_step_end": self._is_step, "on_epoch_end": self._is_epoch},
            "select": {name: None for name in OBJECTS if name not in self.objects},
        }

    def _is_step(self, *, state: TrainerState, **live: Any) -> bool:
        return self.every_n_steps is not None and state.optim_step % self.every_n_steps == 0

    def _is_epoch(self, *, state: TrainerState, **live: Any) -> bool:
        return self.every_n_epochs is not None and state.current_epoch % self.every_n_epochs == 0

    def check_training(self, **arguments: Any) -> list[Path]:
        """Refuse a training without a place to write to."""
        folder = self._folder(arguments.get("maps"), arguments.get("state"))
        names = {"step": self.every_n_steps, "after-epoch": self.every_n_epochs}
        return [folder / f"{name}-*.{self.format}" for name, often in names.items() if often is not None]

    def on_train_start(self, **kwargs: Any) -> None:
        self._written = []  # those of an earlier training stay

    def on_optimization_step_end(
        self,
        *,
        state: TrainerState,
        maps: Any = None,
        model: Any = None,
        optimizers: Any = None,
        grad_scaler: Any = None,
    ) -> None:
        if self._is_step(state=state):
            given = {"model": model, "optimizers": optimizers, "grad_scaler": grad_scaler}
            self._write(f"step-{state.optim_step}.{self.format}", maps, state, given)

    def on_epoch_end(
        self,
        *,
        state: TrainerState,
        maps: Any = None,
        model: Any = None,
        optimizers: Any = None,
        grad_scaler: Any = None,
    ) -> None:
        if self._is_epoch(state=state):
            given = {"model": model, "optimizers": optimizers, "grad_scaler": grad_scaler}
            self._write(f"after-epoch-{state.current_epoch}.{self.format}", maps, state, given)

    def _write(self, name: str, maps: Any, state: TrainerState, given: Mapping[str, Any]) -> None:
        for wanted in self.objects:
            if given[wanted] is None:
                raise ValueError(f"Checkpoint: the run brings no {wanted}")
        folder = self._folder(maps, state)
        about = {"epoch": state.current_epoch, "optim_step": state.optim_step}
        if self.objects == ("model",):
            save_weights(folder / name, unwrapped(given["model"]).state_dict(), about)
        else:
            content = {wanted: _state(given[wanted]) for wanted in self.objects}
            check_loadable(content, name)  # a file that can't be read back is worse than none
            with atomic_write(folder / name) as file:
                torch.save({**content, **about}, file)
        self._written = [*(one for one in self._written if one != name), name]
        while self.keep is not None and len(self._written) > self.keep:  # the new one is there: an old one may go
            (folder / self._written[0]).unlink(missing_ok=True)
            self._written = self._written[1:]

    def _folder(self, maps: Any, state: TrainerState | None) -> Path:
        if self.folder is not None:
            return self.folder
        folder: Path = split_folder(self, maps, state).checkpoints
        return folder

    def state_dict(self) -> dict[str, Any]:
        """``written``: the names of the files that are kept, the oldest first."""
        return {"written": list(self._written)}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Go on from those files. What was written after them is written again."""
        self._written = [name for name in state_dict["written"] if re.fullmatch(r"[\w.-]+", name)]


def _state(one: Any) -> Any:
    if isinstance(one, nn.Module):
        return unwrapped(one).state_dict()
    if isinstance(one, Mapping):
        return {name: item.state_dict() for name, item in one.items()}
    return one.state_dict()
