"""numpy arrays and scalars."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from async_trainer.snapshot.containers import take_items
from async_trainer.snapshot.kind import PLAIN, REFERENCE, SMALL, Kind
from async_trainer.snapshot.memo import Memo
from async_trainer.snapshot.registry import Rule, leaf
from async_trainer.snapshot.sealed import Scope, SealedLeaf, SealedNode, open_value

if TYPE_CHECKING:
    from async_trainer.snapshot.shared import Block

Array = np.ndarray[Any, Any]


class SealedArray(SealedLeaf):
    """An array without objects in it. ``private``: each hook gets a copy, not a view of the shared one."""

    __slots__ = ("private",)

    def __init__(self, copied: Array, private: bool) -> None:
        self.copied = copied
        self.private = private

    def open(self, scope: Scope) -> Array:
        if self not in scope.opened:
            scope.opened[self] = self.copied.copy("K") if self.private else self.copied.view()
        opened: Array = scope.opened[self]
        return opened


class SealedCells(SealedNode):
    """An array of objects: its cells, captured in C order."""

    __slots__ = ("cells", "empty")

    def __init__(self, empty: Array) -> None:
        self.empty = empty
        self.cells: list[Any] = []

    def open(self, scope: Scope) -> Array:
        if self not in scope.opened:
            opened = scope.opened[self] = np.empty_like(self.empty)
            for place, cell in enumerate(self.cells):
                opened.flat[place] = open_value(cell, scope)
        made: Array = scope.opened[self]
        return made


class SealedFields(SealedNode):
    """A structured array with objects in it: its fields, captured as arrays of their own."""

    __slots__ = ("empty", "fields")

    def __init__(self, empty: Array) -> None:
        self.empty = empty
        self.fields: dict[str, Any] = {}

    def open(self, scope: Scope) -> Array:
        if self not in scope.opened:
            opened = scope.opened[self] = np.empty_like(self.empty)
            for name, field in self.fields.items():
                opened[name] = open_value(field, scope)
        made: Array = scope.opened[self]
        return made


def take_array(value: Array, memo: Memo) -> Any:
    """TRAINING THREAD."""
    known = memo.copies.get(id(value))
    if known is not None:
        if memo.private and isinstance(known, SealedArray):
            known.private = True
        return memo.again(known)
    if value.dtype.hasobject:
        return _take_objects(value, memo)
    small = value.nbytes <= SMALL
    if not small:
        memo.at_once()
    shared = _in_block(memo.block, value) if memo.block is not None and not small else None
    copied = value.copy("K") if shared is None else shared
    sealed = SealedArray(copied, small or memo.private)
    memo.put(value, sealed)
    if not small:
        memo.hold(copied if shared is None or memo.block is None else memo.block.view, value.nbytes)
    return sealed


def _in_block(block: Block, value: Array) -> Array | None:
    """A copy in memory that a child process sees; None: it has no room, or the array has holes."""
    if type(value) is not np.ndarray or not (value.flags.c_contiguous or value.flags.f_contiguous):
        return None
    place = block.take(value.nbytes)
    if place is None:
        return None
    copied: Array = np.ndarray(value.shape, value.dtype, block.view, place, value.strides)
    np.copyto(copied, value)
    return copied


def _take_objects(value: Array, memo: Memo) -> Any:
    empty = np.empty_like(value)
    if value.dtype.names is None:
        cells = SealedCells(empty)
        memo.begin(value, cells)
        take_items(value.ravel().tolist() if value.ndim else [value.item()], cells.cells, memo)
        cells.done = True
        return cells
    fields = SealedFields(empty)
    memo.begin(value, fields)
    for name in value.dtype.names:
        fields.fields[name] = leaf(value[name], memo)
    fields.done = True
    return fields


def _size(value: Array) -> int:
    return value.nbytes if value.nbytes > SMALL else 0


def _take_void(value: np.void, _: Memo) -> Any:
    # A record is a view of its array.
    return value.copy()


KINDS: dict[type, Rule] = {
    np.generic: PLAIN,
    np.void: Kind("copied", _take_void),
    np.dtype: REFERENCE,
    np.ufunc: REFERENCE,
    np.ndarray: Kind("copied", take_array, _size),
}
