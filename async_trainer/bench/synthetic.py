"""A training to profile callbacks in: the Trainer's loop, on a model of any width, with random data."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import nn

from async_trainer.handler import CallbacksHandler
from async_trainer.testing.play import Rehearsal
from async_trainer.train.model import SupervisedModel


def synthetic(epochs: int, batches: int, width: int) -> Callable[[CallbacksHandler], None]:
    """A loop that fires every event of a training at a handler, with the arguments that a Trainer gives.

    Args:
        epochs: each with a validation of two batches.
        batches: of four samples, per epoch.
        width: of the model's hidden layers: it has ``width * (width + 6)`` weights, and as many values of momentum.
    """

    def train(handler: CallbacksHandler) -> None:
        with TemporaryDirectory() as folder:
            rehearsal = Rehearsal(Path(folder), epochs, batches)
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)
                layers = (nn.Linear(3, width), nn.BatchNorm1d(width), nn.ReLU(), nn.Linear(width, width), nn.ReLU())
                network = nn.Sequential(*layers, nn.Linear(width, 2))
            make_optimizer = partial(torch.optim.SGD, lr=1e-3, momentum=0.9)
            rehearsal.model = SupervisedModel(network, nn.MSELoss(), make_optimizer)
            rehearsal.optimizers = rehearsal.model.build_optimizers()
            rehearsal.train(handler)

    return train
