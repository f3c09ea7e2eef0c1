"""LRScheduler: torch's learning-rate schedulers, stepped at the right events."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler as TorchScheduler
from torch.optim.lr_scheduler import ReduceLROnPlateau

from async_trainer.callback import Callback
from async_trainer.callbacks.values import check_metric, metric_value
from async_trainer.errors import ConfigurationError
from async_trainer.suggest import refuse_unknown_options, suggestion


class LRScheduler(Callback):
    """Steps a torch scheduler after each epoch, each optimization step, or each validation.

    ::

        LRScheduler(lambda optimizer: StepLR(optimizer, 10))
        LRScheduler(lambda optimizer: OneCycleLR(optimizer, 0.1, total_steps=5_000), interval="step")
        LRScheduler(ReduceLROnPlateau, metric="loss")

    A scheduler is built for each optimizer at the start of each training. It is stepped only if its optimizer has been
    since: a step that AMP skips, for gradients that overflow, doesn't move the schedule (of a fused optimizer, which
    skips it by itself, it does). Inline, on the training thread.

    Args:
        factory: makes the scheduler of an optimizer.
        interval: step after each ``"epoch"``, or after each optimization ``"step"``.
        metric: for ``ReduceLROnPlateau``: the validation metric that it watches; then it is stepped after each
            validation.
        optimizer: the name of the optimizer to schedule; None: all of them, each with a scheduler of its own.

    Raises:
        ConfigurationError: an argument that can't work; at the start of a training, an optimizer or a metric that there
            isn't, or a factory that makes something else.
    """

    steers: ClassVar[bool] = True

    @refuse_unknown_options
    def __init__(
        self,
        factory: Callable[[Optimizer], TorchScheduler],
        *,
        interval: Literal["epoch", "step"] = "epoch",
        metric: str | None = None,
        optimizer: str | None = None,
    ) -> None:
        if isinstance(factory, TorchScheduler):
            raise ConfigurationError(
                "LRScheduler: factory must be a function that makes the scheduler, as the optimizers are made by each "
                f"training: lambda optimizer: {type(factory).__name__}(optimizer, ...)"
            )
        if not callable(factory):
            raise ConfigurationError(
                "LRScheduler: factory must be a function, such as lambda optimizer: StepLR(optimizer, 10), not "
                f"{factory!r}"
            )
        if interval not in ("epoch", "step"):
            hint = suggestion(interval, ("epoch", "step")) if isinstance(interval, str) else ""
            raise ConfigurationError(f"LRScheduler: interval must be 'epoch' or 'step', not {interval!r}{hint}")
        for argument, name in (("metric", metric), ("optimizer", optimizer)):
            if name is not None and not (isinstance(name, str) and name):
                raise ConfigurationError(f"LRScheduler: {argument} must be a name, or None, not {name!r}")
        if metric is not None and interval == "step":
            raise ConfigurationError(
                "LRScheduler: a scheduler with metric= is stepped after each validation: leave out interval='step'"
            )
        self.factory = factory
        self.interval = interval
        self.metric = metric
        self.optimizer = optimizer
        self._schedules: dict[str, _Schedule] = {}
        self._state: Mapping[str, Any] = {}  # while there are no schedulers: of the last training, or loaded

    def __repr__(self) -> str:
        schedules = [f"{type(one.scheduler).__name__} of {name}" for name, one in self._schedules.items()]
        when = f"validation, on {self.metric}" if self.metric else self.interval
        return f"<LRScheduler: after each {when}; {', '.join(schedules) or 'not running'}>"

    def check_training(self, **arguments: Any) -> None:
        """Refuse a training without that metric."""
        if self.metric is not None:
            check_metric(arguments, self.metric, "LRScheduler: metric")

    def on_train_start(
        self,
        *,
        optimizers: Mapping[str, Optimizer],
        **kwargs: Any,
    ) -> None:
        """Build the schedulers: their first learning rates are set."""
        self._state = {}
        self._build(optimizers)

    def on_resume(
        self,
        *,
        optimizers: Mapping[str, Optimizer],
        **kwargs: Any,
    ) -> None:
        """Build the schedulers, to go on from :meth:`load_state_dict`, before or after this."""
        self._build(optimizers)
        if self._state:
            self._load(self._state)

    def _build(self, optimizers: Mapping[str, Optimizer]) -> None:
        if self.optimizer is not None and self.optimizer not in optimizers:
            raise ConfigurationError(
                f"LRScheduler: optimizer={self.optimizer!r}: there is no such optimizer"
                f"{suggestion(self.optimizer, optimizers)}; there are: {', '.join(optimizers) or 'none'}"
            )
        self._release()
        names = optimizers if self.optimizer is None else (self.optimizer,)
        for name in names:
            self._schedules[name] = _Schedule(self._make(optimizers[name]), optimizers[name])

    def _make(self, optimizer: Optimizer) -> TorchScheduler:
        scheduler = self.factory(optimizer)
        if not isinstance(scheduler, TorchScheduler):
            raise ConfigurationError(f"LRScheduler: factory must return a scheduler of torch, not {scheduler!r}")
        name = type(scheduler).__name__
        if scheduler.optimizer is not optimizer:
            raise ConfigurationError(f"LRScheduler: the {name} that factory returned is of another optimizer")
        if isinstance(scheduler, ReduceLROnPlateau) and self.metric is None:
            raise ConfigurationError(f"LRScheduler: {name} needs a metric to watch: metric='loss'")
        if self.metric is not None and not isinstance(scheduler, ReduceLROnPlateau):
            raise ConfigurationError(f"LRScheduler: {name} watches no metric: leave out metric={self.metric!r}")
        return scheduler

    def on_optimization_step_end(self, **kwargs: Any) -> None:
        """Step, with ``interval="step"``."""
        if self.interval == "step":
            self._step()

    def on_epoch_end(self, **kwargs: Any) -> None:
        """Step, with ``interval="epoch"``."""
        if self.interval == "epoch" and self.metric is None:
            self._step()

    def _step(self) -> None:
        for schedule in self._schedules.values():
            schedule.step()

    def on_validation_end(self, *, metrics: Any = None, **kwargs: Any) -> None:
        """Step, with ``metric=``."""
        if self.metric is not None:
            value = metric_value(metrics, self.metric, "LRScheduler: metric")
            for schedule in self._schedules.values():
                schedule.step_on(value)

    def on_train_end(self, **kwargs: Any) -> None:
        """Let go of the optimizers."""
        self._release()

    def on_exception(self, **kwargs: Any) -> None:
        """Let go of the optimizers."""
        self._release()

    def _release(self) -> None:
        if self._schedules:
            self._state = self.state_dict()
            for schedule in self._schedules.values():
                schedule.counter.remove()
            self._schedules = {}

    def state_dict(self) -> dict[str, Any]:
        """For each optimizer, its scheduler's state, and what that has set in its param groups."""
        if not self._schedules:
            return copy.deepcopy(dict(self._state))
        return {name: schedule.state_dict() for name, schedule in self._schedules.items()}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Go on from ``state_dict``: at once, or when :meth:`on_resume` builds the schedulers.

        Raises:
            ConfigurationError: it is the state of other optimizers.
        """
        self._state = copy.deepcopy(dict(state_dict))
        if self._schedules:
            self._load(self._state)

    def _load(self, states: Mapping[str, Any]) -> None:
        if states.keys() != self._schedules.keys():
            raise ConfigurationError(
                f"LRScheduler: the state is of the optimizers {', '.join(states)}; this training schedules "
                f"{', '.join(self._schedules)}: give it the optimizers, and optimizer=, that it had"
            )
        for name, schedule in self._schedules.items():
            schedule.load_state_dict(states[name])


@dataclass(slots=True)
class _Schedule:
    """A scheduler, and whether its optimizer has been stepped since the scheduler was."""

    scheduler: TorchScheduler
    optimizer: Optimizer
    is_due: bool = False
    counter: Any = None

    def __post_init__(self) -> None:
        self.counter = self.optimizer.register_step_post_hook(self._stepped)

    def _stepped(self, *_: Any) -> None:
        self.is_due = True

    def step(self) -> None:
        if self.is_due:
            # Torch asks for it before a scheduler's first step; after a resume it was another object that was stepped.
            self.optimizer._opt_called = True  # type: ignore[attr-defined]
            self.scheduler.step()
            self.is_due = False

    def step_on(self, value: float) -> None:
        assert isinstance(self.scheduler, ReduceLROnPlateau)
        self.scheduler.step(value)

    def state_dict(self) -> dict[str, Any]:
        groups = [{key: value for key, value in group.items() if key != "params"} for group in self._groups]
        return {
            "scheduler": copy.deepcopy(self.scheduler.state_dict()),
            "groups": copy.deepcopy(groups),
            "is_due": self.is_due,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.scheduler.load_state_dict(state["scheduler"])
        # Building the scheduler has set its first rates, even if the optimizer's own state had been loaded by then.
        for group, saved in zip(self._groups, state["groups"], strict=True):
            for key, value in saved.items():
                if isinstance(group.get(key), torch.Tensor):
                    group[key].copy_(value)  # in place: a captured step reads it there
                else:
                    group[key] = value
        self.is_due = state["is_due"]

    @property
    def _groups(self) -> list[dict[str, Any]]:
        groups: list[dict[str, Any]] = self.optimizer.param_groups
        return groups
