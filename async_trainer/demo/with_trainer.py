"""The demo's training once more, run by a Trainer: what is essential is a Model, the rest are callbacks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim import Optimizer

from async_trainer import (
    Callback,
    CallbacksHandler,
    ComputationalConfig,
    MetricsHandler,
    Model,
    OptimizationConfig,
    Split,
    Trainer,
    TrainerState,
    inline,
)
from async_trainer.demo.data import Digits
from async_trainer.demo.loop import ScalarWriter


class Reader(Model):
    """Reads digits: a net and its loss."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward_step(self, batch: list[Tensor]) -> Tensor:
        """The cross entropy of a batch of images, shape (n, 1, 8, 8), and labels, shape (n,)."""
        images, labels = batch
        return cross_entropy(self.net(images), labels)

    def evaluation_step(self, batch: list[Tensor]) -> dict[str, Tensor]:
        """The images, labels, and logits, shape (n, 10)."""
        images, labels = batch
        return {"images": images, "labels": labels, "logits": self.net(images)}

    def build_optimizers(self) -> dict[str, Optimizer]:
        """Adam, as in the plain loop."""
        return {"adam": torch.optim.Adam(self.net.parameters(), lr=3e-4)}


def accuracy(labels: Tensor, logits: Tensor) -> Tensor:
    """Whether each digit was read correctly, shape (n,)."""
    return logits.argmax(1) == labels


class Scalars(Callback):
    """The scalars of the training, to TensorBoard. Inline: the writer it is given may be a proxy.

    Args:
        writer: a ``SummaryWriter``, or a proxy of one.
    """

    def __init__(self, writer: ScalarWriter) -> None:
        self.writer = writer
        self._loss = 0.0

    def on_backward_step_start(self, *, loss: Tensor, **kwargs: Any) -> None:
        self._loss = loss.item()

    def on_optimization_step_end(self, *, state: TrainerState, **kwargs: Any) -> None:
        self.writer.add_scalar("training/loss", self._loss, state.optim_step)

    def on_validation_end(self, *, state: TrainerState, metrics: MetricsHandler, **kwargs: Any) -> None:
        self.writer.add_scalar("held-out/accuracy", metrics.get_metric_value("accuracy"), state.optim_step)


def train_with_trainer(
    net: nn.Module,
    digits: Digits,
    handler: CallbacksHandler,
    writer: ScalarWriter,
    *,
    epochs: int,
    seed: int,
    maps: Path,
) -> float:
    """Train ``net`` in place, on the CPU.

    Returns:
        The share of the held-out digits that the net reads correctly after the last epoch, 0 to 1.
    """
    handler.add_callbacks([inline(Scalars(writer))])
    trainer = Trainer(
        maps,
        Reader(net),
        metrics={"accuracy": accuracy},
        optimization=OptimizationConfig(num_epochs=epochs),
        callbacks=handler,
        overwrite=True,  # of an earlier demo
    )
    split = Split(0, digits.training_batches(seed=seed), digits.held_out_batches())
    frame = trainer.train(split, ComputationalConfig(device="cpu", seed=seed))
    return float(frame["accuracy"].iloc[-1])
