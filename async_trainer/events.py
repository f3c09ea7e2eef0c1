"""The events of a training loop: their names, what they bring, and their order."""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum
from typing import Any

ARGUMENTS: dict[str, str] = {
    "model": "``torch.nn.Module``: the model that is trained or evaluated.",
    "maps": "``Maps``: the directory that the run writes to.",
    "state": "``TrainerState``: where the run is (epoch, batch, optimization step; all count from 1).",
    "split": "``Split``: the training and validation data.",
    "optimizers": "``dict[str, torch.optim.Optimizer]``: the optimizers, by name.",
    "grad_scaler": "``torch.amp.GradScaler``: scales the loss where AMP is on.",
    "optimization": "``OptimizationConfig``: epochs, accumulation, evaluation interval, clipping.",
    "computational": "``ComputationalConfig``: device, AMP, seed.",
    "metrics": "``MetricsHandler``: the metrics of this run.",
    "callbacks": "``CallbacksHandler``: the callbacks (a background hook gets a listing of them).",
    "dataloader": "``torch.utils.data.DataLoader``: the data that is evaluated.",
    "model_checkpoint": "``str``: the checkpoint that is evaluated.",
    "group_name": "``str``: the name given to the test data.",
    "batch": "the batch, as its loader made it: before ``on_forward_step_start`` on the loader's device.",
    "loss": "``torch.Tensor`` (0-d) or ``dict[str, Tensor]``: what the forward step returned.",
    "output": "the batch of outputs that the evaluation step returned.",
    "detailed_metrics_df": "``pandas.DataFrame``: the metrics of this batch, a row per sample.",
    "exception": "``BaseException``: what interrupts the run.",
}
"""What each argument of an event is. A hook names those that it needs."""

_ALWAYS = ("model", "maps", "state")


class Event(StrEnum):
    """A point of the loop. The value is the name of the hook that handles it.

    ::

        on_trainer_init                                   # once per trainer

        train, resume:
            on_train_start                                # resume: on_resume, then the checkpoint is loaded
            for each epoch:
                on_epoch_start
                for each training batch:
                    on_batch_start
                    on_forward_step_start
                    loss = forward_step(batch)
                    on_backward_step_start
                    backward_step(loss)
                    on_backward_step_end
                    every accumulation_steps batches:
                        on_optimization_step_start        # then clipping, then the step
                        on_optimization_step_end          # optim_step is up by one, gradients are None
                    on_batch_end
                every evaluation_interval epochs:
                    on_validation_start
                    EVALUATE(validation batches)
                    on_validation_end                     # metrics are aggregated
                on_epoch_end
            on_train_end

        validate:  on_validate_start  EVALUATE(validation batches)  on_validate_end
        test:      on_test_start      EVALUATE(test batches)        on_test_end

        EVALUATE(batches):
            for each batch:
                on_batch_start
                on_evaluation_step_start
                output = evaluation_step(batch)
                on_metrics_computation_start
                frame = metrics(output)
                on_metrics_computation_end
                on_batch_end

        on_exception                                      # an error inside any of these, Ctrl-C included
    """

    summary: str
    arguments: tuple[str, ...]

    def __new__(cls, hook: str, summary: str = "", arguments: str = "") -> Event:
        event = str.__new__(cls, hook)
        event._value_ = hook
        event.summary = summary
        event.arguments = _ALWAYS + tuple(arguments.split())
        return event

    TRAINER_INIT = (
        "on_trainer_init",
        "A trainer was made, or read back with ``Trainer.from_maps``.",
        "metrics optimization callbacks",
    )
    TRAIN_START = (
        "on_train_start",
        "A training starts from its first epoch.",
        "split optimizers grad_scaler optimization metrics callbacks computational",
    )
    RESUME = (
        "on_resume",
        "An interrupted training goes on; its checkpoint is about to be loaded. Replaces ``on_train_start``.",
        "split optimizers grad_scaler optimization metrics callbacks computational",
    )
    EPOCH_START = ("on_epoch_start", "An epoch of training starts.")
    BATCH_START = ("on_batch_start", "A batch was loaded, in training or in evaluation.", "batch")
    FORWARD_STEP_START = ("on_forward_step_start", "The forward step of a training batch comes next.", "batch")
    BACKWARD_STEP_START = (
        "on_backward_step_start",
        "The loss of a training batch is there; its backward step comes next.",
        "loss grad_scaler",
    )
    BACKWARD_STEP_END = ("on_backward_step_end", "The gradients of a training batch are there.")
    OPTIMIZATION_STEP_START = (
        "on_optimization_step_start",
        "The weights are about to change; clipping comes after this event.",
        "optimizers grad_scaler",
    )
    OPTIMIZATION_STEP_END = (
        "on_optimization_step_end",
        "The weights have changed; gradients are None and ``state.optim_step`` is up by one.",
        "optimizers grad_scaler",
    )
    BATCH_END = ("on_batch_end", "A batch is done, in training or in evaluation.")
    VALIDATION_START = ("on_validation_start", "A validation within a training starts.", "dataloader metrics")
    EVALUATION_STEP_START = ("on_evaluation_step_start", "The evaluation step of a batch comes next.", "batch")
    METRICS_COMPUTATION_START = (
        "on_metrics_computation_start",
        "The output of an evaluation batch is there; its metrics come next.",
        "output metrics",
    )
    METRICS_COMPUTATION_END = (
        "on_metrics_computation_end",
        "The metrics of an evaluation batch are there.",
        "detailed_metrics_df",
    )
    VALIDATION_END = ("on_validation_end", "A validation within a training is done, its metrics aggregated.", "metrics")
    EPOCH_END = ("on_epoch_end", "An epoch of training is done, its validation included.")
    TRAIN_END = ("on_train_end", "A training is done.")
    VALIDATE_START = (
        "on_validate_start",
        "``Trainer.validate`` starts on one checkpoint (once for each checkpoint).",
        "dataloader model_checkpoint metrics callbacks computational",
    )
    VALIDATE_END = ("on_validate_end", "``Trainer.validate`` is done with one checkpoint.", "metrics")
    TEST_START = (
        "on_test_start",
        "``Trainer.test`` starts.",
        "dataloader model_checkpoint metrics group_name callbacks computational",
    )
    TEST_END = ("on_test_end", "``Trainer.test`` is done.", "metrics")
    EXCEPTION = ("on_exception", "An exception interrupts train, resume, validate or test.", "exception")


RUN_STARTS = frozenset({Event.TRAIN_START, Event.RESUME, Event.VALIDATE_START, Event.TEST_START})
"""Their arguments may be named by every later hook of the run."""

TRAINING_RUNS = frozenset({Event.TRAIN_START, Event.RESUME})

RUN_ENDS = frozenset({Event.TRAIN_END, Event.VALIDATE_END, Event.TEST_END, Event.EXCEPTION})

ONCE_PER_RUN = RUN_STARTS | RUN_ENDS | {Event.TRAINER_INIT}
"""Never dropped, whatever the overflow policy."""

EVALUATION_STARTS = frozenset({Event.VALIDATION_START, Event.VALIDATE_START, Event.TEST_START})
TRAINING_STARTS = frozenset({Event.TRAIN_START, Event.RESUME, Event.VALIDATION_END})
"""With ``EVALUATION_STARTS``: where the stage changes that ``every`` counts in."""


def make_hook(event: Event) -> Callable[..., None]:
    """The hook of the base class for ``event``: it does nothing, and documents the event."""

    def hook(self: object, *args: Any, **kwargs: Any) -> None:
        return None

    lines = [event.summary, "", "Name the arguments that you need, as keywords:", ""]
    lines += [f"    {name}: {ARGUMENTS[name]}" for name in event.arguments]
    hook.__name__ = event.value
    hook.__qualname__ = f"Callback.{event.value}"
    hook.__doc__ = "\n".join(lines)
    return hook


def brought_by(name: str) -> str:
    """For messages: ``"; it comes with on_backward_step_start"``; ``""`` if no event of a Trainer brings ``name``."""
    events = [event.value for event in Event if name in event.arguments]
    return f"; it comes with {', '.join(events)}" if events else ""
