"""``torch.jit.ScriptModule``: its tensors live in C++, out of reach of a replica; copied whole."""

from __future__ import annotations

import copy
from typing import Any

import torch

from async_trainer.snapshot.faults import LeafError, type_name, worded
from async_trainer.snapshot.kind import REFERENCE, Kind
from async_trainer.snapshot.memo import Memo
from async_trainer.snapshot.registry import Rule
from async_trainer.snapshot.sealed import Scope, Sealed
from async_trainer.snapshot.tensors import big


class SealedScript(Sealed):
    """A scripted or traced module: a copy of the copy for each hook. It shares no parameter with other arguments."""

    __slots__ = ("argument", "copied")

    def __init__(self, copied: Any, argument: str) -> None:
        self.copied = copied
        self.argument = argument

    def open(self, scope: Scope) -> Any:
        if self not in scope.opened:
            opened = scope.opened[self] = copy.deepcopy(self.copied)
            scope.stand_ins.extend((module, self.argument) for module in opened.modules())
        return scope.opened[self]


def take_script(value: Any, memo: Memo) -> Any:
    """TRAINING THREAD."""
    if id(value) in memo.copies:
        return memo.copies[id(value)]
    memo.at_once()
    try:
        copied = copy.deepcopy(value)
    except Exception as error:
        raise LeafError(f"{type_name(type(value))} can't be copied ({worded(error)})", error) from error
    memo.put(value, SealedScript(copied, memo.argument))
    for tensor in _tensors(copied):
        if big(tensor):
            memo.hold(tensor.untyped_storage(), big(tensor))
    return memo.copies[id(value)]


def _tensors(value: Any) -> list[torch.Tensor]:
    return [*value.parameters(), *value.buffers()]


def _size(value: Any) -> int:
    return sum(big(tensor) for tensor in _tensors(value))


KINDS: dict[type, Rule] = {
    torch.jit.ScriptModule: Kind("deep copied", take_script, _size),
    torch.jit.ScriptFunction: REFERENCE,
}
