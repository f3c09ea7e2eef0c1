"""What is logged of a training: its losses and learning rates at each batch, its metrics at each validation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from torch import Tensor
from torch.optim import Optimizer

from async_trainer.callback import Callback, label
from async_trainer.callbacks.values import check_counts, last_values, number
from async_trainer.errors import ConfigurationError
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


def batch_scalars(loss: Any, optimizers: Mapping[str, Any] | None) -> dict[str, Any]:
    """``loss``, or ``loss/<key>`` for each of its keys; and the learning rates.

    Args:
        loss: a number, a tensor of one, or a mapping of such.
        optimizers: as for :func:`learning_rates`.
    """
    losses = {f"loss/{key}": value for key, value in loss.items()} if isinstance(loss, Mapping) else {"loss": loss}
    return {**losses, **learning_rates(optimizers)}


def validation_scalars(metrics: Any) -> dict[str, Any]:
    """``validation/<name>`` for each metric of the last evaluation.

    Args:
        metrics: as for :func:`~async_trainer.callbacks.values.metric_values`.
    """
    return {f"validation/{name}": value for name, value in last_values(metrics).items()}


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
        self._log_numbers(state, batch_scalars(loss, optimizers), batch=True)

    def on_validation_end(
        self, *, state: TrainerState, metrics: Any, maps: Any = None, event: EventInfo | None = None, **kwargs: Any
    ) -> None:
        """Log a validation."""
        self._begin(maps, state, event)
        try:
            self._log_numbers(state, validation_scalars(metrics), batch=False)
        finally:
            self._settle()

    def _log_numbers(self, state: TrainerState, values: Mapping[str, Any], *, batch: bool) -> None:
        """Log what is a number; then tell of what is not, which is no reason to lose the others."""
        numbers, wrong = {}, []
        for name, value in values.items():
            try:
                numbers[name] = number(name, value, label(self))
            except TypeError as error:
                wrong.append(str(error))
        if numbers or not wrong:
            self._log(state, numbers, batch=batch)
        if wrong:
            raise ConfigurationError(f"{'; '.join(wrong)}; the others are logged")

    def _begin(self, maps: Any, state: TrainerState, event: EventInfo | None) -> None:
        """Be ready to log, as before ``event``: an earlier attempt at it may have logged a part, and a process that
        takes another's place has a state, and no start."""
        raise NotImplementedError  # the subclass's

    def _log(self, state: TrainerState, values: Mapping[str, float], *, batch: bool) -> None:
        raise NotImplementedError  # the subclass's

    def _settle(self) -> None:
        """All that was logged is to be there now."""
        raise NotImplementedError  # the subclass's
