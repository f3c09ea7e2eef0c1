"""pandas: lazily copied where pandas copies on write, and each hook's own."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import pandas as pd
import pytest
import torch

from async_trainer.errors import CaptureError
from async_trainer.snapshot import Memo, Scope, capture, frames, open_value, size, take
from tests.same import same


def big() -> pd.DataFrame:
    return pd.DataFrame({"a": np.arange(20_000.0), "b": np.arange(20_000)})


class Table(pd.DataFrame):
    """A subclass with metadata."""

    _metadata: ClassVar[list[str]] = ["source"]

    @property
    def _constructor(self) -> Any:
        return Table


def test_each_hook_may_write_to_its_frame() -> None:
    live = big()
    taken = take(live, Memo(), "detailed_metrics_df")
    first, second = open_value(taken, Scope()), open_value(taken, Scope())
    first.loc[0, "a"] = -1.0
    first["new"] = 1
    del first["b"]
    assert same(second, big())
    assert same(live, big())


def test_a_big_frame_is_shared_until_someone_writes() -> None:
    live = big()
    memo = Memo()
    got = open_value(take(live, memo, "df"), Scope())
    assert np.shares_memory(got["a"].to_numpy(), live["a"].to_numpy()) is frames.copies_on_write()
    assert size(live) == memo.nbytes == 20_000 * 16


def test_a_small_frame_is_safe_even_from_writes_that_pandas_does_not_see() -> None:
    values = np.zeros((3, 2))
    live = pd.DataFrame(values, copy=False)
    taken = take(live, Memo(), "df")
    values[:] = 1
    assert (open_value(taken, Scope()) == 0).all(axis=None)
    assert size(live) == 0


def test_without_copy_on_write_frames_are_copied_deeply(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frames, "copies_on_write", lambda: False)
    live = big()
    taken = take(live, Memo(), "df")
    first, second = open_value(taken, Scope()), open_value(taken, Scope())
    live.iloc[0, 0] = 5.0
    first.iloc[1, 0] = 5.0
    assert same(second, big())
    assert not np.shares_memory(first["b"].to_numpy(), second["b"].to_numpy())


def test_cells_that_are_objects_are_captured() -> None:
    tensor = torch.ones(2, requires_grad=True) * 2
    live = pd.DataFrame({"x": [[1], {"k": tensor}, None], "plain": ["a", "b", "c"]}, index=[3, 4, 5])
    live["mixed"] = pd.Series([1, "a", None], index=[3, 4, 5], dtype=object)
    taken = take(live, Memo(), "df")
    live["x"].iloc[0].append(2)
    got, other = open_value(taken, Scope()), open_value(taken, Scope())
    assert got["x"].iloc[0] == [1]
    assert got["x"].iloc[1]["k"].tolist() == [2.0, 2.0]
    assert got["x"].iloc[1]["k"].grad_fn is None
    assert got["x"].iloc[0] is not other["x"].iloc[0]
    assert list(got.index) == [3, 4, 5]
    assert (got.dtypes == live.dtypes).all()
    assert got["mixed"].tolist() == [1, "a", None]


def test_cells_of_two_columns_of_one_name_are_told_apart() -> None:
    live = pd.DataFrame([[[1], [2]]], columns=["c", "c"])
    taken = take(live, Memo(), "df")
    live.iloc[0, 1].append(3)
    assert open_value(taken, Scope()).iloc[0].tolist() == [[1], [2]]


def test_a_cell_that_cannot_be_captured_is_named() -> None:
    with pytest.raises(CaptureError, match=r"df\['k'\]\[1\]: a generator can't be copied"):
        take({"k": pd.Series([1, (i for i in ())], dtype=object)}, Memo(), "df")


def test_a_subclass_keeps_its_class_and_metadata() -> None:
    live = Table({"a": [1]})
    live.source = "file"
    live.attrs["unit"] = ["mm"]
    got = capture(live)
    assert type(got) is Table
    assert got.source == "file"
    assert got.attrs == {"unit": ["mm"]}
    assert got.attrs["unit"] is not live.attrs["unit"]


@pytest.mark.parametrize(
    "value",
    [pd.Timestamp(0), pd.Timedelta(1), pd.NA, pd.NaT, pd.Interval(0, 1), pd.Period("2020"), pd.CategoricalDtype()],
    ids=repr,
)
def test_scalars_come_by_reference(value: Any) -> None:
    assert capture(value) is value


@pytest.mark.parametrize(
    "make",
    [
        lambda: pd.MultiIndex.from_tuples([(1, "a")], names=["n", "s"]),
        lambda: pd.date_range("2020", periods=2, tz="UTC"),
        lambda: pd.array([1, None], dtype="Int64"),
        lambda: pd.Series(pd.Categorical(["a", "b"])),
        lambda: pd.DataFrame(),
        lambda: pd.DataFrame({"a": pd.array(["x", None], dtype="string"), "t": pd.date_range("2020", periods=2)}),
    ],
)
def test_other_pandas_values_are_copied_whole(make: Any) -> None:
    assert same(capture(make()), make())


def test_a_frame_that_a_hook_keeps_keeps_its_memory_in_the_books() -> None:
    live = big()
    memo = Memo()
    taken = take(live, memo, "df")
    buffers = memo.buffers
    scope = Scope()
    got = open_value(taken, scope)
    scope.close()
    del memo, taken, live
    kept = sum(buffer.nbytes for buffer in buffers if buffer() is not None)
    assert kept == (20_000 * 16 if frames.copies_on_write() else 0)
    del got
    assert all(buffer() is None for buffer in buffers)


def test_one_frame_twice_is_one_in_a_hook() -> None:
    live = pd.DataFrame({"a": [1]})
    got = capture([live, live])
    assert got[0] is got[1]
