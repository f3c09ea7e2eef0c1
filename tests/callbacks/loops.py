"""Small loops for the tests of callbacks: given validations, and a training that can be interrupted."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import nn

from async_trainer import CallbacksHandler, TrainerState


class Metrics:
    """As hooks see a MetricsHandler: names, and the values of the last evaluation."""

    def __init__(self, *names: str) -> None:
        self.names = names
        self.last: dict[str, float] = {}


def validate(handler: CallbacksHandler, values: Sequence[float], *, start: str = "on_train_start") -> TrainerState:
    """A training that is nothing but validations of ``loss``, an epoch each, until it is asked to stop."""
    state, metrics = TrainerState(called="train"), Metrics("loss", "accuracy")
    handler.call_event(start, state=state, metrics=metrics)
    for value in values:
        if state.should_stop:
            break
        state.current_epoch += 1
        metrics.last = {"loss": value, "accuracy": -value}
        handler.call_event("on_validation_end", state=state, metrics=metrics)
    handler.call_event("on_train_end", state=state)
    return state


class Training:
    """Epochs of two optimization steps each, of a weight or of several, whose learning rates are written down.

    Args:
        handler: gets its events.
        optimizers: by name; default: SGD on a weight.
        losses: of the validation after each epoch.
        skipped: the optimization steps (from 1) that are skipped, as AMP does when gradients overflow.
    """

    def __init__(
        self,
        handler: CallbacksHandler,
        optimizers: dict[str, torch.optim.Optimizer] | None = None,
        *,
        losses: Callable[[int], float] = float,
        skipped: Sequence[int] = (),
    ) -> None:
        self.handler = handler
        self.optimizers = optimizers or {"sgd": sgd()}
        self.losses = losses
        self.skipped = skipped
        self.state = TrainerState(called="train", num_epochs=9, num_train_batches=2)
        self.metrics = Metrics("loss")
        self.rates: list[tuple[float, ...]] = []
        """At each optimization step: the rate of each optimizer."""

    def start(self, event: str = "on_train_start") -> None:
        self.handler.call_event(event, state=self.state, optimizers=self.optimizers, metrics=self.metrics)

    def run(self, epochs: int) -> None:
        for _ in range(epochs):
            self.state.current_epoch += 1
            for _ in range(2):
                self.step()
            self.end_epoch()

    def step(self) -> None:
        self.state.optim_step += 1
        self.rates.append(tuple(round(one.param_groups[0]["lr"], 9) for one in self.optimizers.values()))
        for optimizer in self.optimizers.values():
            if self.state.optim_step not in self.skipped:
                optimizer.step()
        self.handler.call_event("on_optimization_step_end", state=self.state, optimizers=self.optimizers)

    def end_epoch(self) -> None:
        self.metrics.last = {"loss": self.losses(self.state.current_epoch)}
        self.handler.call_event("on_validation_end", state=self.state, metrics=self.metrics)
        self.handler.call_event("on_epoch_end", state=self.state)

    def end(self) -> None:
        self.handler.call_event("on_train_end", state=self.state)


def sgd(lr: float = 1.0) -> torch.optim.SGD:
    """SGD on a weight of its own, with a gradient."""
    weight = nn.Parameter(torch.zeros(1))
    weight.grad = torch.ones(1)
    return torch.optim.SGD([weight], lr=lr, momentum=0.9)
