"""numpy arrays."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from async_trainer.errors import CaptureError
from async_trainer.snapshot import Memo, Scope, capture, open_value, size, take
from tests.same import same

ARRAYS: dict[str, Any] = {
    "0-d": lambda: np.array(2.0),
    "fortran": lambda: np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    "strided": lambda: np.arange(10)[::3],
    "structured": lambda: np.zeros(2, dtype=[("a", int), ("b", float)]),
    "text": lambda: np.array(["a", "bc"]),
    "dates": lambda: np.array(["2020-01-01"], dtype="datetime64[D]"),
    "objects": lambda: np.array([[1, [2]], [None, {"k": 3}]], dtype=object),
    "0-d object": lambda: np.array({"k": [1]}, dtype=object),
    "empty objects": lambda: np.empty((0, 2), dtype=object),
    "objects in fields": lambda: np.array([(1, [2]), (3, None)], dtype=[("a", int), ("b", object)]),
    "big": lambda: np.arange(20_000.0),
}


@pytest.mark.parametrize("make", ARRAYS.values(), ids=ARRAYS.keys())
def test_any_array_is_captured_whole_with_its_layout(make: Any) -> None:
    live = make()
    got = capture(live)
    assert same(got, live)
    assert got.flags.f_contiguous == live.copy("K").flags.f_contiguous
    assert not np.shares_memory(got, live) or not live.size


def test_masks_matrices_and_records_keep_their_class() -> None:
    masked = np.ma.array([1, 2], mask=[False, True])
    got = capture(masked)
    masked.mask[0] = True
    assert type(got) is np.ma.MaskedArray
    assert got.mask.tolist() == [False, True]
    assert type(capture(np.rec.array([(1, 2.0)], names="a,b"))) is np.recarray


def test_small_arrays_are_each_hooks_own_and_big_ones_are_views_of_one() -> None:
    for make, shared in ((lambda: np.zeros(3), False), (lambda: np.zeros(20_000), True)):
        taken = take(make(), Memo(), "x")
        first, second = open_value(taken, Scope()), open_value(taken, Scope())
        assert first is not second
        assert np.shares_memory(first, second) is shared


def test_an_array_within_a_module_is_each_replicas_own() -> None:
    model = torch.nn.Module()
    model.table = np.zeros(20_000)
    memo = Memo()
    take([model.table], memo, "batch")
    taken = take(model, memo, "model")
    first, second = open_value(taken, Scope()), open_value(taken, Scope())
    first.table += 1
    assert second.table.sum() == 0


def test_an_array_met_twice_is_one() -> None:
    live = np.zeros(20_000)
    memo = Memo()
    got = open_value(take({"a": live, "b": [live]}, memo, "x"), Scope())
    assert got["a"] is got["b"][0]
    assert memo.nbytes == size(live) == live.nbytes


def test_an_array_that_contains_itself_is_rebuilt() -> None:
    live = np.empty(1, dtype=object)
    live[0] = [live]
    got = capture(live)
    assert got[0][0] is got
    live[0] = None


def test_scalars_come_by_reference_and_records_by_value() -> None:
    scalar = np.float32(1.5)
    assert capture(scalar) is scalar
    table = np.array([(1, 2.0)], dtype=[("a", int), ("b", float)])
    got = capture(table[0])
    table["a"] = 9
    assert got["a"] == 1


def test_a_cell_that_cannot_be_captured_is_named() -> None:
    live = np.array([1, (i for i in ())], dtype=object)
    with pytest.raises(CaptureError, match=r"x\[1\]: a generator"):
        take(live, Memo(), "x")
