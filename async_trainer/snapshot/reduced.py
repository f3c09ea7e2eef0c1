"""Any other object: copied by its own protocol (``__reduce_ex__``), its parts captured like anything else."""

from __future__ import annotations

import copyreg
from collections.abc import Iterable
from typing import Any

from async_trainer.snapshot.attributes import take_fields
from async_trainer.snapshot.containers import take_dict, take_items
from async_trainer.snapshot.faults import LeafError, type_name, worded
from async_trainer.snapshot.memo import Memo
from async_trainer.snapshot.registry import leaf
from async_trainer.snapshot.sealed import Scope, SealedNode, open_value


class SealedReduced(SealedNode):
    """What ``__reduce_ex__`` returned, captured. Each hook has an object of its own, down to the last container."""

    __slots__ = ("args", "function", "items", "pairs", "setter", "slots", "state")

    def __init__(self) -> None:
        self.function: Any = None
        self.args: list[Any] = []
        self.state: Any = None
        self.slots: Any = None
        self.items: list[Any] = []
        self.pairs: list[tuple[Any, Any]] = []
        self.setter: Any = None

    def open(self, scope: Scope) -> Any:
        if self in scope.opened:
            return scope.opened[self]
        function = open_value(self.function, scope)
        made = scope.opened[self] = function(*[open_value(part, scope) for part in self.args])
        self._set_state(made, scope)
        for item in self.items:
            made.append(open_value(item, scope))
        for key, value in self.pairs:
            made[open_value(key, scope)] = open_value(value, scope)
        return made

    def _set_state(self, made: Any, scope: Scope) -> None:
        # As copy._reconstruct does.
        state, slots = open_value(self.state, scope), open_value(self.slots, scope)
        if self.setter is not None:
            open_value(self.setter, scope)(made, state)
        elif state is not None and hasattr(made, "__setstate__"):
            made.__setstate__(state if slots is None else (state, slots))
        else:
            if state is not None:
                made.__dict__.update(state)
            for name, value in (slots or {}).items():
                setattr(made, name, value)


def take_reduced(value: Any, memo: Memo) -> Any:
    """Capture an object by its own protocol. TRAINING THREAD: its ``__reduce_ex__`` or ``__getstate__`` runs here.

    Raises:
        LeafError: it can't be copied (a lock, a file, a generator, ...), or something in it can't.
    """
    known = memo.copies.get(id(value))
    if known is not None:
        return memo.again(known)
    reduced = _reduce(value)
    if isinstance(reduced, str):
        return value
    sealed = SealedReduced()
    memo.begin(value, sealed)
    function, args, state, items, pairs, setter = (*reduced, None, None, None, None)[:6]
    sealed.function = leaf(function, memo)
    take_items(args, sealed.args, memo)
    sealed.setter = setter and leaf(setter, memo)
    _take_state(sealed, state, memo)
    take_items(items or (), sealed.items, memo)
    _take_pairs(pairs or (), sealed.pairs, memo)
    sealed.done = True
    return sealed


def _reduce(value: Any) -> Any:
    cls = type(value)
    reducer = copyreg.dispatch_table.get(cls)
    try:
        return reducer(value) if reducer is not None else value.__reduce_ex__(4)
    except Exception as error:
        detail = "" if "cannot pickle" in str(error) else f" ({worded(error)})"
        raise LeafError(f"{type_name(cls)} can't be copied{detail}", error) from error


def _take_state(sealed: SealedReduced, state: Any, memo: Memo) -> None:
    if isinstance(state, tuple) and len(state) == 2 and all(part is None or type(part) is dict for part in state):
        sealed.state, sealed.slots = (take_fields(part, memo) if part else None for part in state)
    elif type(state) is dict:
        sealed.state = take_fields(state, memo)
    else:
        sealed.state = leaf(state, memo)


def _take_pairs(pairs: Iterable[tuple[Any, Any]], parts: list[tuple[Any, Any]], memo: Memo) -> None:
    for key, held in pairs:
        parts.extend(take_dict({key: held}, memo).parts.items())
