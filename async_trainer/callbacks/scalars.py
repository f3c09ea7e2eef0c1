"""What is logged of a training: its losses and learning rates at each batch, its metrics at each validation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from torch import Tensor
from torch.optim import Optimizer

from async_trainer.callback import Callback, label
from async_trainer.callbacks.values import check_counts, metric_values, number
from async_trainer.train.state import TrainerState

if TYPE_CHECKING:
    from async_trainer.routes import EventInfo


def learning_rates(optimizers: Mapping[str, Any] | None) -> dict[str, float | Tensor]:
    """``lr``; ``lr/<optimizer>`` where there are several; ``lr/<optimizer>/<group>`` where one has several groups.

    Args:
        optimizers: by name; or what this function has returned for them.
    """
    rates: dict[str, float | Tensor] = {}
    for name, optimizer in (optimizers or {}).items():
        if not isinstance(optimizer, Optimizer):
            rates[name] = optimizer
            continue
        single = "lr" if len(optimizers or ()) == 1 else f"lr/{name}"
        groups = optimizer.param_groups
        for place, group in enumerate(groups):
            rates[single if len(groups) == 1 else f"lr/{name}/{place}"] = group["lr"]
    return rates


def batch_scalars(loss: Any, optimizers: Mapping[str, Any] | None, where: str) -> dict[str, float]:
    """``loss``, or ``loss/<key>`` for each of its keys; and the learning rates.

    Args:
        loss: a number, a tensor of one, or a mapping of such.
        optimizers: as for :func:`learning_rates`.
        where: who asks, for messages.

    Raises:
        TypeError: one is no number; names it.
    """
    losses = {f"loss/{key}": value for key, value in loss.items()} if isinstance(loss, Mapping) else {"loss": loss}
    return {name: number(name, value, where) for name, value in {**losses, **learning_rates(optimizers)}.items()}


def validation_scalars(metrics: Any, where: str) -> dict[str, float]:
    """``validation/<name>`` for each metric of the last evaluation.

    Args:
        metrics: as for :func:`~async_trainer.callbacks.values.metric_values`.
        where: who asks, for messages.

    Raises:
        TypeError: one is no number; names it.
    """
    return {f"validation/{name}": value for name, value in metric_values(metrics, f"{where}: metrics").items()}


class ScalarLog(Callback):
    """Of callbacks that log scalars: which, of which batches, and when. What a log is, is the subclass's.

    A subclass has ``_begin``, ``_log`` and ``_settle``: not abstract methods, as it may take them from another base
    that comes before this one (TensorBoard's ``_begin`` is ``EventLog``'s), and no user makes one of its own.
    """

    def __init__(self, every: int) -> None:
        check_counts(label(self), every=every)
        self.every = every

    @property
    def background(self) -> Mapping[str, Any]:  # type: ignore[override]  # each instance has its own ``when``
        """In the background by default; what can't be logged is raised at the end."""
        options: dict[str, Any] = {
            "on_error": "raise_at_end",
            "select": {"optimizers": learning_rates},  # else each batch would capture their whole state
        }
        if self.every > 1:
            options["when"] = {"on_backward_step_start": self.wants}
        return options

    def wants(self, *, state: TrainerState, **_: Any) -> bool:
        """Whether the training batch of ``state`` is to be logged. The training thread, if run in the background."""
        return ((state.current_epoch - 1) * state.num_train_batches + state.current_train_batch) % self.every == 0

    def on_backward_step_start(
        self,
        *,
        state: TrainerState,
        loss: Any,
        optimizers: Any = None,
        maps: Any = None,
        event: EventInfo | None = None,
        **kwargs: Any,
    ) -> None:
        """Log a batch."""
        if not self.wants(state=state):
            return
        self._begin(maps, state, event)
        self._log(state, batch_scalars(loss, optimizers, label(self)), batch=True)

    def on_validation_end(
        self, *, state: TrainerState, metrics: Any, maps: Any = None, event: EventInfo | None = None, **kwargs: Any
    ) -> None:
        """Log a validation."""
        self._begin(maps, state, event)
        self._log(state, validation_scalars(metrics, label(self)), batch=False)
        self._settle()

    def _begin(self, maps: Any, state: TrainerState, event: EventInfo | None) -> None:
        """Be ready to log, as before ``event``: an earlier attempt at it may have logged a part, and a process that
        takes another's place has a state, and no start."""
        raise NotImplementedError  # the subclass's

    def _log(self, state: TrainerState, values: Mapping[str, float], *, batch: bool) -> None:
        raise NotImplementedError  # the subclass's

    def _settle(self) -> None:
        """All that was logged is to be there now."""
        raise NotImplementedError  # the subclass's
