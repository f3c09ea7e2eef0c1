"""Frames: what a child is told at once is one pickle. Plain values go into it as they are, so that a burst of small
events is pickled, and read, in one go."""

from __future__ import annotations

import io
import pickle
import sys
from collections.abc import Callable, Iterable
from typing import Any

PROTOCOL = 5
PLAIN = (type(None), bool, int, float, complex, str, bytes)
_PLAIN = frozenset(PLAIN)  # not of classes derived from them
NUMBERS = ("float32", "float64", "float16", "bfloat16", "int64", "int32", "bool")
"""Of torch's types, those whose values a number of Python's holds."""

Check = Callable[[Any], bool]


class Frames:
    """Pickles frames. One thread."""

    def __init__(self) -> None:
        self._checks: dict[type, Check] = {}
        self._table: dict[type, Callable[[Any], Any]] = {}

    def plain(self, values: Iterable[Any]) -> bool:
        """Whether ``values`` can all be pickled by a plain pickler, and be made again by any child: plain values,
        states, tensors of one number."""
        checks = self._checks
        for value in values:
            cls = type(value)
            if cls not in _PLAIN and not (checks.get(cls) or self._learn(cls))(value):
                return False
        return True

    def _learn(self, cls: type) -> Check:
        torch: Any = sys.modules.get("torch")
        check: Check = _is_not
        if torch is not None and cls is torch.Tensor:
            check = _number_check(torch)
            self._table[cls] = _number_parts
        elif vars(cls).get("plain_fields"):  # not of a class derived from it, which can be anything
            check = _has_plain_fields
        self._checks[cls] = check
        return check

    def dump(self, messages: tuple[Any, ...]) -> bytes:
        """The frame of ``messages``."""
        file = io.BytesIO()
        pickler = pickle.Pickler(file, PROTOCOL)
        pickler.dispatch_table = self._table
        pickler.dump(messages)
        return file.getvalue()


def _is_not(_: Any) -> bool:
    return False


def _has_plain_fields(value: Any) -> bool:
    return _PLAIN.issuperset(map(type, vars(value).values()))


def _number_check(torch: Any) -> Check:
    dtypes = frozenset(getattr(torch, name) for name in NUMBERS)
    strided = torch.strided

    def check(live: Any) -> bool:
        return bool(
            live.dim() == 0
            and live.dtype in dtypes
            and live.layout is strided
            and live.device.type == "cpu"
            and not (live.requires_grad or live.__dict__)
        )

    return check


def _number_parts(live: Any) -> tuple[Any, ...]:
    return remade_number, (live.item(), live.dtype)


def remade_number(number: Any, dtype: Any) -> Any:
    """A tensor of one number."""
    import torch

    return torch.tensor(number, dtype=dtype)
