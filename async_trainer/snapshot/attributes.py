"""The attributes of an object: its ``__dict__`` and its slots, without running any code of its class."""

from __future__ import annotations

import types
from collections.abc import Callable
from functools import cache, partial
from typing import Any

from async_trainer.snapshot.containers import SealedDict
from async_trainer.snapshot.faults import located
from async_trainer.snapshot.memo import Memo
from async_trainer.snapshot.registry import capture, leaf
from async_trainer.snapshot.sealed import Scope, open_value

_references = capture.references


class Attributes:
    """The captured attributes of one object; part of its ``Sealed``."""

    __slots__ = ("fields", "slots")

    def __init__(self, fields: Any, slots: tuple[tuple[types.MemberDescriptorType, Any], ...]) -> None:
        self.fields = fields
        self.slots = slots

    def put(self, shell: object, scope: Scope) -> None:
        """Give them to the object of one hook. WORKER thread."""
        if self.fields is not None:
            fields = open_value(self.fields, scope)
            try:
                object.__setattr__(shell, "__dict__", fields)
            except AttributeError:
                # SimpleNamespace: its dict can be filled, not replaced.
                shell.__dict__.update(fields)
        for slot, part in self.slots:
            slot.__set__(shell, open_value(part, scope))


def fields_of(value: object) -> dict[str, Any] | None:
    """The ``__dict__`` of an object, if it has one."""
    try:
        fields: dict[str, Any] = object.__getattribute__(value, "__dict__")
    except AttributeError:
        return None
    return fields


@cache
def maker_of(cls: Any) -> Callable[..., Any]:
    """``__new__`` of the class's nearest base that isn't written in Python: it makes a bare object."""
    for base in cls.__mro__:
        new = vars(base).get("__new__")
        if isinstance(new, types.BuiltinFunctionType):
            return partial(new, cls)
    raise AssertionError("object has one")


@cache
def slots_of(cls: Any) -> tuple[types.MemberDescriptorType, ...]:
    """The descriptors of all slots of a class written in Python, those of its bases included."""
    return tuple(
        descriptor
        for base in cls.__mro__
        if "__slots__" in vars(base)
        for descriptor in vars(base).values()
        if isinstance(descriptor, types.MemberDescriptorType)
    )


def filled_slots(value: object) -> list[tuple[types.MemberDescriptorType, Any]]:
    """The slots of an object that hold something, and what they hold."""
    filled = []
    cls: Any = type(value)
    for slot in slots_of(cls):
        try:
            filled.append((slot, slot.__get__(value, cls)))
        except AttributeError:
            continue
    return filled


def take_fields(fields: dict[str, Any], memo: Memo) -> Any:
    """Capture a ``__dict__``; the steps of a path are attributes. TRAINING THREAD."""
    if type(fields) is not dict or id(fields) in memo.copies:
        # ``self.__dict__ = self`` of a dict subclass, or shared between objects on purpose.
        return leaf(fields, memo)
    if _references.issuperset(map(type, fields.values())):
        sealed = SealedDict(fields.copy(), False)
        memo.put(fields, sealed)
        return sealed
    parts: dict[Any, Any] = {}
    sealed = SealedDict(parts, True)
    memo.begin(fields, sealed)
    name = ""
    try:
        for name, value in fields.items():
            parts[name] = value if type(value) in _references else leaf(value, memo)
    except Exception as error:
        raise located(error, f".{name}") from None
    sealed.done = True
    return sealed


def take_attributes(value: object, memo: Memo) -> Attributes:
    """Capture all attributes of an object. TRAINING THREAD."""
    live = fields_of(value)
    fields = take_fields(live, memo) if live else None
    slots = []
    for slot, held in filled_slots(value):
        try:
            slots.append((slot, leaf(held, memo)))
        except Exception as error:
            raise located(error, f".{slot.__name__}") from None
    return Attributes(fields, tuple(slots))


def big_parts(value: object) -> list[Any]:
    """The attributes of an object that may be big."""
    live = fields_of(value)
    parts = [part for part in live.values() if type(part) not in _references] if live else []
    return parts + [part for _, part in filled_slots(value) if type(part) not in _references]
