"""dict, list, tuple, set, frozenset: rebuilt leaf by leaf, each hook its own; leaves are shared."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from async_trainer.snapshot.faults import located
from async_trainer.snapshot.kind import Kind
from async_trainer.snapshot.memo import Memo
from async_trainer.snapshot.registry import capture, leaf, size
from async_trainer.snapshot.sealed import Scope, Sealed, SealedNode, open_value

_references = capture.references


class SealedDict(SealedNode):
    """A dict. ``deep``: some key or value of it may be sealed."""

    __slots__ = ("deep", "parts")

    def __init__(self, parts: dict[Any, Any], deep: bool) -> None:
        self.parts = parts
        self.deep = deep

    def open(self, scope: Scope) -> dict[Any, Any]:
        opened: dict[Any, Any] | None = scope.opened.get(self)
        if opened is None:
            # Known before it is filled, and filled in place: a cycle leads back to it.
            opened = scope.opened[self] = {} if self.deep else self.parts.copy()
            if self.deep:
                for key, part in self.parts.items():
                    opened[open_value(key, scope)] = part.open(scope) if isinstance(part, Sealed) else part
        return opened


class SealedList(SealedNode):
    """A list. ``deep``: some item of it may be sealed."""

    __slots__ = ("deep", "parts")

    def __init__(self, parts: list[Any], deep: bool) -> None:
        self.parts = parts
        self.deep = deep

    def open(self, scope: Scope) -> list[Any]:
        opened: list[Any] | None = scope.opened.get(self)
        if opened is None:
            opened = scope.opened[self] = [] if self.deep else self.parts.copy()
            if self.deep:
                opened.extend([part.open(scope) if isinstance(part, Sealed) else part for part in self.parts])
        return opened


class SealedSet(SealedNode):
    """A set; the items are captured ones."""

    __slots__ = ("parts",)

    def __init__(self, parts: list[Any] | set[Any]) -> None:
        self.parts = parts

    def open(self, scope: Scope) -> set[Any]:
        opened: set[Any] | None = scope.opened.get(self)
        if opened is None:
            opened = scope.opened[self] = set()
            opened.update([open_value(part, scope) for part in self.parts])
        return opened


class SealedFixed(Sealed):
    """A tuple or frozenset with sealed items: made when all its items are there."""

    __slots__ = ("cls", "parts")

    def __init__(self, cls: type, parts: list[Any]) -> None:
        self.cls = cls
        self.parts = parts

    def open(self, scope: Scope) -> Any:
        if self not in scope.opened:
            made = self.cls([open_value(part, scope) for part in self.parts])
            # A cycle through one of the items may have made it meanwhile.
            scope.opened.setdefault(self, made)
        return scope.opened[self]


def take_dict(value: dict[Any, Any], memo: Memo) -> Any:
    """TRAINING THREAD. The common case, plain keys and values, is three passes in C."""
    known = memo.copies.get(id(value))
    if known is not None:
        return memo.again(known)
    if _references.issuperset(map(type, value.values())) and _references.issuperset(map(type, value)):
        sealed = SealedDict(value.copy(), False)
        memo.put(value, sealed)
        return sealed
    parts: dict[Any, Any] = {}
    sealed = SealedDict(parts, True)
    memo.begin(value, sealed)
    key: Any = None
    try:
        for key, held in value.items():
            part = held if type(held) in _references else leaf(held, memo)
            parts[key if type(key) in _references else leaf(key, memo)] = part
    except Exception as error:
        raise located(error, step_to(key)) from None
    sealed.done = True
    return sealed


def step_to(key: Any) -> str:
    """The step of a path to what a dict has under ``key``."""
    return f"[{key!r:.60}]" if capture.kind(type(key)).take is None else f"[{type(key).__name__}]"


def take_list(value: list[Any], memo: Memo) -> Any:
    """TRAINING THREAD."""
    known = memo.copies.get(id(value))
    if known is not None:
        return memo.again(known)
    if _references.issuperset(map(type, value)):
        sealed = SealedList(value.copy(), False)
        memo.put(value, sealed)
        return sealed
    parts: list[Any] = []
    sealed = SealedList(parts, True)
    memo.begin(value, sealed)
    take_items(value, parts, memo)
    sealed.done = True
    return sealed


def take_set(value: set[Any], memo: Memo) -> Any:
    """TRAINING THREAD."""
    known = memo.copies.get(id(value))
    if known is not None:
        return memo.again(known)
    if _references.issuperset(map(type, value)):
        sealed = SealedSet(value.copy())
        memo.put(value, sealed)
        return sealed
    parts: list[Any] = []
    sealed = SealedSet(parts)
    memo.begin(value, sealed)
    take_items(value, parts, memo)
    sealed.done = True
    return sealed


def take_fixed(value: tuple[Any, ...] | frozenset[Any], memo: Memo) -> Any:
    """A tuple or frozenset comes back as it is when each of its items does. TRAINING THREAD."""
    if _references.issuperset(map(type, value)):
        return value
    known = memo.copies.get(id(value))
    if known is not None:
        return memo.again(known)
    items = list(value)
    parts: list[Any] = []
    take_items(items, parts, memo)
    known = memo.copies.get(id(value))
    if known is not None:
        # A cycle through one of the items has captured it meanwhile.
        return memo.again(known)
    if all(part is item for part, item in zip(parts, items, strict=True)):
        return value
    deep = any(isinstance(part, Sealed) for part in parts)
    taken = SealedFixed(type(value), parts) if deep else type(value)(parts)
    memo.put(value, taken)
    return taken


def take_items(items: Iterable[Any], parts: list[Any], memo: Memo) -> None:
    """Capture items in order, onto ``parts``; the steps of a path are their places. TRAINING THREAD."""
    try:
        parts.extend(item if type(item) in _references else leaf(item, memo) for item in items)
    except Exception as error:
        raise located(error, f"[{len(parts)}]") from None


def _big_values(value: dict[Any, Any]) -> list[Any]:
    return [part for part in value.values() if type(part) not in _references]


def _big_items(value: Iterable[Any]) -> list[Any]:
    return [part for part in value if type(part) not in _references]


_DICT = Kind("rebuilt, leaf by leaf", take_dict, size, parts=_big_values)
_LIST = Kind("rebuilt, leaf by leaf", take_list, size, parts=_big_items)
_SET = Kind("rebuilt, leaf by leaf", take_set, size, parts=_big_items)
_FIXED = Kind("rebuilt, leaf by leaf, where a leaf is copied", take_fixed, size, parts=_big_items)
BASES: dict[type, Kind] = {dict: _DICT, list: _LIST, set: _SET, frozenset: _FIXED, tuple: _FIXED}
"""For these classes themselves; ``derived`` has the rules of their subclasses."""
