"""The state of a fenced optimizer is captured as a whole, while it is what it was: and by value where it isn't."""

from __future__ import annotations

import copy
import gc
import weakref
from typing import Any

import pytest
import torch

from async_trainer.snapshot import states
from tests.overlap.kit import OPTIMIZERS, Net, Run, train


@pytest.fixture
def wholes(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Of each capture of a fenced optimizer: whether its state was captured as a whole."""
    seen: list[bool] = []
    original = states.take_state

    def noted(*args: Any) -> Any:
        found = original(*args)
        seen.append(found[0] is not None)
        return found

    monkeypatch.setattr("async_trainer.snapshot.fence.take_state", noted)
    return seen


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_each_optimizers_state_is_captured_as_a_whole_once_it_is_there(name: str, wholes: list[bool]) -> None:
    model = Net()
    run = Run(model, OPTIMIZERS[name](model.parameters()))
    run.event()
    assert wholes == [False]  # before the first step there is none
    train(run, 1)
    wholes.clear()
    train(run, 2)
    run.check()
    assert wholes
    assert all(wholes)
    run.handler.close()


def add_group(model: Net, optimizer: Any) -> None:
    optimizer.add_param_group({"params": [torch.nn.Parameter(torch.ones(200, 200))]})
    optimizer.param_groups[-1]["params"][0].grad = torch.ones(200, 200)


def load(model: Net, optimizer: Any) -> None:
    optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))


def forget_one(model: Net, optimizer: Any) -> None:
    del optimizer.state[model.first.weight]


def replace_one(model: Net, optimizer: Any) -> None:
    state = optimizer.state[model.first.weight]
    state["exp_avg"] = state["exp_avg"] * 2


def make_plain(model: Net, optimizer: Any) -> None:
    optimizer.state[model.first.weight]["note"] = 3.5


def rename(model: Net, optimizer: Any) -> None:
    state = optimizer.state[model.first.weight]
    state["more"] = torch.ones(300, 300)


def keep_what_is_no_parameters(model: Net, optimizer: Any) -> None:
    optimizer.state["global"] = {"seen": torch.ones(300, 300)}


def share(model: Net, optimizer: Any) -> None:
    optimizer.state[model.first.weight]["again"] = optimizer.state[model.second.weight]["exp_avg"]


def nest(model: Net, optimizer: Any) -> None:
    optimizer.state[model.first.weight]["nested"] = [torch.ones(300, 300)]


def transpose(model: Net, optimizer: Any) -> None:
    optimizer.state[model.first.weight]["turned"] = torch.rand(200, 300).t()


def replace_by_a_turned_one(model: Net, optimizer: Any) -> None:
    optimizer.state[model.first.weight]["exp_avg"] = torch.rand(132, 132).t()


CHANGES = [
    replace_by_a_turned_one, add_group, load, forget_one, replace_one, make_plain, rename,
    keep_what_is_no_parameters, share, nest, transpose,
]  # fmt: skip


BY_VALUE = [replace_by_a_turned_one, keep_what_is_no_parameters, share, nest, transpose]
"""After these there is something in it that has to be looked at each time."""


@pytest.mark.parametrize("change", CHANGES)
def test_a_state_that_has_changed_its_form_is_captured_as_it_is_now(change: Any, wholes: list[bool]) -> None:
    model = Net()
    optimizer = OPTIMIZERS["adam"](model.parameters())
    run = Run(model, optimizer)
    train(run, 2)
    run.event()
    run.handler.flush()
    change(model, optimizer)
    run.event()
    run.handler.flush()
    run.event()
    run.check()
    assert wholes[-3]
    assert wholes[-2:] == ([change not in BY_VALUE] * 2)
    run.handler.close()


def test_a_tensor_of_the_state_that_the_event_brings_besides_is_one_object_in_the_hook() -> None:
    from async_trainer import Callback, CallbacksHandler, background

    model = Net()
    optimizer = OPTIMIZERS["adam"](model.parameters())
    train(Run(model, optimizer), 1)
    same: list[bool] = []

    class Sees(Callback):
        def on_batch_end(self, *, average: Any, optimizers: Any) -> None:
            states = [*optimizers.state.values()]
            same.append(any(one["exp_avg"] is average for one in states))

    with CallbacksHandler([background(Sees())]) as handler:
        handler.call_event("on_train_start", optimizers=optimizer)
        average = optimizer.state[model.first.weight]["exp_avg"]
        handler.call_event("on_batch_end", average=average)
    assert same == [True]


def test_what_is_known_of_a_state_keeps_none_of_it_alive() -> None:
    model = Net()
    optimizer = OPTIMIZERS["adam"](model.parameters())
    run = Run(model, optimizer)
    train(run, 2)
    run.handler.flush()
    gone = weakref.ref(optimizer.state[model.first.weight]["exp_avg"])
    optimizer.state.clear()
    gc.collect()
    assert gone() is None
    run.event()
    run.check()
    run.handler.close()
