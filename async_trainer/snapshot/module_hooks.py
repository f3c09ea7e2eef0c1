"""The hooks of a module: those that compute are part of the replica, those of users are left out."""

from __future__ import annotations

import weakref
from collections import OrderedDict
from typing import Any

from torch.utils.hooks import RemovableHandle

from async_trainer.snapshot.kind import Kind
from async_trainer.snapshot.memo import Memo
from async_trainer.snapshot.registry import leaf
from async_trainer.snapshot.sealed import Scope, Sealed, SealedNode, open_value


class SealedHooks(SealedNode):
    """A module's hooks of one sort: those that are part of what the module computes."""

    __slots__ = ("kept",)

    def __init__(self, kept: dict[int, Any]) -> None:
        self.kept = kept

    def open(self, scope: Scope) -> OrderedDict[int, Any]:
        if self not in scope.opened:
            scope.opened[self] = OrderedDict((key, open_value(hook, scope)) for key, hook in self.kept.items())
        opened: OrderedDict[int, Any] = scope.opened[self]
        return opened


class SealedHandle(Sealed):
    """A ``RemovableHandle``: it removes a hook from the replica, or nothing."""

    __slots__ = ("hooks", "key")

    def __init__(self, hooks: SealedHooks | None, key: int) -> None:
        self.hooks = hooks
        self.key = key

    def open(self, scope: Scope) -> RemovableHandle:
        handle = object.__new__(RemovableHandle)
        handle.hooks_dict_ref = weakref.ref(OrderedDict() if self.hooks is None else self.hooks.open(scope))
        handle.id = self.key
        handle.extra_dict_ref = ()
        return handle


def take_hooks(hooks: dict[int, Any], memo: Memo) -> Sealed:
    """Capture the hooks of one sort. TRAINING THREAD."""
    # Known from now on, so that a handle to one of them finds the replica's.
    sealed = SealedHooks({})
    memo.begin(hooks, sealed)
    for key, hook in hooks.items():
        if _computes(hook) or hook is True:
            sealed.kept[key] = leaf(hook, memo)
    sealed.done = True
    return sealed


def _computes(hook: Any) -> bool:
    # weight_norm, spectral_norm and pruning of torch.nn.utils, and lazy modules, compute weights in hooks. Those of
    # users are about the live model: they are left out.
    owner = getattr(hook, "__func__", type(hook)).__module__ or ""
    return owner.startswith(("torch.nn.utils.", "torch.nn.modules.lazy"))


def _take_handle(value: RemovableHandle, memo: Memo) -> Any:
    hooks = memo.again(memo.copies.get(id(value.hooks_dict_ref())))
    return SealedHandle(hooks if isinstance(hooks, SealedHooks) else None, value.id)


KINDS: dict[type, Kind] = {RemovableHandle: Kind("without effect on the live module", _take_handle)}
