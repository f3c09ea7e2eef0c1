"""The loop: training, and evaluation within it and by itself. ``Event``'s docstring is its outline."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import nullcontext
from typing import Any

import torch

from async_trainer.errors import ConfigurationError
from async_trainer.events import Event
from async_trainer.train.device import to_device
from async_trainer.train.run import Run, TrainingRun, count


def train(run: TrainingRun) -> None:
    """Train until the last epoch, or until a callback has asked to stop."""
    state, model = run.state, run.model
    while run.skip or run.trained or (state.current_epoch < state.num_epochs and not state.should_stop):
        model.train()
        if run.trained:  # it was resumed where the validation of an epoch began
            run.trained = False
        else:
            train_epoch(run)
        if run.validation_is_due():
            validate(run)
        run.call(Event.EPOCH_END)
        run.terminate_if_asked()


def train_epoch(run: TrainingRun) -> None:
    """Train on all batches, or on those that are left."""
    state, model = run.state, run.model
    if not run.skip:  # else it was resumed in the middle of the epoch
        state.current_epoch += 1
        state.stage, state.current_train_batch, state.num_train_batches = "training", 0, count(run.train_loader)
        run.call(Event.EPOCH_START)
    run.in_epoch = True
    for loaded in run.batches():
        state.current_train_batch += 1
        run.call(Event.BATCH_START, batch=loaded)
        batch = to_device(loaded, run.computational)
        run.call(Event.FORWARD_STEP_START, batch=batch)
        with run.computational.autocast():
            loss = model.forward_step(batch)
        run.call(Event.BACKWARD_STEP_START, loss=loss, grad_scaler=run.grad_scaler)
        model.backward_step(run.share(loss), run.grad_scaler)
        run.accumulated += 1
        run.call(Event.BACKWARD_STEP_END)
        if run.step_is_due():
            optimize(run)
        run.call(Event.BATCH_END)
        run.terminate_if_asked()
    run.in_epoch = False
    if run.accumulated:  # of a loader that had not told how many batches it gives
        run.make_up_for_tail()
        optimize(run)
    if not state.current_train_batch:
        raise ConfigurationError(f"train: the loader has given no batch in epoch {state.current_epoch}")


def optimize(run: TrainingRun) -> None:
    """Change the weights by the gradients accumulated."""
    steppers: dict[str, Any] = {"optimizers": run.optimizers, "grad_scaler": run.grad_scaler}
    run.call(Event.OPTIMIZATION_STEP_START, **steppers)
    run.clip_gradients()
    run.fence()  # a model's own step, or a compiled one, may pass the optimizers' hooks by
    run.model.optimization_step(run.optimizers, run.grad_scaler)
    run.grad_scaler.update()
    run.zero_grad()
    run.state.optim_step += 1
    run.call(Event.OPTIMIZATION_STEP_END, **steppers)


def validate(run: TrainingRun) -> None:
    """Validate in the course of a training."""
    assert run.val_loader is not None
    with nullcontext() if run.resumable is None else run.resumable.validation():
        begin_validation(run, run.val_loader)
        run.call(Event.VALIDATION_START, dataloader=run.val_loader, metrics=run.metrics)
        evaluate(run, run.val_loader, epoch=run.state.current_epoch)
    run.save_metrics()
    run.call(Event.VALIDATION_END, metrics=run.metrics)


def begin_validation(run: Run, loader: Iterable[Any]) -> None:
    """Set model and state to the start of a validation."""
    run.model.eval()
    run.metrics.reset()
    run.state.stage, run.state.current_val_batch, run.state.num_val_batches = "evaluation", 0, count(loader)


def begin_test(run: Run, loader: Iterable[Any]) -> None:
    """Set model and state to the start of a test."""
    run.model.eval()
    run.metrics.reset()
    run.state.stage, run.state.current_test_batch, run.state.num_test_batches = "evaluation", 0, count(loader)


def evaluate(run: Run, loader: Iterable[Any], *, epoch: int | None = None) -> None:
    """Evaluate all batches, without gradients, and aggregate the metrics."""
    with torch.no_grad():
        for loaded in loader:
            if run.state.called == "test":
                run.state.current_test_batch += 1
            else:
                run.state.current_val_batch += 1
            run.call(Event.BATCH_START, batch=loaded)
            batch = to_device(loaded, run.computational)
            run.call(Event.EVALUATION_STEP_START, batch=batch)
            with run.computational.autocast():
                output = run.model.evaluation_step(batch)
            run.call(Event.METRICS_COMPUTATION_START, output=output, metrics=run.metrics)
            with run.computational.autocast():  # as where the loss is computed in training
                frame = run.metrics(output, epoch=epoch)
            run.call(Event.METRICS_COMPUTATION_END, detailed_metrics_df=frame)
            run.call(Event.BATCH_END)
            run.terminate_if_asked()
    run.metrics.aggregate(epoch=epoch)
