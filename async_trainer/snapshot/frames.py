"""pandas: DataFrame, Series, Index, and the arrays and scalars that they are made of."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from async_trainer.snapshot.containers import take_items
from async_trainer.snapshot.kind import REFERENCE, SMALL, Kind
from async_trainer.snapshot.memo import Memo
from async_trainer.snapshot.registry import Rule, capture
from async_trainer.snapshot.sealed import Scope, Sealed, SealedNode, open_value

_PLAIN_CELLS = frozenset(
    {"string", "bytes", "floating", "integer", "mixed-integer-float", "decimal", "complex", "boolean", "empty"}
    | {"datetime64", "datetime", "date", "timedelta64", "timedelta", "time", "period", "interval"}
)
_references = capture.references


class SealedFrame(SealedNode):
    """A DataFrame or Series: each hook gets a frame of its own, over the same columns as long as it writes to none.

    Attributes:
        copied: a copy, lazy where pandas copies on write.
        cells: place of a column -> its captured cells, where some cell isn't plain.
    """

    __slots__ = ("cells", "copied")

    def __init__(self, copied: Any) -> None:
        self.copied = copied
        self.cells: dict[int, list[Any]] = {}

    def open(self, scope: Scope) -> Any:
        if self in scope.opened:
            return scope.opened[self]
        opened = self.copied.copy(deep=not copies_on_write())
        for place, cells in self.cells.items():
            column = np.empty(len(cells), dtype=object)
            for row, cell in enumerate(cells):
                column[row] = open_value(cell, scope)
            if isinstance(opened, pd.Series):
                opened.iloc[:] = column
            else:
                opened.isetitem(place, pd.Series(column, index=opened.index, dtype=object))
        scope.opened[self] = opened
        return opened


class SealedValues(Sealed):
    """An Index or an extension array: each hook gets a copy."""

    __slots__ = ("copied",)

    def __init__(self, copied: Any) -> None:
        self.copied = copied

    def open(self, scope: Scope) -> Any:
        if self not in scope.opened:
            scope.opened[self] = self.copied.copy()
        return scope.opened[self]


def copies_on_write() -> bool:
    """Whether a shallow copy is isolated: always from pandas 3, by an option in pandas 2."""
    if int(pd.__version__.partition(".")[0]) >= 3:
        return True
    return pd.get_option("mode.copy_on_write") is True


def take_frame(value: Any, memo: Memo) -> Any:
    """A shallow copy under copy-on-write, else a deep one; cells that are objects are captured too. TRAINING THREAD.

    Not protected (pandas itself does not): a frame made with ``copy=False`` over an array that is written later, and
    writes to ``column.array``; of frames up to ``SMALL``, which are copied deeply, both are.
    """
    known = memo.copies.get(id(value))
    if known is not None:
        return memo.again(known)
    nbytes = _nbytes(value)
    if nbytes > SMALL:
        memo.at_once()
    copied = value.copy(deep=nbytes <= SMALL or not copies_on_write())
    sealed = SealedFrame(copied)
    memo.begin(value, sealed)
    for place, column in _object_columns(value):
        if pd.api.types.infer_dtype(column, skipna=True) in _PLAIN_CELLS:
            continue
        if not _references.issuperset(map(type, column)):
            take_items(column, sealed.cells.setdefault(place, []), memo)
    sealed.done = True
    if nbytes > SMALL:
        for values in _values(copied):
            memo.hold(_memory(values), values.nbytes)
    return sealed


def _object_columns(value: Any) -> list[tuple[int, Any]]:
    if isinstance(value, pd.Series):
        return [(0, value)] if _holds_objects(value.dtype) else []
    if not any(_holds_objects(values.dtype) for values in _values(value)):
        return []
    return [(place, value.iloc[:, place]) for place, dtype in enumerate(value.dtypes) if _holds_objects(dtype)]


def _holds_objects(dtype: Any) -> bool:
    return isinstance(dtype, np.dtype) and dtype.hasobject


def _values(value: Any) -> list[Any]:
    # A few blocks instead of hundreds of columns: 0.3 µs instead of 300. Private, hence the fallback.
    try:
        return [block.values for block in value._mgr.blocks]
    except AttributeError:
        columns = [value] if isinstance(value, pd.Series) else [column for _, column in value.items()]
        return [column.array for column in columns]


def _memory(values: Any) -> object:
    # What stays alive while any view of it does: a hook's own frame holds views of the same array.
    memory = getattr(values, "_ndarray", values)
    while isinstance(memory, np.ndarray) and isinstance(memory.base, np.ndarray):
        memory = memory.base
    return memory


def _nbytes(value: Any) -> int:
    return sum(values.nbytes for values in _values(value))


def _size(value: Any) -> int:
    nbytes = _nbytes(value)
    return nbytes if nbytes > SMALL else 0


def _take_index(value: Any, memo: Memo) -> Any:
    if id(value) not in memo.copies:
        memo.put(value, SealedValues(value.copy()))
    return memo.copies[id(value)]


_FRAME = Kind("copied on write", take_frame, _size)

KINDS: dict[type, Rule] = {
    pd.DataFrame: _FRAME,
    pd.Series: _FRAME,
    pd.Index: Kind("copied", _take_index),
    pd.api.extensions.ExtensionArray: Kind("copied", _take_index),
    pd.api.extensions.ExtensionDtype: REFERENCE,
    pd.Period: REFERENCE,
    pd.Interval: REFERENCE,
    pd.DateOffset: REFERENCE,
    type(pd.NA): REFERENCE,
    type(pd.NaT): REFERENCE,
}
