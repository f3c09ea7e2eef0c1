"""What the code of a callback tells before it runs: that it steps an optimizer of the training."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from async_trainer.adapters.reading import steps


def by_name(optimizer: Any) -> None:
    optimizer.step()


def by_keyword(**kwargs: Any) -> None:
    kwargs["optimizer"].zero_grad()


def by_get(**kwargs: Any) -> None:
    scheduler = kwargs.get("lr_scheduler")
    if scheduler is not None:
        scheduler.step()


def by_attribute(trainer: Any) -> None:
    trainer.optimizers[0].step()


def by_call(module: Any) -> None:
    first, *_ = module.optimizers()
    again = first
    again.zero_grad(set_to_none=True)


def in_a_loop(trainer: Any) -> None:
    for one in trainer.optimizers:
        one.step()


def in_a_function(optimizers: Any) -> Callable[[], None]:
    def go() -> None:
        optimizers["a"].step()

    return go


@pytest.mark.parametrize("function", [by_name, by_keyword, by_get, by_attribute, by_call, in_a_loop, in_a_function])
def test_a_step_of_the_trainings_optimizer_is_seen(function: Any) -> None:
    assert [use.attribute in ("step", "zero_grad") for use in steps(function)] == [True]


class Own:
    """It has a profiler, and a probe with an optimizer of its own."""

    def __init__(self, profiler: Any, probe: Any, optimizer: Any) -> None:
        self.profiler, self.probe, self.optimizer = profiler, probe, optimizer

    def profiles(self, optimizer: Any) -> None:
        rate = optimizer.param_groups[0]["lr"]
        self.profiler.step()
        print(rate)

    def has_one(self) -> None:
        self.optimizer.step()

    def makes_one(self) -> None:
        optimizer = torch.optim.SGD(self.probe.parameters())
        scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1)
        optimizer.step()
        scheduler.step()

    def reads(self, state: Any, optimizer: Any) -> None:
        names: tuple[str, ...] = ()
        print(state.step, optimizer.param_groups, names)


@pytest.mark.parametrize("name", ["profiles", "has_one", "makes_one", "reads"])
def test_anything_else_that_steps_is_none_of_the_trainings(name: str) -> None:
    assert list(steps(getattr(Own, name))) == []
