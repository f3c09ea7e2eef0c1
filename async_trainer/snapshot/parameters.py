"""Parameters: tensors that keep their class and ``requires_grad``, so that models and optimizers share them."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter

from async_trainer.snapshot.kind import Kind
from async_trainer.snapshot.memo import Memo
from async_trainer.snapshot.registry import Rule
from async_trainer.snapshot.sealed import Scope, Sealed
from async_trainer.snapshot.tensors import SealedTensor, big, fill, nbytes_of, take_tensor


class SealedParameter(SealedTensor):
    """A parameter: one object per hook, over a copy that all hooks share.

    Attributes:
        grad: its gradient, where it was asked for and is there.
    """

    __slots__ = ("grad",)

    def __init__(self, cls: type, requires_grad: bool) -> None:
        self.copied: Any = None  # not by super().__init__(): there are hundreds
        self.cls = cls
        self.private = False
        self.requires_grad = requires_grad
        self.fields: Any = None
        self.grad: Any = None

    def shell(self) -> Any:
        return torch.Tensor._make_subclass(self.cls, self.copied, self.requires_grad)

    def open(self, scope: Scope) -> Any:
        opened = self in scope.opened
        shell = super().open(scope)
        if self.grad is not None and not opened:
            shell.grad = self.grad.open(scope)
        return shell


class SealedUninitialized(Sealed):
    """A parameter or buffer of a lazy module that has seen no data yet."""

    __slots__ = ("cls", "options")

    def __init__(self, cls: type, options: dict[str, Any]) -> None:
        self.cls = cls
        self.options = options

    def open(self, scope: Scope) -> Any:
        if self not in scope.opened:
            scope.opened[self] = self.cls(**self.options)
        return scope.opened[self]


def take_parameter(value: torch.nn.Parameter, memo: Memo) -> Any:
    """TRAINING THREAD."""
    sealed = memo.copies.get(id(value))
    if sealed is None:
        sealed = SealedParameter(type(value), value.requires_grad)
        fill(sealed, value, nbytes_of(value), memo)
    if memo.gradients and value.grad is not None:
        private, memo.private = memo.private, False  # forward doesn't write to gradients
        sealed.grad = take_tensor(value.grad, memo)
        memo.private = private
    return sealed


def _take_uninitialized(value: Any, memo: Memo) -> Any:
    if id(value) not in memo.copies:
        options = {"requires_grad": value.requires_grad, "device": value.device, "dtype": value.dtype}
        memo.put(value, SealedUninitialized(type(value), options))
    return memo.copies[id(value)]


_UNINITIALIZED = Kind("without a value, as it is", _take_uninitialized)

KINDS: dict[type, Rule] = {
    UninitializedParameter: _UNINITIALIZED,
    UninitializedBuffer: _UNINITIALIZED,
    torch.nn.Parameter: Kind("copied", take_parameter, big),
}
