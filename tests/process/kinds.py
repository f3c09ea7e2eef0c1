"""More kinds of values than tests/kinds.py has: those that a trip to another process might change."""

from __future__ import annotations

import datetime
import decimal
import enum
import fractions
import functools
import operator
import pathlib
import re
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import nn

from async_trainer import ComputationalConfig, OptimizationConfig, TrainerState
from async_trainer.snapshot import Memo, Scope, open_value, take
from tests.nets import seeded
from tests.same import same


class Kind(NamedTuple):
    """One kind of value; ``make`` gives an equal one each time, in each process."""

    name: str
    make: Callable[[], Any]

    def equal(self, received: Any) -> bool:
        """Whether it is what a hook of a thread lane would have got."""
        here = open_value(take(self.make(), Memo(), "value"), Scope())
        return same(received, here) and layout_of(received) == layout_of(here)


def layout_of(value: Any) -> Any:
    if not isinstance(value, torch.Tensor) or value.layout is not torch.strided or value.is_nested:
        return None
    return value.stride(), value.requires_grad, value.is_conj(), value.is_neg(), vars(value)


class Colour(enum.Enum):
    RED = 1


class Level(enum.IntFlag):
    LOW = 1
    HIGH = 2


class Point(NamedTuple):
    x: Any
    y: Any = 2


@dataclass
class Node:
    value: Any
    next: Any = None


class Tagged(torch.Tensor):
    """A tensor class of the user's."""


class Unit:
    """By its own protocol."""

    def __init__(self, value: float) -> None:
        self.value = value

    def __reduce__(self) -> Any:
        return Unit, (self.value,)


def marked() -> torch.Tensor:
    tensor = torch.ones(2)
    tensor.mark = "a"  # type: ignore[attr-defined]
    return tensor


def cycle() -> Node:
    node = Node(1)
    node.next = Node(torch.ones(2), node)
    return node


def masked() -> Any:
    return np.ma.masked_array([1.0, 2.0], mask=[True, False])


def frozen_net() -> nn.Module:
    net = seeded(lambda: nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3)))
    net[0].requires_grad_(False)
    return net.eval()


def half_net() -> nn.Module:
    return seeded(lambda: nn.Sequential(nn.Linear(300, 300), nn.Linear(3, 3))).to(torch.bfloat16)


DTYPES = [
    torch.float16, torch.bfloat16, torch.float64, torch.int8, torch.uint8, torch.int16, torch.int64, torch.uint16,
    torch.uint32, torch.uint64, torch.complex64, torch.complex128, torch.bool, torch.float8_e4m3fn, torch.float8_e5m2,
]  # fmt: skip


def of_dtype(dtype: torch.dtype, size: int) -> Callable[[], Any]:
    return lambda: (torch.arange(size) % 2).to(dtype)


TENSORS = {
    **{f"{dtype}, {size}".removeprefix("torch."): of_dtype(dtype, size) for dtype in DTYPES for size in (3, 200_000)},
    "0-d of bfloat16": lambda: torch.tensor(1.5, dtype=torch.bfloat16),
    "empty": lambda: torch.empty(0),
    "empty, 2-d": lambda: torch.empty(0, 3),
    "channels last": lambda: torch.arange(48.0).view(1, 3, 4, 4).to(memory_format=torch.channels_last),
    "big, channels last": lambda: (
        torch.arange(60_000.0).view(1, 3, 100, 200).to(memory_format=torch.channels_last)
    ),
    "channels last 3d": lambda: torch.ones(1, 2, 3, 4, 5).to(memory_format=torch.channels_last_3d),
    "big, channels last 3d": lambda: (
        torch.arange(60_000.0).view(1, 2, 3, 100, 100).to(memory_format=torch.channels_last_3d)
    ),
    "transposed": lambda: torch.arange(6.0).view(2, 3).t(),
    "big, transposed": lambda: torch.arange(60_000.0).view(200, 300).t(),
    "big, a view with steps": lambda: torch.arange(120_000.0)[::2],
    "big, a view of the middle": lambda: torch.arange(120_000.0)[50_000:],
    "big, expanded": lambda: torch.arange(300.0).expand(200, 300),
    "small, expanded": lambda: torch.arange(3.0).expand(2, 3),
    "conjugated": lambda: torch.tensor([1 + 2j]).conj(),
    "negated": lambda: torch.tensor([1 + 2j]).conj().imag,
    "quantized": lambda: torch.quantize_per_tensor(torch.arange(3.0), 0.5, 0, torch.qint8),
    "big, sparse": lambda: torch.eye(3000).to_sparse(),
    "sparse csc": lambda: torch.eye(3).to_sparse_csc(),
    "sparse bsr": lambda: torch.eye(4).to_sparse_bsr((2, 2)),
    "on meta": lambda: torch.empty(3, device="meta"),
    "big, on meta": lambda: torch.empty(300_000, device="meta"),
    "in inference mode": lambda: torch.inference_mode()(lambda: torch.ones(3))(),
    "big, in inference mode": lambda: torch.inference_mode()(lambda: torch.ones(30_000))(),
    "of the user's class": lambda: torch.arange(3.0).as_subclass(Tagged),
    "big, of the user's class": lambda: torch.arange(30_000.0).as_subclass(Tagged),
    "with an attribute": marked,
    "a parameter": lambda: nn.Parameter(torch.arange(3.0)),
    "a frozen parameter": lambda: nn.Parameter(torch.arange(30_000.0), requires_grad=False),
    "a buffer": lambda: nn.Buffer(torch.ones(3)),
    "with strides of its own": lambda: torch.arange(8.0).as_strided((2, 2), (4, 1)),
    "of size 1, with odd strides": lambda: torch.ones(1).as_strided((1, 1), (7, 5)),
    "torch.Size": lambda: torch.Size([1, 2]),
    "a dtype": lambda: torch.float32,
    "a device": lambda: torch.device("cpu"),
}  # fmt: skip

FRAMES = {
    "numpy columns": lambda: pd.DataFrame({"a": [1, 2], "b": [0.5, None]}),
    "objects": lambda: pd.DataFrame({"a": np.array([[1], {"k": torch.ones(2)}], dtype=object)}),
    "text": lambda: pd.DataFrame({"a": ["x", None]}),
    "categories": lambda: pd.DataFrame({"a": pd.Categorical(["x", "y"], ordered=True)}),
    "dates with a time zone": lambda: pd.DataFrame({"a": pd.date_range("2026-01-01", periods=2, tz="Europe/Paris")}),
    "nullable integers": lambda: pd.DataFrame({"a": pd.array([1, None], dtype="Int64")}),
    "nullable booleans": lambda: pd.DataFrame({"a": pd.array([True, None], dtype="boolean")}),
    "periods": lambda: pd.DataFrame({"a": pd.period_range("2026-01", periods=2, freq="M")}),
    "intervals": lambda: pd.DataFrame({"a": pd.interval_range(0, 2)}),
    "time differences": lambda: pd.DataFrame({"a": pd.to_timedelta(["1s", "2s"])}),
    "sparse": lambda: pd.DataFrame({"a": pd.arrays.SparseArray([0, 1])}),
    "two indices": lambda: pd.DataFrame({"a": [1, 2]}, index=pd.MultiIndex.from_tuples([("x", 1), ("y", 2)])),
    "one name twice": lambda: pd.DataFrame([[1, 2]], columns=["a", "a"]),
    "empty": lambda: pd.DataFrame(),
    "big": lambda: pd.DataFrame({"a": np.arange(30_000.0), "b": np.arange(30_000), "c": ["x"] * 30_000}),
    "big, of one block": lambda: pd.DataFrame(np.arange(60_000.0).reshape(-1, 4)),
    "big series": lambda: pd.Series(np.arange(30_000.0), name="n"),
    "big index": lambda: pd.Index(np.arange(30_000)),
    "a timestamp": lambda: pd.Timestamp("2026-01-01", tz="UTC"),
    "NA": lambda: pd.NA,
    "NaT": lambda: pd.NaT,
}

ARRAYS = {
    "big, in Fortran's order": lambda: np.asfortranarray(np.arange(60_000.0).reshape(200, 300)),
    "big, a view with steps": lambda: np.arange(120_000)[::2],
    "0-d": lambda: np.array(1.5),
    "text": lambda: np.array(["a", "bc"]),
    "dates": lambda: np.array(["2026-01-01"], dtype="datetime64[D]"),
    "big dates": lambda: np.arange(30_000).astype("datetime64[s]"),
    "big records": lambda: np.zeros(20_000, dtype=[("a", int), ("b", float)]),
    "big-endian": lambda: np.arange(3, dtype=">i4"),
    "a scalar": lambda: np.float32(1.5),
    "masked": masked,
    "a generator": lambda: np.random.default_rng(0).integers(5),
    "half": lambda: np.arange(40_000, dtype=np.float16),
}

PLAIN = {
    "complex": lambda: 1 + 2j,
    "not a number": lambda: float("nan"),
    "a big integer": lambda: 10**400,
    "big bytes": lambda: b"ab" * 100_000,
    "big bytearray": lambda: bytearray(b"ab" * 100_000),
    "big text": lambda: "é" * 100_000,
    "a surrogate": lambda: "\ud800",
    "enum": lambda: Colour.RED,
    "flags": lambda: Level.LOW | Level.HIGH,
    "named tuple": lambda: Point(torch.ones(2)),
    "path": lambda: pathlib.Path("a/b"),
    "date": lambda: datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC),
    "decimal": lambda: decimal.Decimal("1.10"),
    "fraction": lambda: fractions.Fraction(1, 3),
    "uuid": lambda: uuid.UUID(int=5),
    "range": lambda: range(3),
    "slice": lambda: slice(1, None),
    "frozenset": lambda: frozenset({1, 2}),
    "pattern": lambda: re.compile("a+"),
    "ellipsis": lambda: ...,
    "not implemented": lambda: NotImplemented,
    "function": lambda: operator.add,
    "class": lambda: Node,
    "generic": lambda: list[int],
    "partial": lambda: functools.partial(operator.add, 1),
    "cycle": cycle,
    "by its own protocol": lambda: Unit(1.5),
    "deep": lambda: functools.reduce(lambda inner, _: [inner], range(100), []),
    "keys of all sorts": lambda: {1: "a", "b": 2, (1, 2): 3, None: 4, Colour.RED: 5},
    "state": lambda: TrainerState(called="train", optim_step=3),
    "optimization": lambda: OptimizationConfig(num_epochs=3),
    "computational": lambda: ComputationalConfig(),
}

MODULES = {
    "frozen": frozen_net,
    "bfloat16": half_net,
    "on meta": lambda: nn.Linear(3, 3, device="meta"),
    "with a lambda": lambda: lambda_net(),
}


def lambda_net() -> nn.Module:
    net = nn.Sequential(seeded(lambda: nn.Linear(3, 3)))
    net.act = lambda x: x.relu()  # type: ignore[assignment]
    net.table = {"f": lambda x: x + 1}  # type: ignore[assignment]
    return net


KINDS = [
    Kind(f"{group}: {name}", make)
    for group, kinds in (
        ("tensor", TENSORS), ("frame", FRAMES), ("array", ARRAYS), ("plain", PLAIN), ("module", MODULES)
    )
    for name, make in kinds.items()
]  # fmt: skip
