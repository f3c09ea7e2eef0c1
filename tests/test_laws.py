"""Training is unchanged by background callbacks (law 9), and synchronous mode gives the same outputs (law 10)."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from async_trainer import Callback, CallbacksHandler, background
from async_trainer.testing import Rehearsal


def total(tensor: torch.Tensor) -> float:
    return float(tensor.detach().sum())


class Everything(Callback):
    """Names all that there is, and uses it."""

    def __init__(self) -> None:
        self.rows: list[Any] = []

    def on_train_start(self, *, model: Any, optimizers: Any, grad_scaler: Any, metrics: Any, **kwargs: Any) -> None:
        self.rows.append((total(model.eval()(torch.ones(4, 3))), optimizers["optimizer"].param_groups[0]["lr"]))

    def on_batch_start(self, *, batch: Any, state: Any) -> None:
        self.rows.append((state.current_epoch, total(batch[0])))

    def on_backward_step_start(self, *, loss: torch.Tensor, model: Any, optimizers: Any) -> None:
        noise = torch.rand(4, 8, generator=torch.Generator().manual_seed(1))
        model.network[1].train()(noise)  # its own BatchNorm statistics
        states = optimizers["optimizer"].state_dict()["state"]
        self.rows.append((loss.item(), total(model.network[1].running_mean), len(states)))

    def on_optimization_step_end(self, *, model: Any, optimizers: Any, event: Any) -> None:
        self.rows.append((event.seq, [total(p) for p in model.parameters()]))
        optimizers["optimizer"].state_dict()

    def on_metrics_computation_end(self, *, detailed_metrics_df: Any) -> None:
        self.rows.append(detailed_metrics_df.to_dict())


class Async(Callback):
    def __init__(self) -> None:
        self.rows: list[Any] = []

    async def on_batch_end(self, *, state: Any, model: Any) -> None:
        self.rows.append((state.optim_step, total(next(model.parameters()))))


def train(directory: Path, callbacks: list[Any], **settings: Any) -> tuple[Any, ...]:
    torch.manual_seed(1)
    np.random.seed(1)
    random.seed(1)
    rehearsal = Rehearsal(directory, epochs=3, batches=5)
    handler = CallbacksHandler(callbacks, **settings)
    with handler:
        rehearsal.train(handler)
    handler.close().raise_for_errors()
    weights = {name: tensor.clone() for name, tensor in rehearsal.model.state_dict().items()}
    momentum = [state["momentum_buffer"].clone() for state in rehearsal.optimizers["optimizer"].state.values()]
    rng = (torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate())
    return weights, momentum, rng


def same(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)


def test_weights_and_random_streams_are_bit_identical_with_and_without_background_callbacks(tmp_path: Path) -> None:
    alone = train(tmp_path, [])
    callbacks: list[Any] = [background([Everything() for _ in range(8)]), background([Async(), Async()])]
    assert same(alone, train(tmp_path, callbacks))


def test_a_hook_that_draws_from_the_global_generator_disturbs_the_training(tmp_path: Path) -> None:
    """The negative control of the test above, and why the docs say so."""

    class Draws(Callback):
        def on_backward_step_end(self, *, state: Any) -> None:
            torch.rand(3)

    assert not same(train(tmp_path, []), train(tmp_path, [background(Draws())], synchronous=True))


@pytest.mark.parametrize("make", [Everything, Async])
def test_synchronous_mode_gives_the_same_outputs(tmp_path: Path, make: Any) -> None:
    in_background, on_the_spot = make(), make()
    train(tmp_path, [background(in_background)])
    train(tmp_path, [background(on_the_spot)], synchronous=True)
    assert len(in_background.rows) >= 15
    assert same(in_background.rows, on_the_spot.rows)
