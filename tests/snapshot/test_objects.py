"""Objects of users' classes, and everything that has no rule of its own."""

from __future__ import annotations

import copy
import functools
import logging
import random
import threading
import types
import weakref
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import BaseModel, ConfigDict, PrivateAttr

from async_trainer.snapshot import Memo, Scope, capture, open_value, take
from tests.kinds import Batch, Frozen, State


@dataclass(frozen=True)
class Settings:
    name: str
    sizes: tuple[int, ...] = (1, 2)
    inner: Any = None


@dataclass
class Strict:
    numbers: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        if not self.numbers:
            raise AssertionError("__init__ must not run")


class Stubborn:
    """It says itself how it is copied."""

    def __init__(self, held: Any) -> None:
        self.held = held
        self.copies = 0

    def __deepcopy__(self, memo: dict[int, Any]) -> Stubborn:
        made = Stubborn(copy.deepcopy(self.held, memo))
        made.copies = self.copies + 1
        return made


class Singleton:
    def __deepcopy__(self, memo: dict[int, Any]) -> Singleton:
        return self


class Settled(BaseModel):
    """Settings, with a private attribute, one that isn't set yet, and whatever else it is given."""

    model_config = ConfigDict(extra="allow", validate_assignment=True)
    sizes: list[int] = [1]
    rate: float = 0.5
    _seen: list[int] = PrivateAttr(default_factory=list)
    _later: int = PrivateAttr()


class StubbornSettled(Settled):
    def __deepcopy__(self, memo: Any = None) -> StubbornSettled:
        return self


class Node:
    def __init__(self, parent: Node | None = None) -> None:
        self.parent = weakref.ref(parent) if parent else None
        self.me = self
        self.children = [Node(self)] if parent is None else []


class Stated:
    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.numbers = [1]

    def __getstate__(self) -> dict[str, Any]:
        return {"numbers": self.numbers}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self.lock = threading.Lock()


class Keeper:
    def __init__(self) -> None:
        self.seen = [1]

    def add(self, value: int) -> None:
        self.seen.append(value)


def test_init_does_not_run_for_a_dataclass() -> None:
    value = Strict([1])
    value.numbers.clear()
    assert capture(value).numbers == []


def test_a_frozen_dataclass_is_by_reference_only_if_nothing_in_it_can_change() -> None:
    plain = Settings("a")
    assert capture(plain) is plain
    nested = Settings("a", inner=Settings("b"))
    assert capture(nested) is nested
    holding = Settings("a", inner=[1])
    got = capture(holding)
    assert got == holding
    assert got.inner is not holding.inner


def test_a_frozen_dataclass_that_leads_to_itself_is_rebuilt() -> None:
    value = Settings("a", inner=[])
    value.inner.append(value)
    got = capture(value)
    assert got is not value
    assert got.inner[0] is got


def test_what_a_frozen_dataclass_computes_later_is_no_matter() -> None:
    value = Frozen()
    taken = take(value, Memo())
    object.__setattr__(value, "cached", 1)
    assert not hasattr(open_value(taken, Scope()), "cached")


def test_a_batch_is_rebuilt_with_tensors_that_have_a_graph() -> None:
    value = Batch()
    value.x = torch.ones(2, requires_grad=True) * 2
    got = capture(value)
    assert type(got) is Batch
    assert got.x.grad_fn is None
    assert got.to("cpu") is got


def test_any_object_gives_each_hook_one_of_its_own() -> None:
    taken = take(Keeper(), Memo())
    first, second = open_value(taken, Scope()), open_value(taken, Scope())
    first.add(2)
    assert second.seen == [1]


def test_within_one_hook_an_object_is_one() -> None:
    keeper = Keeper()
    memo, scope = Memo(), Scope()
    first, second = (open_value(take(value, memo, "x"), scope) for value in ([keeper], {"k": keeper}))
    assert first[0] is second["k"]


def test_an_object_shares_tensors_and_models_with_the_other_arguments() -> None:
    model = torch.nn.Linear(2, 2)
    value = types.SimpleNamespace(model=model, keeper=Keeper())
    value.keeper.weight = model.weight
    memo, scope = Memo(), Scope()
    got_model = open_value(take(model, memo, "model"), scope)
    got = open_value(take(value, memo, "value"), scope)
    assert got.model is got_model
    assert got.keeper.weight is got_model.weight


def test_an_object_that_says_how_it_is_copied_is_asked_once_per_event_and_once_per_hook() -> None:
    taken = take(Stubborn([1]), Memo())
    first, second = open_value(taken, Scope()), open_value(taken, Scope())
    first.held.append(2)
    assert second.held == [1]
    assert (first.copies, second.copies) == (2, 2)


def test_an_object_that_says_how_it_is_copied_shares_what_was_captured_before() -> None:
    weight = torch.ones(100_000)
    memo, scope = Memo(), Scope()
    shared = open_value(take(weight, memo, "weight"), scope)
    got = open_value(take([Stubborn(weight), Stubborn(weight)], memo, "value"), scope)
    assert got[0].held is got[1].held is shared
    assert memo.nbytes == weight.nbytes


def test_an_object_that_cannot_copy_itself_is_copied_by_its_parts() -> None:
    output = torch.ones(2, requires_grad=True) * 2
    got = capture(Stubborn(output))
    assert torch.equal(got.held, output)
    assert got.held.grad_fn is None


def test_an_object_that_copies_to_itself_stays_itself() -> None:
    value = Singleton()
    assert capture([value])[0] is value


def test_a_pydantic_model_is_rebuilt_with_all_that_it_has() -> None:
    live = Settled.model_validate({"sizes": [1, 2], "more": [3]})
    live._seen.append(4)
    taken = take(live, Memo())
    first, second = open_value(taken, Scope()), open_value(taken, Scope())
    for got in (first, second):
        assert type(got) is Settled
        assert got == live  # its fields, those that were set, what is more, and what is private
        assert got.model_dump_json() == '{"sizes":[1,2],"rate":0.5,"more":[3]}'
    first.sizes.append(5)
    first._seen.append(5)
    first.rate = 1.0
    first._later = 6
    assert first.model_extra is not None
    first.model_extra["more"].append(5)
    assert second == live
    assert (live.sizes, live._seen, live.rate, live.model_extra) == ([1, 2], [4], 0.5, {"more": [3]})
    assert live.model_fields_set == {"sizes", "more"}
    live._later = 7
    with pytest.raises(AttributeError):
        _ = second._later


def test_a_pydantic_model_that_says_how_it_is_copied_is_asked() -> None:
    live = StubbornSettled()
    assert capture([live])[0] is live


def test_cycles_and_weak_references_to_what_is_captured_lead_to_the_copy() -> None:
    got = capture(Node())
    assert got.me is got
    assert got.children[0].parent() is got
    assert got.children[0].me is got.children[0]


def test_a_weak_reference_to_anything_else_stays_as_it_is() -> None:
    keeper = Keeper()
    assert capture(weakref.ref(keeper))() is keeper


def test_getstate_and_setstate_are_used() -> None:
    value = Stated()
    got = capture(value)
    value.numbers.append(2)
    assert got.numbers == [1]
    assert got.lock is not value.lock


def test_a_bound_method_is_bound_to_the_copy() -> None:
    keeper = Keeper()
    got = capture({"add": keeper.add, "keeper": keeper})
    got["add"](5)
    assert got["keeper"].seen == [1, 5]
    assert keeper.seen == [1]


def test_a_partial_is_bound_to_copies() -> None:
    keeper = Keeper()
    capture(functools.partial(keeper.add, 3))()
    assert keeper.seen == [1]


@pytest.mark.parametrize(
    "make",
    [lambda: random.Random(3), lambda: np.random.default_rng(3), lambda: torch.Generator().manual_seed(3)],
    ids=["random", "numpy", "torch"],
)
def test_a_generator_of_random_numbers_is_copied_with_its_state(make: Any) -> None:
    def draw(generator: Any) -> Any:
        if isinstance(generator, torch.Generator):
            return torch.rand(3, generator=generator).tolist()
        return [generator.random() for _ in range(3)]

    live = make()
    got = capture(live)
    draw(live)
    assert draw(got) == draw(make())


def test_references_stay_references() -> None:
    module, error, logger = types, ValueError("x"), logging.getLogger("x")
    loader = torch.utils.data.DataLoader([1, 2])
    for value in (module, error, logger, loader, loader.dataset and State, print, len, torch.float32, object()):
        assert capture(value) is value
