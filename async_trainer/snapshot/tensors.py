"""Tensors: copied by value, detached; those on an accelerator to the CPU. Each hook gets a tensor object of its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch

from async_trainer.snapshot.attributes import take_fields
from async_trainer.snapshot.big import Entry, copy_big
from async_trainer.snapshot.containers import SealedDict
from async_trainer.snapshot.devices import to_host
from async_trainer.snapshot.kind import REFERENCE, SMALL, Kind
from async_trainer.snapshot.memo import Memo
from async_trainer.snapshot.registry import Rule, capture
from async_trainer.snapshot.sealed import Scope, SealedLeaf, open_value

_references = capture.references
_batched: frozenset[type] = frozenset({torch.Tensor, torch.nn.Parameter})
_foreach_clone: Callable[..., Any] | None = getattr(torch, "_foreach_clone", None)
_strided = torch.strided
_no_dispatch: Any = torch._C._disabled_torch_dispatch_impl


class SealedTensor(SealedLeaf):
    """A tensor.

    Attributes:
        cls: the class of the live tensor.
        requires_grad: kept for parameters only.
        private: each hook gets a copy, not a shell over the shared one.
        fields: attributes that the user has set on the tensor.
    """

    __slots__ = ("cls", "fields", "private", "requires_grad")

    def __init__(self, cls: type, private: bool, requires_grad: bool = False) -> None:
        self.copied: Any = None
        self.cls = cls
        self.private = private
        self.requires_grad = requires_grad
        self.fields: Any = None

    def open(self, scope: Scope) -> Any:
        shell = scope.opened.get(self)
        if shell is None:
            shell = scope.opened[self] = self.shell()
            if self.fields is not None:
                for name, value in open_value(self.fields, scope).items():
                    shell.__dict__.setdefault(name, value)
        return shell

    def shell(self) -> Any:
        """An own tensor object over the copy. WORKER thread; the synchronous mode: inside any mode of the loop's."""
        if torch.is_inference_mode_enabled():
            with torch.inference_mode(False):
                return self.shell()
        shell = self.copied.clone() if self.private else self.copied.detach()
        if type(shell) is not self.cls:
            shell = shell.as_subclass(self.cls)
        return shell.requires_grad_() if self.requires_grad else shell


def clone(value: torch.Tensor) -> torch.Tensor:
    """A normal tensor with the same value and strides, recorded in no graph; on the current stream, without a sync."""
    if torch.is_inference_mode_enabled():
        with torch.inference_mode(False):
            return clone(value)
    return value.detach().clone() if value.requires_grad else value.clone()


def nbytes_of(value: torch.Tensor) -> int:
    """Bytes that a copy of it takes. Any thread; no sync."""
    if value.layout is _strided:
        nbytes = value.nbytes
        return 0 if nbytes > SMALL and value.is_meta else nbytes
    if value.layout is torch.sparse_coo:
        return value._indices().nbytes + value._values().nbytes
    if value.layout in (torch.sparse_csr, torch.sparse_bsr):
        return value.crow_indices().nbytes + value.col_indices().nbytes + value.values().nbytes
    if value.layout in (torch.sparse_csc, torch.sparse_bsc):
        return value.ccol_indices().nbytes + value.row_indices().nbytes + value.values().nbytes
    return value.numel() * value.element_size()


def take_tensor(value: torch.Tensor, memo: Memo) -> Any:
    """TRAINING THREAD."""
    known = memo.copies.get(id(value))
    if known is not None:
        if memo.private and isinstance(known, SealedTensor):
            known.private = True
        return known
    nbytes = nbytes_of(value)
    sealed = SealedTensor(type(value), nbytes <= SMALL or memo.private)
    fill(sealed, value, nbytes, memo)
    return sealed


def fill(sealed: SealedTensor, value: torch.Tensor, nbytes: int, memo: Memo) -> None:
    """Copy a tensor, now or with the batch of its module or optimizer. TRAINING THREAD."""
    memo.copies[id(value)] = sealed
    memo.alive.append(value)
    if not value.is_cpu and to_host(sealed, value, nbytes, memo):
        pass
    elif memo.batch is not None and (nbytes > SMALL or (memo.fences is not None and sealed.cls in _batched)):
        fence = None if memo.fences is None else memo.owner or memo.fences.get(id(value))
        memo.batch.append((sealed, value, nbytes, fence, memo.argument))
    elif nbytes > SMALL:
        take_big([(sealed, value, nbytes, None, memo.argument)], memo)
    else:
        sealed.copied = clone(value)
    if value.__dict__:
        sealed.fields = _take_marks(sealed.cls, value.__dict__, memo)
        # A Parameter of a tensor subclass says so by an attribute, not by its class.
        sealed.requires_grad = sealed.requires_grad or ("_is_param" in value.__dict__ and value.requires_grad)


def _take_marks(cls: Any, fields: dict[str, Any], memo: Memo) -> Any:
    if cls in _batched or cls.__torch_dispatch__ is not _no_dispatch:
        # Frameworks hang live things on tensors (``main_grad``, handles): only what they are marked with is kept.
        marks = {name: held for name, held in fields.items() if capture.kind(type(held)).take is None}
        return SealedDict(marks, False) if marks else None
    return take_fields(fields, memo)


class Batch(AbstractContextManager[None]):
    """Copies the tensors of one module or optimizer together, when all are found. TRAINING THREAD.

    For many small ones that takes half the time of one by one (600 of 256 B: 0.50 ms, not 1.04); for big ones the same.
    """

    def __init__(self, memo: Memo) -> None:
        self.memo = memo
        self.fences = memo.fences
        self.outermost = memo.batch is None

    def __enter__(self) -> None:
        memo = self.memo
        if self.outermost:
            memo.batch, memo.states = [], []
        if memo.fences is None:
            memo.fences = memo.store.fenced() if memo.store is not None else {}

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.memo.fences = self.fences
        if self.outermost and kind is None:
            self.memo.copy_batch()
        elif self.outermost:
            self.memo.batch, self.memo.states = None, []


def copy_together(batch: Sequence[Entry], memo: Memo) -> None:
    """Copy what was found. TRAINING THREAD."""
    small = [entry for entry in batch if entry[2] <= SMALL]
    if small:
        for entry, copied in zip(small, _clone_all([entry[1] for entry in small]), strict=True):
            entry[0].copied = copied
    if len(small) < len(batch):
        take_big([entry for entry in batch if entry[2] > SMALL], memo)


def take_big(entries: Sequence[Entry], memo: Memo) -> None:
    """Copy big tensors: into the handler's buffers, or into memory of their own. TRAINING THREAD."""
    for sealed, value, nbytes, _, _ in copy_big(entries, memo):
        sealed.copied = clone(value)
        memo.hold(_memory(sealed.copied), nbytes)


def _clone_all(values: list[torch.Tensor]) -> list[torch.Tensor]:
    if _foreach_clone is not None:
        try:
            with torch.inference_mode(False), torch.no_grad():
                return list(_foreach_clone(values))
        except (RuntimeError, NotImplementedError):
            # Some layouts (nested) have no foreach kernel; short memory fails once more below.
            pass
    return [clone(value) for value in values]


def _memory(copied: torch.Tensor) -> object:
    # A storage lives as long as any view of it, also one that a hook keeps.
    try:
        if copied.layout is torch.sparse_coo:
            return copied._values().untyped_storage()
        return (copied if copied.layout is torch.strided else copied.values()).untyped_storage()
    except (RuntimeError, NotImplementedError):
        return copied


def big(value: torch.Tensor) -> int:
    """Bytes that a copy of it takes, if they count in the budget; else 0."""
    nbytes = nbytes_of(value)
    return nbytes if nbytes > SMALL else 0


KINDS: dict[type, Rule] = {
    torch.Tensor: Kind("copied", take_tensor, big),
    torch.Size: REFERENCE,
    torch.dtype: REFERENCE,
    torch.device: REFERENCE,
    torch.layout: REFERENCE,
    torch.memory_format: REFERENCE,
    torch.finfo: REFERENCE,
    torch.iinfo: REFERENCE,
    torch.Stream: REFERENCE,
    torch.utils.data.DataLoader: REFERENCE,
    torch.utils.data.Sampler: REFERENCE,
    torch.utils.data.Dataset: REFERENCE,
}
