"""What one run works with: a training, a validation or a test."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sized
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from async_trainer.events import Event
from async_trainer.resume.rng import put_rng, take_rng
from async_trainer.train.config import ComputationalConfig, OptimizationConfig
from async_trainer.train.maps import Maps
from async_trainer.train.metrics import MetricsHandler
from async_trainer.train.model import Loss, Model, has_gradients
from async_trainer.train.signals import Termination
from async_trainer.train.state import TrainerState

logger = logging.getLogger("async_trainer")


@dataclass
class Run:
    """What the loop works with. The training thread."""

    model: Model
    maps: Maps
    state: TrainerState
    fire: Callable[..., None]
    """``CallbacksHandler.call_event``."""
    fence: Callable[[], None]
    """``CallbacksHandler.fence``."""
    computational: ComputationalConfig
    metrics: MetricsHandler

    def call(self, event: Event, **arguments: Any) -> None:
        """Fire ``event``."""
        self.fire(event, model=self.model, maps=self.maps, state=self.state, **arguments)

    def terminate_if_asked(self) -> None:
        """After a batch: end, if SIGTERM has come. To an evaluation by itself it does what it always does."""


class Resumable(Protocol):
    """Takes the checkpoints of a training."""

    def at_termination(self) -> None:
        """Take one before SIGTERM ends the training."""

    def validation(self) -> AbstractContextManager[None]:
        """What a validation is done in."""


@dataclass
class TrainingRun(Run):
    """A training."""

    termination: Termination = field(default_factory=Termination)
    optimization: OptimizationConfig = field(default_factory=OptimizationConfig)
    optimizers: dict[str, Optimizer] = field(default_factory=dict)
    grad_scaler: torch.amp.GradScaler = field(default_factory=lambda: torch.amp.GradScaler("cpu", enabled=False))
    train_loader: Iterable[Any] = ()
    val_loader: Iterable[Any] | None = None
    accumulated: int = 0
    """Batches whose gradients wait for an optimization step."""
    divisor: int = 1
    """What the loss of the last batch was divided by."""

    in_epoch: bool = False
    """Whether batches of this epoch may still come."""
    epoch_rng: dict[str, Any] = field(default_factory=dict)
    """The random generators when the epoch's batches began."""
    cut_rng: dict[str, Any] = field(default_factory=dict)
    """The same, at the cut that the training is resumed from."""
    skip: int = 0
    """Batches of this epoch that were trained on before the training was resumed."""
    skip_by_state: bool = False
    """The loader knows where it was."""
    trained: bool = False
    """The training is resumed where the batches of this epoch were over, and its validation began."""
    resumable: Resumable | None = None
    """Takes its checkpoints."""
    unsaved: bool = False
    """The last validation is not in ``metrics.tsv``."""

    @property
    def loaders(self) -> list[Any]:
        """Those with generators of their own, perhaps."""
        return [self.train_loader, self.val_loader]

    def batches(self) -> Iterator[Any]:
        """The training batches of this epoch; of a resumed one, those that are left, as they would have come."""
        if not self.skip:
            self.epoch_rng = take_rng(self.loaders)
            yield from self.train_loader
            return
        left, self.skip = self.skip, 0
        put_rng(self.epoch_rng, self.loaders)
        batches = iter(self.train_loader)
        if not self.skip_by_state:
            for _ in zip(range(left), batches, strict=False):
                pass
        put_rng(self.cut_rng, self.loaders)
        yield from batches

    def terminate_if_asked(self) -> None:
        """After a batch, or an epoch: end, if SIGTERM has come."""
        if self.termination.requested and self.resumable is not None:
            self.resumable.at_termination()
        self.termination.act()

    def share(self, loss: Loss) -> Loss:
        """The part of ``loss`` that a batch has in its step: the step sees the mean over its batches."""
        batches = self.divisor = self._batches_of_step()
        if batches == 1:
            return loss
        return loss / batches if isinstance(loss, Tensor) else {name: part / batches for name, part in loss.items()}

    def _batches_of_step(self) -> int:
        steps, batch, batches = self.optimization.accumulation_steps, *self._place()
        whole = (batch - 1) // steps * steps  # batches of the steps before
        return min(steps, batches - whole) if batches >= batch else steps

    def step_is_due(self) -> bool:
        """Whether the weights change after this batch: enough are accumulated, or none will follow in this epoch."""
        batch, batches = self._place()
        return self.accumulated == self.optimization.accumulation_steps or batch == batches

    def _place(self) -> tuple[int, int]:
        return self.state.current_train_batch, self.state.num_train_batches

    def make_up_for_tail(self) -> None:
        """Fewer batches came than the loader had let expect: make the gradients the mean over those that came."""
        for parameter in self._parameters():
            if parameter.grad is not None:
                parameter.grad.mul_(self.divisor / self.accumulated)

    def _parameters(self) -> list[Tensor]:
        groups = [group for optimizer in self.optimizers.values() for group in optimizer.param_groups]
        return [parameter for group in groups for parameter in group["params"]]

    def validation_is_due(self) -> bool:
        """Whether this epoch ends with a validation."""
        return self.val_loader is not None and self.state.current_epoch % self.optimization.evaluation_interval == 0

    def save_metrics(self, *, at_end: bool = False) -> None:
        """Write ``metrics.tsv`` after a validation. All of them are in it: what a full disk doesn't take now comes with
        the next, or at the end.

        Raises:
            OSError: it is the end, and it can't be written.
        """
        path = self.maps.split(self.state.split_idx or 0).metrics
        try:
            self.metrics.save(path)
        except OSError as error:
            if at_end:
                raise
            if not self.unsaved:
                logger.error("the metrics can't be written (%s); that is tried again at the next validation", error)
            self.unsaved = True
        else:
            self.unsaved = False

    def clip_gradients(self) -> None:
        """Limit the gradients, as configured."""
        value, norm = self.optimization.clip_grad_value, self.optimization.clip_grad_norm
        if value is None and norm is None:
            return
        for optimizer in self.optimizers.values():
            if has_gradients(optimizer):
                self.grad_scaler.unscale_(optimizer)
        parameters = self._parameters()
        if value is not None:
            nn.utils.clip_grad_value_(parameters, value)
        if norm is not None:
            nn.utils.clip_grad_norm_(parameters, norm)

    def zero_grad(self) -> None:
        """Set the gradients to None."""
        self.accumulated = 0
        for optimizer in self.optimizers.values():
            optimizer.zero_grad(set_to_none=True)


def count(loader: Iterable[Any]) -> int:
    """How many batches a loader gives; 0 where it doesn't tell."""
    try:
        return len(loader) if isinstance(loader, Sized) else 0
    except TypeError:  # a DataLoader of a dataset without a length
        return 0
