"""``torch.nn.Module``: a replica of the same class, on the captured tensors."""

from __future__ import annotations

import types
from collections import OrderedDict
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch.nn.parallel import DataParallel, DistributedDataParallel

from async_trainer.snapshot.attributes import filled_slots, maker_of, slots_of
from async_trainer.snapshot.closures import take_function
from async_trainer.snapshot.containers import SealedDict
from async_trainer.snapshot.faults import located
from async_trainer.snapshot.kind import Kind
from async_trainer.snapshot.memo import Memo
from async_trainer.snapshot.module_hooks import take_hooks
from async_trainer.snapshot.registry import Rule, capture, leaf, size
from async_trainer.snapshot.sealed import Scope, Sealed, SealedNode, open_value
from async_trainer.snapshot.tensors import Batch

_references = capture.references
_BARE = vars(torch.nn.Module())
_HOOKS = frozenset(name for name, value in _BARE.items() if "hook" in name and isinstance(value, dict))
_MEMBERS = frozenset({"_parameters", "_buffers", "_modules"})
_NAMES = "_non_persistent_buffers_set"
_SELDOM = _HOOKS | _MEMBERS | {_NAMES}
_DROPPED: dict[str, Any] = {"_is_full_backward_hook": None, "_compiled_call_impl": None}
_SPECIAL = _MEMBERS | {_NAMES} | _DROPPED.keys()
LAYOUTS = 10_000


class SealedModule(SealedNode):
    """A module: built anew for each hook, down to the last submodule, on parameters that all hooks share.

    Attributes:
        cls: the class of the live module; none of its code runs.
        fields: its ``__dict__``, captured.
        slots: its slots, captured.
        argument: the event's argument that it came with; named when the replica has expired.
    """

    __slots__ = ("argument", "cls", "fields", "slots")

    def __init__(self, cls: type, argument: str) -> None:
        self.cls = cls
        self.argument = argument
        self.fields: dict[str, Any] = {}
        self.slots: list[tuple[types.MemberDescriptorType, Any]] = []

    def open(self, scope: Scope) -> Any:
        shell = scope.opened.get(self)
        if shell is None:
            shell = scope.opened[self] = maker_of(self.cls)()
            scope.stand_ins.append((shell, self.argument))
            # Hook dicts of its own, since users may add hooks to a replica.
            fields: dict[str, Any] = {name: OrderedDict() for name in _HOOKS}
            object.__setattr__(shell, "__dict__", fields)
            for name, part in self.fields.items():
                fields[name] = part.open(scope) if isinstance(part, Sealed) else part
            for slot, part in self.slots:
                slot.__set__(shell, open_value(part, scope))
        return shell


class SealedEmpty(Sealed):
    """No members, or no names."""

    __slots__ = ("make",)

    def __init__(self, make: Callable[[], Any]) -> None:
        self.make = make

    def open(self, scope: Scope) -> Any:
        return self.make()


_EMPTY = SealedEmpty(dict)
_NO_NAMES = SealedEmpty(set)


def take_module(value: torch.nn.Module, memo: Memo) -> Any:
    """One walk over the tree; its tensors are copied together at the end. TRAINING THREAD."""
    known = memo.copies.get(id(value))
    if known is not None:
        return memo.again(known)
    sealed = SealedModule(type(value), memo.argument)
    memo.begin(value, sealed)
    if memo.private:
        _take_one(value, sealed, memo)
        return sealed
    memo.private = True
    try:
        with Batch(memo):
            _take_one(value, sealed, memo)
    finally:
        memo.private = False
    return sealed


def _take_one(value: torch.nn.Module, sealed: SealedModule, memo: Memo) -> None:
    _take_fields(value.__dict__, sealed.fields, memo)
    cls: Any = type(value)
    if slots_of(cls):
        sealed.slots = [(slot, leaf(held, memo)) for slot, held in filled_slots(value)]
    sealed.done = True


def _take_fields(live: dict[str, Any], fields: dict[str, Any], memo: Memo) -> None:
    hooks, others = _layouts.get(tuple(live)) or _layout(tuple(live))
    name = ""
    try:
        if any(map(live.get, hooks)):
            for name in hooks:
                if live[name]:
                    fields[name] = take_hooks(live[name], memo)
        for name, special in others:
            part = live[name]
            cls = type(part)
            if special:
                fields[name] = _take_special(name, part, memo)
            elif cls is types.FunctionType:
                fields[name] = take_function(part, memo)
            else:
                fields[name] = part if cls in _references else leaf(part, memo)
    except Exception as error:
        raise (error if name in _MEMBERS else located(error, f".{name}")) from None


def _take_special(name: str, part: Any, memo: Memo) -> Any:
    if name in _MEMBERS:
        return _take_members(part, memo) if part else _EMPTY
    if name == _NAMES:
        return leaf(part, memo) if part else _NO_NAMES
    return _DROPPED[name]


Layout = tuple[tuple[str, ...], tuple[tuple[str, bool], ...]]
_layouts: dict[tuple[str, ...], Layout] = {}
"""The names in a module's ``__dict__`` -> its hooks; the others, and whether each is torch's own. Modules of one class
have the same, so they are sorted once."""


def _layout(names: tuple[str, ...]) -> Layout:
    if len(_layouts) > LAYOUTS:  # of modules that get ever new attributes
        _layouts.clear()
    hooks = tuple(name for name in names if name in _HOOKS)
    layout = _layouts[names] = hooks, tuple((name, name in _SPECIAL) for name in names if name not in _HOOKS)
    return layout


def _take_members(members: dict[str, Any], memo: Memo) -> SealedDict:
    parts: dict[Any, Any] = {}
    name = ""
    try:
        for name, member in members.items():
            parts[name] = None if member is None else leaf(member, memo)
    except Exception as error:
        raise located(error, f".{name}") from None
    return SealedDict(parts, True)


def _take_wrapped(value: Any, memo: Memo) -> Any:
    wrapped = vars(value)["_modules"]
    return leaf(wrapped["_orig_mod"] if "_orig_mod" in wrapped else wrapped["module"], memo)


def _parts(value: torch.nn.Module) -> Iterable[Any]:
    live = vars(value)
    parts: list[Any] = [part for part in live["_modules"].values() if part is not None]
    for members in (live["_parameters"], live["_buffers"]):
        parts += [tensor for tensor in members.values() if tensor is not None]
    for name, part in live.items():
        if name not in _SELDOM and type(part) not in _references:
            parts.append(part)
    return parts


_REPLICA = Kind("replica of the module", take_module, size, parts=_parts)
_WRAPPER = Kind("replica of the module that it wraps", _take_wrapped, size, parts=_parts)


def _rule(cls: type) -> Kind:
    # By name: importing torch._dynamo to ask for OptimizedModule takes seconds.
    compiled = any(base.__name__ == "OptimizedModule" and base.__module__.startswith("torch.") for base in cls.__mro__)
    return _WRAPPER if compiled else _REPLICA


KINDS: dict[type, Rule] = {
    torch.nn.Module: _rule,
    DistributedDataParallel: _WRAPPER,
    DataParallel: _WRAPPER,
}
