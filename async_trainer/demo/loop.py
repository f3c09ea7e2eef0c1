"""The loop of the demo: plain PyTorch that says where it is, with ``handler.call_event``."""

from __future__ import annotations

from functools import partial
from typing import Any, Protocol

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from async_trainer import CallbacksHandler, Event, TrainerState
from async_trainer.demo.data import Digits, Loader


class ScalarWriter(Protocol):
    """What the loop uses of a TensorBoard ``SummaryWriter``, or of a proxy of one."""

    def add_scalar(self, tag: str, scalar_value: float, global_step: int) -> Any: ...


def train(
    net: nn.Module,
    digits: Digits,
    handler: CallbacksHandler,
    writer: ScalarWriter,
    *,
    epochs: int,
    seed: int,
) -> float:
    """Train ``net`` in place, on the CPU.

    Returns:
        The share of the held-out digits that the net reads correctly after the last epoch, 0 to 1.
    """
    torch.manual_seed(seed)
    loader = digits.training_batches(seed=seed)
    optimizer = torch.optim.Adam(net.parameters(), lr=3e-4)
    state = TrainerState(called="train", num_epochs=epochs, num_train_batches=len(loader))
    call = partial(handler.call_event, model=net, state=state)
    accuracy = 0.0

    call(Event.TRAIN_START, optimizers={"adam": optimizer})
    for state.current_epoch in range(1, epochs + 1):
        state.stage = "training"
        net.train()
        call(Event.EPOCH_START)
        for state.current_train_batch, batch in enumerate(loader, start=1):
            call(Event.BATCH_START, batch=batch)
            call(Event.FORWARD_STEP_START, batch=batch)
            images, labels = batch
            loss = cross_entropy(net(images), labels)
            call(Event.BACKWARD_STEP_START, loss=loss)
            loss.backward()  # type: ignore[no-untyped-call]
            call(Event.BACKWARD_STEP_END)
            call(Event.OPTIMIZATION_STEP_START)
            optimizer.step()
            optimizer.zero_grad()
            state.optim_step += 1
            call(Event.OPTIMIZATION_STEP_END)
            writer.add_scalar("training/loss", loss.item(), state.optim_step)
            call(Event.BATCH_END)
        accuracy = validate(net, digits.held_out_batches(), handler, writer, state=state)
        call(Event.EPOCH_END)
    call(Event.TRAIN_END)
    return accuracy


@torch.no_grad()
def validate(
    net: nn.Module, loader: Loader, handler: CallbacksHandler, writer: ScalarWriter, *, state: TrainerState
) -> float:
    """The share of the digits in ``loader`` that ``net`` reads correctly, 0 to 1."""
    call = partial(handler.call_event, model=net, state=state)
    state.stage, state.num_val_batches = "evaluation", len(loader)
    net.eval()
    right = seen = 0

    call(Event.VALIDATION_START, dataloader=loader)
    for state.current_val_batch, batch in enumerate(loader, start=1):
        call(Event.BATCH_START, batch=batch)
        call(Event.EVALUATION_STEP_START, batch=batch)
        images, labels = batch
        logits = net(images)
        call(Event.METRICS_COMPUTATION_START, output={"images": images, "labels": labels, "logits": logits})
        right += int((logits.argmax(1) == labels).sum())
        seen += len(labels)
        call(Event.BATCH_END)
    accuracy = right / seen
    writer.add_scalar("held-out/accuracy", accuracy, state.optim_step)
    call(Event.VALIDATION_END, metrics={"accuracy": accuracy})
    return accuracy
