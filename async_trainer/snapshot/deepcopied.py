"""Objects whose class says how it is copied: ``__deepcopy__``."""

from __future__ import annotations

import copy
from typing import Any

from async_trainer.snapshot.memo import Memo
from async_trainer.snapshot.reduced import take_reduced
from async_trainer.snapshot.registry import capture
from async_trainer.snapshot.sealed import Scope, Sealed, SealedLeaf


class DeepMemo(dict[int, Any]):
    """The memo of ``copy.deepcopy`` for one event: it knows what was captured already, and accounts for what is copied.

    Attributes:
        memo: the event's.
        hits: the captured values that it has handed out.
    """

    def __init__(self, memo: Memo) -> None:
        super().__init__()
        self.memo = memo
        self.hits: list[SealedLeaf] = []

    def get(self, key: int, default: Any = None) -> Any:
        captured = self.memo.copies.get(key)
        if isinstance(captured, SealedLeaf):
            if captured.copied is None:
                self.memo.copy_now(captured)
            if captured.copied is not None:
                self.hits.append(captured)
                return captured.copied
        return super().get(key, default)

    def __setitem__(self, key: int, copied: Any) -> None:
        if super().get(key) is copied:
            # A class's own __deepcopy__ has set it before copy.deepcopy does.
            return
        super().__setitem__(key, copied)
        kind = capture.kind(type(copied))
        if kind.size is not None and kind.parts is None:
            nbytes = kind.size(copied)
            if nbytes:
                self.memo.hold(copied, nbytes)


class SealedDeepCopy(Sealed):
    """A deep copy, of which each hook gets another: one hook that writes to it must not show in the next.

    Attributes:
        copied: made on the training thread.
        shared: captured values that it refers to.
    """

    __slots__ = ("copied", "shared")

    def __init__(self, copied: Any, shared: list[SealedLeaf]) -> None:
        self.copied = copied
        self.shared = shared

    def open(self, scope: Scope) -> Any:
        if self not in scope.opened:
            for sealed in self.shared:
                scope.deep[id(sealed.copied)] = sealed.open(scope)
            scope.opened[self] = copy.deepcopy(self.copied, scope.deep)
        return scope.opened[self]


def take_deepcopied(value: Any, memo: Memo) -> Any:
    """Capture by ``__deepcopy__``; where that fails (an output tensor in it), by ``__reduce_ex__``. TRAINING THREAD."""
    known = memo.copies.get(id(value))
    if known is not None:
        return known
    memo.at_once()
    if memo.deep is None:
        memo.deep = DeepMemo(memo)
    deep: Any = memo.deep
    try:
        copied = copy.deepcopy(value, deep)
    except Exception:
        return take_reduced(value, memo)
    if copied is value:
        return value
    sealed = SealedDeepCopy(copied, deep.hits)
    deep.hits = []
    memo.put(value, sealed)
    return sealed
