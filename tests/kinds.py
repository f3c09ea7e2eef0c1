"""Every kind of argument, with every way to change it in place: the table behind the isolation tests."""

from __future__ import annotations

import logging
import types
from collections import Counter, OrderedDict, UserDict, defaultdict, deque, namedtuple
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
import torch

from tests.case import Case, Mutation, add, at, put, set_to
from tests.live_kinds import LIVE


@dataclass
class State:
    epoch: int = 1
    losses: list[float] = field(default_factory=lambda: [0.5, 0.25])
    best: torch.Tensor = field(default_factory=lambda: torch.ones(2))


@dataclass
class Step:
    epoch: int = 1
    stage: str = "train"


class Tally:
    def __init__(self) -> None:
        self.count = 1


@dataclass(slots=True)
class Slotted:
    epoch: int = 1
    best: torch.Tensor = field(default_factory=lambda: torch.ones(2))


@dataclass(frozen=True)
class Frozen:
    name: str = "run"
    sizes: list[int] = field(default_factory=lambda: [1, 2])


class Batch:
    """As a loader makes them: data, and a ``to``."""

    def __init__(self) -> None:
        self.x = torch.ones(2, 3)
        self.ids = ["a", "b"]

    def to(self, device: str) -> Batch:
        return self


class Encoding(UserDict):  # type: ignore[type-arg]
    """As tokenizers return them."""

    def to(self, device: str) -> Encoding:
        return self


class Record(OrderedDict):  # type: ignore[type-arg]
    """As model outputs are: a dict with attributes."""

    def __init__(self) -> None:
        super().__init__(loss=torch.ones(()))
        self.extra = [1]


class Plain:
    def __init__(self) -> None:
        self.numbers = [1, 2]
        self.weight = torch.ones(2, requires_grad=True) * 3


Point = namedtuple("Point", "x y")


def _values(tensor: Any) -> Any:
    return tensor._values()


def _tensor(make: Callable[[], Any], name: str, *mutations: Mutation) -> Case:
    return Case(f"tensor: {name}", make, mutations or (add,))


TENSORS = (
    _tensor(lambda: torch.tensor(1.5), "0-d"),
    _tensor(lambda: torch.ones(300, 100), "big"),
    _tensor(lambda: torch.ones(2, 3, requires_grad=True) * 2, "non-leaf"),
    _tensor(lambda: torch.arange(12.0).view(3, 4)[1:, ::2], "view"),
    _tensor(lambda: torch.arange(3.0).expand(4, 3), "expanded", lambda live: add(live[0])),
    _tensor(lambda: torch.ones(2, dtype=torch.complex64), "complex"),
    _tensor(lambda: torch.ones(2, dtype=torch.bool), "bool", lambda live: live.logical_not_()),
    _tensor(lambda: torch.eye(3).to_sparse(), "sparse", at(_values, add)),
    _tensor(lambda: torch.eye(3).to_sparse_csr(), "sparse csr", at(lambda live: live.values(), add)),
    _tensor(lambda: torch.ones(2), "through numpy", lambda live: live.numpy().fill(7)),
    _tensor(lambda: torch.ones(2), "resized", lambda live: live.resize_(5).fill_(1)),
    _tensor(lambda: torch.nn.Parameter(torch.ones(2)), "parameter"),
)


def _frame() -> pd.DataFrame:
    return pd.DataFrame({"a": [1, 2], "b": ["x", "y"], "c": [[1], {"k": 2}], "d": [0.5, None]}, index=["r", "s"])


FRAMES = (
    Case(
        "DataFrame",
        _frame,
        (
            lambda live: live.__setitem__("a", 0),
            lambda live: live.__setitem__("new", 0),
            lambda live: live.isetitem(1, ["p", "q"]),
            lambda live: live.loc.__setitem__(("r", "d"), 9.0),
            lambda live: live["c"].iloc[0].append(2),
            lambda live: live["c"].iloc[1].update(k=3),
            lambda live: live.__setattr__("index", ["s", "r"]),
            lambda live: live.__delitem__("a"),
            lambda live: live.attrs.update(seen=True),
        ),
    ),
    Case("big DataFrame", lambda: pd.DataFrame(np.ones((3000, 4))), (lambda live: live.iloc.__setitem__((0, 0), 5.0),)),
    Case("Series", lambda: pd.Series([1.0, 2.0]), (put(0, 5.0), set_to("name", "n"))),
    Case("Series of objects", lambda: pd.Series([[1], [2]]), (at(lambda live: live.iloc[1], lambda x: x.append(0)),)),
    Case("Index", lambda: pd.Index([1, 2], name="n"), (set_to("name", "m"),)),
    Case("Categorical", lambda: pd.Categorical(["a", "b"]), (put(0, "b"),)),
)


ARRAYS = (
    Case("array", lambda: np.arange(4.0), (put(0, 9.0),)),
    Case("big array", lambda: np.ones(20_000), (put(0, 9.0),)),
    Case(
        "array of objects",
        lambda: np.array([[1], {"k": 2}, None], dtype=object),
        (lambda a: a[0].append(1), lambda a: a[1].clear()),
    ),
    Case("record", lambda: np.array([(1, 2.0)], dtype=[("a", int), ("b", float)])[0], (put("a", 5),)),
    Case(
        "array with objects in fields",
        lambda: np.array([(1, [2])], dtype=[("a", int), ("b", object)]),
        (lambda live: live["b"][0].append(3), lambda live: live["a"].fill(7)),
    ),
)

CONTAINERS = (
    Case("dict", lambda: {"a": 1, "b": [2]}, (put("a", 5), put("z", 0), lambda d: d["b"].append(1))),
    Case("list", lambda: [1, {"k": torch.ones(2)}], (lambda x: x.append(2), at(lambda x: x[1]["k"], add))),
    Case("tuple", lambda: (1, [2]), (lambda live: live[1].append(3),)),
    Case("set", lambda: {1, 2}, (lambda live: live.add(3),)),
    Case("deque", lambda: deque([[1]], maxlen=2), (lambda live: live.append(3), lambda live: live[0].append(3))),
    Case("defaultdict", lambda: defaultdict(list, a=[1]), (lambda live: live["b"], lambda live: live["a"].append(1))),
    Case("OrderedDict", lambda: OrderedDict(a=1, b=2), (lambda live: live.move_to_end("a"), put("a", 3))),
    Case("Counter", lambda: Counter("aab"), (lambda live: live.update("b"),)),
    Case("namedtuple", lambda: Point([1], 2), (lambda live: live.x.append(1),)),
    Case("bytearray", lambda: bytearray(b"ab"), (put(0, 0),)),
    Case("mapping proxy", lambda: types.MappingProxyType({"a": [1]}), (lambda live: live["a"].append(2),)),
    Case(
        "dict with attributes",
        Record,
        (lambda live: add(live["loss"]), put("loss", 0), lambda live: live.extra.append(2)),
    ),
    Case("dataclass", State, (set_to("epoch", 2), lambda s: s.losses.append(0.0), lambda s: add(s.best))),
    Case("dataclass of plain values", Step, (set_to("epoch", 2), set_to("stage", "test"), set_to("new", 1))),
    Case("object of plain values", Tally, (set_to("count", 2), set_to("new", 1))),
    Case("slotted dataclass", Slotted, (set_to("epoch", 2), lambda s: add(s.best))),
    Case("frozen dataclass", Frozen, (lambda live: live.sizes.append(3), set_to("sizes", []))),
    Case("namespace", lambda: types.SimpleNamespace(a=1, b=[2]), (set_to("a", 2), lambda live: live.b.append(1))),
    Case("batch", Batch, (lambda live: add(live.x), lambda live: live.ids.append("c"), set_to("new", 1))),
    Case("encoding", lambda: Encoding(ids=torch.ones(2)), (put("mask", 1), lambda live: add(live["ids"]))),
    Case("any object", Plain, (lambda live: live.numbers.append(3), lambda live: add(live.weight), set_to("new", 1))),
)


def _log_record() -> logging.LogRecord:
    return logging.LogRecord("run", logging.INFO, "f.py", 3, "losses: %s", ([0.5],), None)


RECORDS = (
    Case(
        "log record",
        _log_record,
        (lambda live: live.args[0].append(0.1), set_to("msg", "losses were: %s"), set_to("levelname", "y")),
        lambda received, before: (received.getMessage(), received.levelname) == (before.getMessage(), before.levelname),
    ),
)

KINDS: tuple[Case, ...] = TENSORS + FRAMES + ARRAYS + CONTAINERS + LIVE + RECORDS
