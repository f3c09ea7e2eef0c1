"""Subclasses of the built-in containers: rebuilt with their class and attributes, none of its code run."""

from __future__ import annotations

import types
from collections import OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from async_trainer.snapshot.attributes import Attributes, big_parts, fields_of, filled_slots, maker_of, take_attributes
from async_trainer.snapshot.containers import BASES, step_to, take_items
from async_trainer.snapshot.faults import located
from async_trainer.snapshot.kind import Kind
from async_trainer.snapshot.memo import Memo
from async_trainer.snapshot.registry import Rule, capture, leaf, size
from async_trainer.snapshot.sealed import Scope, Sealed, SealedNode, open_value

_references = capture.references


@dataclass(frozen=True, slots=True)
class Family:
    """How the content of one built-in container, and of its subclasses, is read and written.

    Attributes:
        base: the built-in class; its own methods are used, never those of a subclass.
        items: reads the content.
        fill: writes it into a bare object.
        extra: the name of the attribute that a bare object needs first, if any.
        name: of the constant of this module that it is: so it is pickled.
    """

    name: str
    base: type
    items: Callable[[Any], Iterable[Any]]
    fill: Callable[[Any, list[Any]], Any]
    extra: str = ""

    def __reduce__(self) -> str:
        return self.name


def _fill_ordered(shell: OrderedDict[Any, Any], pairs: list[Any]) -> None:
    for key, value in pairs:
        OrderedDict.__setitem__(shell, key, value)


def _fill_nothing(shell: Any, items: list[Any]) -> None:
    return None


DICT = Family("DICT", dict, dict.items, dict.update)
ORDERED = Family("ORDERED", OrderedDict, OrderedDict.items, _fill_ordered)
DEFAULT = Family("DEFAULT", defaultdict, dict.items, dict.update, "default_factory")
LIST = Family("LIST", list, list.__iter__, list.extend)
SET = Family("SET", set, set.__iter__, set.update)
DEQUE = Family("DEQUE", deque, deque.__iter__, deque.extend, "maxlen")
FROZEN = Family("FROZEN", frozenset, frozenset.__iter__, _fill_nothing)
TUPLE = Family("TUPLE", tuple, tuple.__iter__, _fill_nothing)


class SealedDerived(SealedNode):
    """A container of a class of its own."""

    __slots__ = ("attributes", "cls", "extra", "family", "parts")

    def __init__(self, cls: type, family: Family) -> None:
        self.cls = cls
        self.family = family
        self.extra: Any = None
        self.parts: list[Any] = []
        self.attributes: Attributes | None = None

    def open(self, scope: Scope) -> Any:
        if self in scope.opened:
            return scope.opened[self]
        family = self.family
        if family is TUPLE or family is FROZEN:
            shell = _make_fixed(self.cls, family, [open_value(part, scope) for part in self.parts])
            shell = scope.opened.setdefault(self, shell)
        else:
            shell = scope.opened[self] = maker_of(self.cls)()
            if family is DEQUE:
                deque.__init__(shell, (), self.extra)
            elif family is DEFAULT:
                shell.default_factory = open_value(self.extra, scope)
            family.fill(shell, [self._open_item(part, scope) for part in self.parts])
        if self.attributes is not None:
            self.attributes.put(shell, scope)
        return shell

    def _open_item(self, part: Any, scope: Scope) -> Any:
        if issubclass(self.family.base, dict):
            return open_value(part[0], scope), open_value(part[1], scope)
        return open_value(part, scope)


class SealedProxy(Sealed):
    """A ``MappingProxyType`` over a dict of the hook's own."""

    __slots__ = ("mapping",)

    def __init__(self, mapping: Any) -> None:
        self.mapping = mapping

    def open(self, scope: Scope) -> types.MappingProxyType[Any, Any]:
        return types.MappingProxyType(open_value(self.mapping, scope))


class SealedBytes(Sealed):
    """A bytearray."""

    __slots__ = ("cls", "held")

    def __init__(self, cls: type[bytearray], held: bytes) -> None:
        self.cls = cls
        self.held = held

    def open(self, scope: Scope) -> bytearray:
        if self not in scope.opened:
            scope.opened[self] = self.cls(self.held)
        opened: bytearray = scope.opened[self]
        return opened


def _make_fixed(cls: type, family: Family, items: list[Any]) -> Any:
    if hasattr(cls, "n_sequence_fields"):
        return cls(items)
    return family.base.__new__(cls, items)


def _take_derived(family: Family) -> Callable[[Any, Memo], Any]:
    def take(value: Any, memo: Memo) -> Any:
        known = memo.copies.get(id(value))
        if known is not None:
            return memo.again(known)
        sealed = SealedDerived(type(value), family)
        memo.begin(value, sealed)
        if family.extra:
            sealed.extra = leaf(getattr(value, family.extra), memo)
        if issubclass(family.base, dict):
            _take_pairs(family.items(value), sealed.parts, memo)
        else:
            take_items(family.items(value), sealed.parts, memo)
        sealed.attributes = take_attributes(value, memo)
        sealed.done = True
        return sealed

    return take


def _take_pairs(pairs: Iterable[tuple[Any, Any]], parts: list[Any], memo: Memo) -> None:
    key: Any = None
    try:
        for key, held in pairs:
            part = held if type(held) in _references else leaf(held, memo)
            parts.append((key if type(key) in _references else leaf(key, memo), part))
    except Exception as error:
        raise located(error, step_to(key)) from None


def _take_fixed(family: Family) -> Callable[[Any, Memo], Any]:
    def take(value: Any, memo: Memo) -> Any:
        known = memo.copies.get(id(value))
        if known is not None:
            return memo.again(known)
        items = list(family.items(value))
        sealed = SealedDerived(type(value), family)
        take_items(items, sealed.parts, memo)
        known = memo.copies.get(id(value))
        if known is not None:
            return memo.again(known)
        same = all(part is item for part, item in zip(sealed.parts, items, strict=True))
        if same and not filled_slots(value) and not fields_of(value):
            return value
        memo.begin(value, sealed)
        sealed.attributes = take_attributes(value, memo)
        sealed.done = True
        return sealed

    return take


def _take_proxy(value: types.MappingProxyType[Any, Any], memo: Memo) -> Any:
    return SealedProxy(leaf(dict(value), memo))


def _take_bytes(value: bytearray, memo: Memo) -> Any:
    if id(value) not in memo.copies:
        memo.put(value, SealedBytes(type(value), bytes(value)))
    return memo.copies[id(value)]


def _rule(family: Family, fixed: bool = False) -> Rule:
    take = _take_fixed(family) if fixed else _take_derived(family)

    def parts(value: Any) -> list[Any]:
        items: Iterable[Any] = dict.values(value) if issubclass(family.base, dict) else family.items(value)
        return [part for part in items if type(part) not in _references] + big_parts(value)

    derived = Kind("rebuilt, leaf by leaf", take, size, parts=parts)

    def rule(cls: type) -> Kind:
        return BASES.get(cls, derived)

    return rule


KINDS: dict[type, Rule] = {
    dict: _rule(DICT),
    OrderedDict: _rule(ORDERED),
    defaultdict: _rule(DEFAULT),
    list: _rule(LIST),
    set: _rule(SET),
    deque: _rule(DEQUE),
    frozenset: _rule(FROZEN, fixed=True),
    tuple: _rule(TUPLE, fixed=True),
    types.MappingProxyType: Kind("rebuilt, leaf by leaf", _take_proxy, size, parts=lambda value: value.values()),
    bytearray: Kind("copied", _take_bytes),
}
