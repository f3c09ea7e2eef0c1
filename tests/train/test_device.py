"""Batches on a device: all the ways in which they are nested. The device ``meta`` stands for an accelerator."""

from __future__ import annotations

import dataclasses
import types
from collections import OrderedDict, UserDict, defaultdict, namedtuple
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor

from async_trainer import ComputationalConfig
from async_trainer.train.device import to_device

Pair = namedtuple("Pair", ["x", "y"])


class Typed(NamedTuple):
    x: Tensor
    name: str


@dataclass(frozen=True)
class Frozen:
    x: Tensor
    name: str = "a"


@dataclass(slots=True)
class Made:
    x: Tensor
    twice: Tensor = field(init=False)
    made: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        self.twice = self.x * 2
        self.made += 1


class Graph:
    """It moves itself."""

    def __init__(self, x: Tensor) -> None:
        self.x = x

    def to(self, device: torch.device) -> Graph:
        return Graph(self.x.to(device))


class InPlace(Graph):
    def to(self, device: torch.device) -> None:  # type: ignore[override]
        self.x = self.x.to(device)


class Names(list):  # type: ignore[type-arg]
    """A list of a class of its own."""


@pytest.fixture
def meta(monkeypatch: pytest.MonkeyPatch) -> ComputationalConfig:
    monkeypatch.setattr(ComputationalConfig, "torch_device", torch.device("meta"))
    return ComputationalConfig()


X = torch.zeros(2, 3)


def test_a_tensor_moves(meta: ComputationalConfig) -> None:
    assert to_device(X, meta).device.type == "meta"


def test_a_tensor_that_is_there_stays_itself() -> None:
    assert to_device(X, ComputationalConfig(device="cpu")) is X


@pytest.mark.parametrize(
    "batch",
    [
        [X, "a"],
        (X, "a"),
        Names([X, "a"]),
        {"x": X, "name": "a"},
        OrderedDict(x=X, name="a"),
        UserDict(x=X, name="a"),
        types.MappingProxyType({"x": X, "name": "a"}),
        Pair(X, "a"),
        Typed(X, "a"),
        Frozen(X),
    ],
    ids=lambda batch: type(batch).__name__,
)
def test_containers_are_rebuilt_of_their_own_kind(batch: Any, meta: ComputationalConfig) -> None:
    moved = to_device(batch, meta)
    assert type(moved) is type(batch)
    x, name = (moved.x, moved.name) if isinstance(moved, (Typed, Frozen)) else (
        moved.values() if hasattr(moved, "values") else moved
    )  # fmt: skip
    assert x.device.type == "meta"
    assert name == "a"
    assert moved is not batch
    assert X.device.type == "cpu"


def test_a_mapping_that_can_not_be_made_of_one_becomes_a_dict(meta: ComputationalConfig) -> None:
    moved = to_device(defaultdict(list, x=X), meta)
    assert type(moved) is dict
    assert moved["x"].device.type == "meta"


def test_what_is_nested_moves_too(meta: ComputationalConfig) -> None:
    moved = to_device({"a": [(X, {"b": Pair(Frozen(X), [X])})]}, meta)
    inner = moved["a"][0][1]["b"]
    assert moved["a"][0][0].device.type == inner.x.x.device.type == inner.y[0].device.type == "meta"


def test_of_a_dataclass_all_fields_move_and_nothing_is_made_again(meta: ComputationalConfig) -> None:
    batch = Made(X)
    batch.twice = X + 5
    moved = to_device(batch, meta)
    assert (moved.x.device.type, moved.twice.device.type, moved.made) == ("meta", "meta", 1)
    assert batch.x is X


@pytest.mark.parametrize("kind", [Graph, InPlace])
def test_what_has_a_to_moves_itself(kind: Any, meta: ComputationalConfig) -> None:
    moved = to_device([kind(X)], meta)[0]
    assert type(moved) in (Graph, InPlace)
    assert moved.x.device.type == "meta"


def test_a_packed_sequence_keeps_its_lengths_on_the_cpu(meta: ComputationalConfig) -> None:
    packed = torch.nn.utils.rnn.pack_sequence([torch.zeros(3), torch.zeros(2)])
    moved = to_device({"x": packed}, meta)["x"]
    assert type(moved) is type(packed)
    assert moved.data.device.type == "meta"
    assert moved.batch_sizes.device.type == "cpu"


@pytest.mark.parametrize(
    "leaf", ["text", 3, None, b"bytes", np.zeros(2), object(), Graph, {1, 2}, dataclasses.fields(Frozen)[0]],
    ids=lambda leaf: type(leaf).__name__,
)  # fmt: skip
def test_what_is_no_tensor_stays_itself(leaf: Any, meta: ComputationalConfig) -> None:
    assert to_device(leaf, meta) is leaf
    assert to_device({"x": [leaf]}, meta)["x"][0] is leaf


def test_channels_last_is_for_what_has_four_dimensions() -> None:
    config = ComputationalConfig(device="cpu", channels_last=True)
    batch = [torch.zeros(2, 3, 4, 5), torch.zeros(2, 3), torch.zeros(2, 3, 4), torch.zeros(2, 3, 4, 5, 6)]
    images, *others = to_device(batch, config)
    assert images.is_contiguous(memory_format=torch.channels_last)
    assert not images.is_contiguous()
    assert all(one is other for one, other in zip(others, batch[1:], strict=True))
    assert to_device(batch[0], ComputationalConfig(device="cpu")).is_contiguous()


def test_to_the_cpu_nothing_is_left_under_way(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[bool] = []

    class Asks(Tensor):
        def to(self, *_: Any, non_blocking: bool = False, **__: Any) -> Any:  # type: ignore[override]
            asked.append(non_blocking)
            return self

    batch = torch.zeros(2).as_subclass(Asks)
    to_device(batch, ComputationalConfig(device="cpu"))
    monkeypatch.setattr(ComputationalConfig, "torch_device", torch.device("meta"))
    to_device(batch, ComputationalConfig())
    assert asked == [False, True]
