"""Whether two values are the same in every leaf: classes, structure, sharing, numbers."""

from __future__ import annotations

import dataclasses
import types
import weakref
from collections import deque
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
import torch

Seen = dict[tuple[int, int], tuple[Any, Any]]

_HOOKS = frozenset(name for name in vars(torch.nn.Module()) if "hook" in name)


def same(a: Any, b: Any, seen: Seen | None = None) -> bool:
    """Compares by value, leaf by leaf; cyclic values too."""
    seen = {} if seen is None else seen
    if (id(a), id(b)) in seen:
        return True
    seen[id(a), id(b)] = (a, b)
    if isinstance(a, torch.nn.Module):
        # A parametrized module has a class of its own.
        named = type(a).__qualname__ == type(b).__qualname__ and "parametrizations" in vars(a).get("_modules", {})
        return (type(a) is type(b) or named) and _same_module(a, b, seen)
    if isinstance(a, torch.optim.Optimizer):
        return same([a.state_dict(), a.defaults, a.param_groups], [b.state_dict(), b.defaults, b.param_groups], seen)
    if isinstance(a, torch.optim.lr_scheduler.LRScheduler):
        return same([a.state_dict(), a.get_last_lr()], [b.state_dict(), b.get_last_lr()], seen)
    if isinstance(a, torch.amp.GradScaler):
        return same([a.state_dict(), a.get_scale()], [b.state_dict(), b.get_scale()], seen)
    if type(a) is not type(b):
        return False
    if isinstance(a, torch.Tensor):
        return _same_tensor(a, b)
    if isinstance(a, weakref.ref):
        return same(a(), b(), seen)
    if isinstance(a, np.ndarray):
        return _same_array(a, b, seen)
    if isinstance(a, pd.api.extensions.ExtensionArray):
        return a.dtype == b.dtype and same(a.tolist(), b.tolist(), seen)
    if isinstance(a, pd.DataFrame | pd.Series | pd.Index):
        return _same_frame(a, b, seen)
    return _same_structure(a, b, seen)


def _same_tensor(a: torch.Tensor, b: torch.Tensor) -> bool:
    if (a.dtype, a.shape, a.layout, a.device) != (b.dtype, b.shape, b.layout, b.device):
        return False
    if a.is_meta:
        return True
    a, b = a.detach(), b.detach()
    if a.layout is not torch.strided:
        a, b = a.clone().to_dense(), b.clone().to_dense()
    return torch.allclose(a, b, rtol=0, atol=0, equal_nan=True) if a.is_floating_point() else torch.equal(a, b)


def _same_array(a: Any, b: Any, seen: Seen) -> bool:
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    if a.dtype.hasobject:
        return same(a.tolist(), b.tolist(), seen)
    return bool(np.array_equal(a, b, equal_nan=a.dtype.kind in "fc"))


def _same_frame(a: Any, b: Any, seen: Seen) -> bool:
    if isinstance(a, pd.Index):
        return bool(a.equals(b)) and a.names == b.names and a.dtype == b.dtype
    if not (a.index.equals(b.index) and same(a.attrs, b.attrs, seen)):
        return False
    if isinstance(a, pd.Series):
        return a.dtype == b.dtype and a.name == b.name and same(a.tolist(), b.tolist(), seen)
    return list(a.columns) == list(b.columns) and all(
        same(a.iloc[:, place], b.iloc[:, place], seen) for place in range(a.shape[1])
    )


def _same_module(a: Any, b: Any, seen: Seen) -> bool:
    mine = {name: value for name, value in vars(a).items() if name not in _HOOKS}
    other = {name: value for name, value in vars(b).items() if name not in _HOOKS}
    return same(mine, other, seen) and same(dict(a.state_dict()), dict(b.state_dict()), seen)


def _same_structure(a: Any, b: Any, seen: Seen) -> bool:
    if isinstance(a, Mapping):
        if len(a) != len(b) or (list(a) != list(b) and not all(isinstance(key, torch.Tensor) for key in a)):
            return False
        if not all(same(x, y, seen) for x, y in zip(a.values(), b.values(), strict=True)):
            return False
    elif isinstance(a, list | tuple | deque):
        if len(a) != len(b) or not all(same(x, y, seen) for x, y in zip(a, b, strict=True)):
            return False
    elif isinstance(a, set | frozenset):
        return a == b or same(sorted(a, key=repr), sorted(b, key=repr), seen)
    elif isinstance(a, float) and a != a:
        return b != b
    elif isinstance(a, types.FunctionType | types.MethodType):
        return bool(a.__code__ == b.__code__)
    elif not hasattr(a, "__dict__") and not dataclasses.is_dataclass(a):
        return bool(a == b)
    mine, other = _attributes(a), _attributes(b)
    return mine.keys() == other.keys() and all(same(held, other[name], seen) for name, held in mine.items())


def _attributes(value: Any) -> dict[str, Any]:
    if isinstance(value, BaseException | type | types.ModuleType):
        return {}
    held = {name: getattr(value, name) for name in getattr(type(value), "__slots__", ()) if hasattr(value, name)}
    return held | dict(getattr(value, "__dict__", {}))
