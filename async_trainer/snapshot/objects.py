"""Objects of the user's classes: dataclasses, batches, namespaces, methods, weak references, and anything else."""

from __future__ import annotations

import dataclasses
import types
import weakref
from typing import Any

from async_trainer.snapshot.attributes import Attributes, big_parts, fields_of, filled_slots, maker_of, take_attributes
from async_trainer.snapshot.containers import SealedDict
from async_trainer.snapshot.deepcopied import take_deepcopied
from async_trainer.snapshot.faults import located
from async_trainer.snapshot.kind import REFERENCE, Kind
from async_trainer.snapshot.memo import Memo
from async_trainer.snapshot.reduced import take_reduced
from async_trainer.snapshot.registry import Rule, leaf, size
from async_trainer.snapshot.sealed import Scope, Sealed, SealedNode


class SealedObject(SealedNode):
    """An object that is nothing but its attributes. ``__init__`` and ``__setattr__`` of its class don't run."""

    __slots__ = ("attributes", "cls")

    def __init__(self, cls: type) -> None:
        self.cls = cls
        self.attributes: Attributes | None = None

    def open(self, scope: Scope) -> Any:
        shell = scope.opened.get(self)
        if shell is None:
            shell = scope.opened[self] = maker_of(self.cls)()
            if self.attributes is not None:
                self.attributes.put(shell, scope)
        return shell


class SealedMethod(Sealed):
    """A method bound to a captured object."""

    __slots__ = ("function", "owner")

    def __init__(self, function: Any, owner: Sealed) -> None:
        self.function = function
        self.owner = owner

    def open(self, scope: Scope) -> Any:
        return types.MethodType(self.function, self.owner.open(scope))


class SealedReference(Sealed):
    """A weak reference to a captured object."""

    __slots__ = ("target",)

    def __init__(self, target: Sealed) -> None:
        self.target = target

    def open(self, scope: Scope) -> weakref.ref[Any]:
        return weakref.ref(self.target.open(scope))


def take_object(value: object, memo: Memo) -> Any:
    """TRAINING THREAD."""
    known = memo.copies.get(id(value))
    if known is not None:
        return memo.again(known)
    sealed = SealedObject(type(value))
    memo.begin(value, sealed)
    sealed.attributes = take_attributes(value, memo)
    sealed.done = True
    return sealed


def take_frozen(value: object, memo: Memo) -> Any:
    """A frozen dataclass comes back as it is when each of its leaves does. TRAINING THREAD."""
    taken = take_object(value, memo)
    if isinstance(taken, SealedObject) and _unchanged(value, taken.attributes):
        memo.copies[id(value)] = value
        return value
    return taken


def _unchanged(value: object, attributes: Attributes | None) -> bool:
    if attributes is None:
        # A cycle: it is being captured further up.
        return False
    fields, live = attributes.fields, fields_of(value) or {}
    if fields is not None and not isinstance(fields, SealedDict):
        return False
    same = fields is None or all(fields.parts[name] is held for name, held in live.items())
    return same and all(
        part is held for (_, part), (_, held) in zip(attributes.slots, filled_slots(value), strict=True)
    )


def take_method(value: types.MethodType, memo: Memo) -> Any:
    """A method is copied with the object that it is bound to, as ``copy.deepcopy`` does. TRAINING THREAD."""
    try:
        owner = leaf(value.__self__, memo)
    except Exception as error:
        raise located(error, ".__self__") from None
    return SealedMethod(value.__func__, owner) if isinstance(owner, Sealed) else value


def take_reference(value: weakref.ref[Any], memo: Memo) -> Any:
    """By reference, save to what was captured before it in this event. TRAINING THREAD."""
    target = memo.copies.get(id(value()))
    return SealedReference(memo.again(target)) if isinstance(target, Sealed) else value


_OBJECT = Kind("rebuilt, leaf by leaf", take_object, size, parts=big_parts)
_FROZEN = Kind("by reference, if nothing in it can change", take_frozen, size, parts=big_parts)
_DEEPCOPIED = Kind("deep copied, by its __deepcopy__", take_deepcopied, size, parts=big_parts)
_REDUCED = Kind("deep copied", take_reduced, size, parts=big_parts)


def _rule(cls: type) -> Kind:
    if cls is object:
        return REFERENCE
    if dataclasses.is_dataclass(cls):
        return _FROZEN if cls.__dataclass_params__.frozen else _OBJECT  # type: ignore[attr-defined]
    if callable(getattr(cls, "to", None)) and cls.__dictoffset__ != 0:
        return _OBJECT
    if _of_pydantic(cls):
        return _OBJECT
    return _DEEPCOPIED if hasattr(cls, "__deepcopy__") else _REDUCED


def _of_pydantic(cls: type) -> bool:
    """Whether it is a pydantic model, without a ``__deepcopy__`` of its own. Pydantic's copies the attributes one by
    one in Python, and what is in them (a net, say) on the spot."""
    function = getattr(cls, "__deepcopy__", None)
    return str(getattr(function, "__module__", "")).startswith("pydantic.") and hasattr(cls, "__pydantic_fields_set__")


def _reference_rule(cls: type) -> Kind:
    return Kind("by reference", take_reference) if cls is weakref.ref else REFERENCE


KINDS: dict[type, Rule] = {
    object: _rule,
    types.SimpleNamespace: _OBJECT,
    types.MethodType: Kind("with the object that it is bound to", take_method),
    weakref.ref: _reference_rule,
}
