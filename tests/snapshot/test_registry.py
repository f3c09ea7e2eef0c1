"""The registry, and the books of one event."""

from __future__ import annotations

import copy
import enum
import pathlib
import threading
import types
from collections import OrderedDict
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

from async_trainer.errors import CaptureError
from async_trainer.snapshot import SMALL, Memo, Scope, capture, open_value, size, take
from async_trainer.snapshot.registry import Registry

BIG = 100_000


class Config:
    def __init__(self, lock: Any = None) -> None:
        self.lock = lock or threading.Lock()
        self.lr = [0.1]


class SubConfig(Config):
    pass


class Colour(enum.Enum):
    RED = 1


@pytest.fixture
def registry() -> Iterator[Registry]:
    before = dict(capture._registered)
    yield capture
    capture._registered.clear()
    capture._registered.update(before)
    capture.kinds.clear()
    capture.references.clear()


def test_a_registered_function_says_what_hooks_get(registry: Registry) -> None:
    with pytest.raises(CaptureError, match=r"value\.lock"):
        capture_twice = take(Config(), Memo(), "value")

    @registry.register(Config)
    def _(live: Config) -> dict[str, Any]:
        return {"lr": list(live.lr)}

    live = Config()
    memo = Memo()
    taken = take([live, live, SubConfig()], memo, "value")
    live.lr.append(0.2)
    got = open_value(taken, Scope())
    assert got == [{"lr": [0.1]}] * 3
    assert got[0] is got[1]
    capture_twice = open_value(taken, Scope())
    assert capture_twice == got


def test_a_registered_function_wins_over_the_rules(registry: Registry) -> None:
    registry.register(torch.Tensor)(lambda live: ("tensor", live.shape))
    registry.register(dict)(lambda live: "a dict")
    assert capture([torch.ones(2), {}]) == [("tensor", (2,)), "a dict"]


def test_a_type_may_be_registered_after_it_was_met(registry: Registry) -> None:
    assert capture([Colour.RED, (Colour.RED,)]) == [Colour.RED, (Colour.RED,)]
    registry.register(Colour)(lambda live: live.name)
    assert capture([Colour.RED, (Colour.RED,)]) == ["RED", ("RED",)]


def test_the_nearest_registered_class_wins(registry: Registry) -> None:
    registry.register(Config)(lambda live: "base")
    registry.register(SubConfig)(lambda live: "sub")
    assert capture([SubConfig(), Config()]) == ["sub", "base"]


def test_a_registered_function_that_fails_is_named(registry: Registry) -> None:
    @registry.register(Config)
    def _(live: Config) -> None:
        raise KeyError("missing")

    with pytest.raises(CaptureError, match=r"model\['c'\]: the function registered for Config failed \(KeyError"):
        take({"c": Config()}, Memo(), "model")


def test_what_a_registered_function_copies_is_counted(registry: Registry) -> None:
    registry.register(Config)(lambda live: torch.ones(BIG))
    memo = Memo()
    take(Config(), memo, "value")
    assert memo.nbytes == 4 * BIG


@pytest.mark.parametrize("value", [1, 1.5, 2j, True, None, "a", b"a", Colour.RED, pathlib.Path("a"), np.float64(1)])
def test_plain_values_are_plain_and_by_reference(value: Any) -> None:
    kind = capture.kind(type(value))
    assert kind.plain
    assert kind.take is None
    assert take(value, Memo()) is value


@pytest.mark.parametrize("value", [torch.ones(()), [1], {}, Config, print, Config.__init__, range(3)])
def test_other_values_are_not_plain(value: Any) -> None:
    assert not capture.kind(type(value)).plain


def test_every_kind_says_how() -> None:
    values = (1, [], {}, torch.ones(1), torch.nn.Linear(1, 1), np.ones(1), Config(), Config.__init__)
    hows = [capture.kind(type(value)).how for value in values]
    assert all(hows)
    assert capture.kind(torch.nn.Linear).how == "replica of the module"


def test_small_values_are_outside_the_books() -> None:
    memo = Memo()
    value = {"x": torch.ones(SMALL // 4), "y": np.ones(SMALL // 8)}
    take(value, memo, "batch")
    assert size(value) == memo.nbytes == 0
    assert memo.buffers == []


def test_size_foretells_what_a_capture_copies() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(300, 300), torch.nn.BatchNorm1d(300), torch.nn.Linear(300, 300))
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.randn(4, 300)).sum().backward()
    optimizer.step()
    batch = [{"x": torch.ones(BIG), "again": None}, np.ones(BIG), torch.eye(200).to_sparse(), "text"]
    batch += [types.MappingProxyType({"x": torch.ones(BIG)}), OrderedDict(x=(torch.ones(BIG),))]
    batch[0]["again"] = batch[0]["x"]
    memo = Memo()
    taken = [take(value, memo, "v") for value in (model, {"a": optimizer}, batch)]
    assert size(model, {"a": optimizer}, batch) == memo.nbytes == sum(buffer.nbytes for buffer in memo.buffers)
    assert size(model) == 2 * 4 * 300 * 300
    assert size(optimizer) == 3 * size(model)
    assert len(taken) == 3


def test_size_of_a_cycle_ends() -> None:
    value: list[Any] = [torch.ones(BIG)]
    value.append(value)
    assert size(value) == 4 * BIG


def test_what_an_object_hides_is_counted_when_it_is_copied() -> None:
    class Hidden:
        def __init__(self) -> None:
            self.x = torch.ones(BIG)

        def __reduce__(self) -> tuple[Any, ...]:
            return list, ([torch.ones(BIG)],)

    class Copied:
        def __deepcopy__(self, memo: dict[int, Any]) -> Any:
            return [copy.deepcopy(held, memo) for held in (torch.ones(BIG), np.ones(BIG), "x")]

    for value, nbytes in ((Hidden(), 4 * BIG), (Copied(), 12 * BIG)):
        memo = Memo()
        taken = take(value, memo, "value")
        assert memo.nbytes == nbytes
        del taken


@pytest.mark.parametrize("kept", ["x", "view", "numpy"])
def test_buffers_live_as_long_as_a_hook_keeps_any_part_of_them(kept: str) -> None:
    memo = Memo()
    taken = take({"x": torch.ones(BIG)}, memo, "batch")
    buffers = memo.buffers
    del memo
    scope = Scope()
    got = open_value(taken, scope)["x"]
    got = {"x": lambda x: x, "view": lambda x: x[:3], "numpy": lambda x: x.numpy()}[kept](got)
    scope.close()
    del taken
    assert [buffer() is not None for buffer in buffers] == [True]
    del got
    assert [buffer() is not None for buffer in buffers] == [False]


def test_a_capture_that_fails_leaves_the_books_as_they_were() -> None:
    memo = Memo()
    shared = {"a": torch.ones(BIG)}
    first = take(shared, memo, "first")
    before = (dict(memo.copies), list(memo.alive), memo.nbytes, list(memo.buffers))
    half: dict[str, Any] = {"shared": shared, "inner": [torch.ones(BIG)], "lock": threading.Lock()}
    for value in (half, torch.nn.Module()):
        if isinstance(value, torch.nn.Module):
            value.weight = torch.nn.Parameter(torch.ones(BIG))
            value.lock = half["lock"]
        with pytest.raises(CaptureError):
            take(value, memo, "second")
        assert (memo.copies, memo.alive, memo.nbytes, memo.buffers) == before
        assert memo.batch is None
        assert memo.private is False
    again = take({"inner": half["inner"], "shared": shared}, memo, "third")
    scope = Scope()
    got = open_value(again, scope)
    assert torch.equal(got["inner"][0], torch.ones(BIG))
    assert got["shared"] is open_value(first, scope)


def test_reprs_are_one_line() -> None:
    memo, scope = Memo(), Scope("loss_curve.on_train_start")
    open_value(take([1], memo), scope)
    assert repr(memo) == "Memo(1 values, 0 big bytes)"
    assert repr(scope) == "Scope('loss_curve.on_train_start', 1 opened, 0 stand-ins)"
    assert repr(capture).startswith("<capture: ")
