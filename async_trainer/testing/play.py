"""The documented loop, for real, with a tiny model: what a callback sees in a training of a second."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any

import pandas as pd
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from async_trainer.events import Event
from async_trainer.handler import CallbacksHandler
from async_trainer.runtime.stats import Report
from async_trainer.train.state import TrainerState

BATCH_SIZE = 4
VALIDATION_BATCHES = 2

Fire = Callable[..., None]
"""Called as ``fire(event, **arguments)``; by default the handler's ``call_event``."""


@dataclass(frozen=True)
class Maps:
    """The directory of a rehearsal's run."""

    path: Path


def play(callback: Any, epochs: int = 2, batches: int = 3, *, directory: str | Path | None = None) -> Report:
    """Fire the documented loop at ``callback``: a training of a tiny model, with its validations.

    Args:
        callback: a callback, wrapped or not, a list of them, or a :class:`CallbacksHandler`, which is flushed and left
            open.
        epochs: epochs of training, each with a validation of two batches.
        batches: training batches (of four samples) per epoch.
        directory: what hooks get as ``maps.path``; default: a temporary one, removed at the end.

    Returns:
        What became of the events of background callbacks. Errors of inline ones are raised.
    """
    with TemporaryDirectory() as temporary:
        rehearsal = Rehearsal(Path(directory or temporary), epochs, batches)
        if isinstance(callback, CallbacksHandler):
            rehearsal.train(callback)
            return callback.flush()
        callbacks = callback if isinstance(callback, (list, tuple)) else [callback]
        handler = CallbacksHandler(callbacks)
        with handler:
            rehearsal.train(handler)
        return handler.close()


class Rehearsal:
    """A training of a tiny model (linear, BatchNorm, dropout, linear; SGD with momentum) that can be interrupted.

    Deterministic, and without a trace in the global random generators. The calling thread runs it.
    """

    def __init__(self, directory: Path, epochs: int = 2, batches: int = 3) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.model = nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.1), nn.Linear(8, 2))
            samples = BATCH_SIZE * batches
            data = TensorDataset(torch.randn(samples, 3), torch.randn(samples, 2))
            held_out = TensorDataset(
                torch.randn(BATCH_SIZE * VALIDATION_BATCHES, 3), torch.randn(BATCH_SIZE * VALIDATION_BATCHES, 2)
            )
            self._rng = torch.get_rng_state()
        self.loader: DataLoader[Any] = DataLoader(data, batch_size=BATCH_SIZE)
        self.validation: DataLoader[Any] = DataLoader(held_out, batch_size=BATCH_SIZE)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.1, momentum=0.9)
        self.scaler = torch.amp.GradScaler("cpu", enabled=False)
        self.metrics: dict[str, float] = {}
        self.state = TrainerState(num_epochs=epochs, split_idx=0)
        self.maps = Maps(directory)
        self._always = {"model": self.model, "maps": self.maps, "state": self.state}

    def train(self, handler: CallbacksHandler, *, until: int | None = None, fire: Fire | None = None) -> None:
        """Train from where it is to the end of epoch ``until`` (None: of the last).

        Args:
            handler: gets the events: ``on_train_start`` at first, ``on_resume`` when it goes on.
            until: the epoch to stop after, as an interruption would: without ``on_train_end``.
            fire: called in place of ``handler.call_event``.
        """
        call = fire or handler.call_event
        state = self.state
        state.called = "train"
        start = Event.TRAIN_START if state.current_epoch == 0 else Event.RESUME
        call(
            start,
            **self._always,
            split=SimpleNamespace(index=0, train=self.loader, validation=self.validation),
            optimizers={"optimizer": self.optimizer},
            grad_scaler=self.scaler,
            optimization=SimpleNamespace(num_epochs=state.num_epochs, accumulation_steps=1, evaluation_interval=1),
            metrics=self.metrics,
            callbacks=handler,
            computational=SimpleNamespace(device="cpu", seed=0),
        )
        with torch.random.fork_rng(devices=[]):
            torch.set_rng_state(self._rng)
            while state.current_epoch < (until or state.num_epochs):
                self._epoch(call)
            self._rng = torch.get_rng_state()
        if until is None or until >= state.num_epochs:
            call(Event.TRAIN_END, **self._always)

    def fork(self) -> Rehearsal:
        """A copy that goes on from here, as a training does that is resumed; for a ``fire`` at ``on_epoch_end``."""
        self._rng = torch.get_rng_state()
        return copy.deepcopy(self)

    def _epoch(self, call: Fire) -> None:
        state, always = self.state, self._always
        state.current_epoch += 1
        state.stage, state.current_train_batch, state.num_train_batches = "training", 0, len(self.loader)
        self.model.train()
        call(Event.EPOCH_START, **always)
        for batch in self.loader:
            state.current_train_batch += 1
            call(Event.BATCH_START, **always, batch=batch)
            call(Event.FORWARD_STEP_START, **always, batch=batch)
            loss = nn.functional.mse_loss(self.model(batch[0]), batch[1])
            call(Event.BACKWARD_STEP_START, **always, loss=loss, grad_scaler=self.scaler)
            loss.backward()  # type: ignore[no-untyped-call]
            call(Event.BACKWARD_STEP_END, **always)
            steps = {"optimizers": {"optimizer": self.optimizer}, "grad_scaler": self.scaler}
            call(Event.OPTIMIZATION_STEP_START, **always, **steps)
            self.optimizer.step()
            self.optimizer.zero_grad()
            state.optim_step += 1
            call(Event.OPTIMIZATION_STEP_END, **always, **steps)
            call(Event.BATCH_END, **always)
        self._validate(call)
        call(Event.EPOCH_END, **always)

    def _validate(self, call: Fire) -> None:
        state, always = self.state, self._always
        state.stage, state.current_val_batch, state.num_val_batches = "evaluation", 0, len(self.validation)
        self.model.eval()
        call(Event.VALIDATION_START, **always, dataloader=self.validation, metrics=self.metrics)
        frames = []
        for batch in self.validation:
            state.current_val_batch += 1
            call(Event.BATCH_START, **always, batch=batch)
            call(Event.EVALUATION_STEP_START, **always, batch=batch)
            with torch.no_grad():
                output = {"prediction": self.model(batch[0]), "target": batch[1]}
            call(Event.METRICS_COMPUTATION_START, **always, output=output, metrics=self.metrics)
            errors = (output["prediction"] - output["target"]).square().mean(dim=1)
            frame = pd.DataFrame({"sample": [f"sample-{n}" for n in range(len(errors))], "mse": errors.numpy()})
            call(Event.METRICS_COMPUTATION_END, **always, detailed_metrics_df=frame)
            frames.append(frame)
            call(Event.BATCH_END, **always)
        self.metrics["mse"] = float(pd.concat(frames)["mse"].mean())
        call(Event.VALIDATION_END, **always, metrics=self.metrics)
