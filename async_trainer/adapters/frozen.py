"""Objects of plain values that belong to another library: copies of the same class, as of the event."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from typing import Any, NoReturn

from async_trainer.errors import StandInError
from async_trainer.snapshot import Memo, Scope, Sealed, open_value
from async_trainer.snapshot.registry import leaf


class SealedCopy(Sealed):
    """An object of the live one's class, or of a frozen subclass: its methods run on the captured values."""

    __slots__ = ("cls", "fields", "frozen")

    def __init__(self, cls: type, fields: dict[str, Any], frozen: bool) -> None:
        self.cls = cls
        self.fields = fields
        self.frozen = frozen

    def open(self, scope: Scope) -> Any:
        made = scope.opened.get(self)
        if made is None:
            cls: Any = frozen_class(self.cls) if self.frozen else self.cls
            made = scope.opened[self] = object.__new__(cls)
            vars(made).update({name: open_value(part, scope) for name, part in self.fields.items()})
        return made


@functools.cache
def frozen_class(cls: type) -> type:
    """A subclass of ``cls`` whose objects can't be changed."""

    def refuse(self: Any, name: str, *_: Any) -> NoReturn:
        raise StandInError(
            f"{cls.__name__}.{name}: background hooks see a snapshot, and can't change the training; leave a callback "
            "that does inline"
        )

    namespace = {"__setattr__": refuse, "__delattr__": refuse, "__module__": cls.__module__}
    made: type = type(cls)(cls.__name__, (cls,), namespace)
    return made


def take_copy(live: Any, memo: Memo, *, shallow: Iterable[str] = (), frozen: bool = True) -> Sealed:
    """Capture an object of plain values, such as a dataclass. TRAINING THREAD.

    Args:
        live: the object.
        memo: the event's.
        shallow: attributes of which the list is copied, and what is in it isn't: it grows, and its items don't change.
        frozen: whether a hook may set its attributes, on its own copy.
    """
    fields: dict[str, Any] = {}
    for name, value in vars(live).items():
        if name in shallow:
            fields[name] = SealedList(value)
        else:
            fields[name] = leaf(value, memo) if isinstance(value, (dict, list, set)) else value
    return SealedCopy(type(live), fields, frozen)


class SealedList(Sealed):
    """A list, of which each hook gets its own."""

    __slots__ = ("items",)

    def __init__(self, items: Iterable[Any]) -> None:
        self.items = tuple(items)

    def open(self, scope: Scope) -> Any:
        return list(self.items)
