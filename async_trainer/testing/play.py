"""The documented loop, for real, with a tiny model: what a callback sees in a training of a second."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import nn
from torch.utils.data import TensorDataset

from async_trainer.events import Event
from async_trainer.handler import CallbacksHandler
from async_trainer.runtime.stats import Report
from async_trainer.train import loop
from async_trainer.train.config import ComputationalConfig, OptimizationConfig
from async_trainer.train.maps import Maps
from async_trainer.train.metrics import MetricsHandler
from async_trainer.train.model import SupervisedModel
from async_trainer.train.run import TrainingRun
from async_trainer.train.split import Split
from async_trainer.train.state import TrainerState

BATCH_SIZE = 4
VALIDATION_BATCHES = 2

Fire = Callable[..., None]
"""Called as ``fire(event, **arguments)``; by default the handler's ``call_event``."""


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
    """The Trainer's loop on a tiny model (linear, BatchNorm, dropout, linear; SGD with momentum), to be interrupted.

    Deterministic, and without a trace in the global random generators. The calling thread runs it.
    """

    def __init__(self, directory: Path, epochs: int = 2, batches: int = 3) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            network = nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.1), nn.Linear(8, 2))
            self.split = Split(0, _samples(batches), _samples(VALIDATION_BATCHES), batch_size=BATCH_SIZE, shuffle=False)
            self._rng = torch.get_rng_state()
        self.model = SupervisedModel(network, nn.MSELoss(), partial(torch.optim.SGD, lr=0.1, momentum=0.9))
        self.optimizers = self.model.build_optimizers()
        self.optimization = OptimizationConfig(num_epochs=epochs)
        self.computational = ComputationalConfig(device="cpu")
        self.metrics = MetricsHandler()
        self.metrics.add_losses(self.model.get_loss_functions())
        self.state = TrainerState(num_epochs=epochs, split_idx=0)
        self.maps = Maps(directory)

    def train(self, handler: CallbacksHandler, *, until: int | None = None, fire: Fire | None = None) -> None:
        """Train from where it is to the end of epoch ``until`` (None: of the last).

        Args:
            handler: gets the events: ``on_train_start`` at first, ``on_resume`` when it goes on.
            until: the epoch to stop after, as an interruption would: without ``on_train_end``.
            fire: called in place of ``handler.call_event``.
        """
        state = self.state
        state.called = "train"
        call = fire or handler.call_event

        def call_event(event: Event, **arguments: Any) -> None:
            call(event, **arguments)
            if event == Event.EPOCH_END and state.current_epoch == until:
                state.should_stop = True

        run = TrainingRun(
            self.model, self.maps, state, call_event, handler.fence, self.computational, self.metrics,
            optimization=self.optimization, optimizers=self.optimizers,
            train_loader=self.split.train_loader, val_loader=self.split.val_loader,
        )  # fmt: skip
        run.call(
            Event.TRAIN_START if state.current_epoch == 0 else Event.RESUME,
            split=self.split,
            optimizers=run.optimizers,
            grad_scaler=run.grad_scaler,
            optimization=run.optimization,
            metrics=run.metrics,
            callbacks=handler,
            computational=run.computational,
        )
        state.should_stop = False
        with torch.random.fork_rng(devices=[]):
            torch.set_rng_state(self._rng)
            loop.train(run)
            self._rng = torch.get_rng_state()
        if state.current_epoch == state.num_epochs:
            run.call(Event.TRAIN_END)

    def fork(self) -> Rehearsal:
        """A copy that goes on from here, as a training does that is resumed; for a ``fire`` at ``on_epoch_end``."""
        self._rng = torch.get_rng_state()
        return copy.deepcopy(self)


def _samples(batches: int) -> TensorDataset:
    return TensorDataset(torch.randn(BATCH_SIZE * batches, 3), torch.randn(BATCH_SIZE * batches, 2))
