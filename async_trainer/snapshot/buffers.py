"""Warm memory for big copies: a buffer that no hook holds any more is used again for a tensor of the same form.

Memory fresh from the system costs its page faults: 300 MB of it are copied into in some 60 ms, warm in 18.
"""

from __future__ import annotations

import ctypes
import sys
import weakref
from collections import deque
from collections.abc import Iterable
from typing import Any

import torch

_use_count: Any = getattr(torch._C, "_storage_Use_Count", None)  # None: no buffer is ever used twice
ALONE = 2  # uses of a storage that only our own tensor, and the storage object at hand, have
POISON = 0xA5


class Pooled:
    """A big copy of an event.

    Called, it gives the copy while anything but its event holds it: what a hook has kept.

    Attributes:
        nbytes: its size.
        transfer: what fills it; None: it is full.
    """

    __slots__ = ("_kept", "_tensor", "nbytes", "transfer")

    def __init__(self, tensor: torch.Tensor, nbytes: int, transfer: Any) -> None:
        self._tensor: torch.Tensor | None = tensor
        self._kept: weakref.ref[Any] | None = None
        self.nbytes = nbytes
        self.transfer = transfer

    def __call__(self) -> object:
        tensor = self._tensor
        if tensor is not None:
            return tensor if in_use(tensor) else None
        return None if self._kept is None else self._kept()

    @property
    def settled(self) -> bool:
        """Whether nothing is written to it any more."""
        return self.transfer is None or bool(self.transfer.done)

    def take_back(self) -> torch.Tensor | None:
        """The buffer, if nobody holds it; else it is the holder's from now on."""
        tensor, self._tensor = self._tensor, None
        if tensor is not None and in_use(tensor):
            self._kept = weakref.ref(tensor.untyped_storage())
            return None
        return tensor


class Buffers:
    """Buffers that wait to be used again. Any thread; takes no lock."""

    def __init__(self) -> None:
        self._free: dict[Any, list[torch.Tensor]] = {}
        self._returned: deque[Pooled] = deque()

    def like(self, live: torch.Tensor, room: int) -> torch.Tensor | None:
        """A buffer for a copy of ``live``, with its strides. What waits here takes no more than ``room`` bytes then.

        Returns:
            None: a tensor with holes or overlaps, for which ``clone`` does better.
        """
        try:
            return self._free[live.dtype, live.shape, live.stride()].pop()
        except (KeyError, IndexError):
            self.trim(room)
        made = torch.empty_like(live, requires_grad=False)
        return made if made.stride() == live.stride() else None

    def give_back(self, buffers: Iterable[Pooled]) -> None:
        """The event of ``buffers`` is over. Any thread, possibly under a lock: they are looked at later."""
        self._returned.extend(buffers)

    def reclaim(self) -> None:
        """Look at what was given back: what no hook holds is used again."""
        for _ in range(len(self._returned)):
            try:
                pooled = self._returned.popleft()
            except IndexError:  # another thread was faster
                return
            if not pooled.settled:
                self._returned.append(pooled)
                continue
            tensor = pooled.take_back()
            if tensor is not None:
                if sys.flags.dev_mode:
                    poison(tensor)
                self._free.setdefault((tensor.dtype, tensor.shape, tensor.stride()), []).append(tensor)

    def trim(self, room: int) -> None:
        """Let go of buffers until those that are left take at most ``room`` bytes; those that came first go first."""
        over = self.nbytes - room
        for key in list(self._free) if over > 0 else ():
            waiting = self._free[key]
            while waiting and over > 0:
                over -= waiting.pop().nbytes
            if not waiting:
                self._free.pop(key, None)

    @property
    def nbytes(self) -> int:
        """Bytes that wait to be used again."""
        return sum(tensor.nbytes for waiting in list(self._free.values()) for tensor in list(waiting))


def in_use(tensor: torch.Tensor) -> bool:
    """Whether another tensor, array or storage object shares the memory of ``tensor``."""
    return _use_count is None or _use_count(tensor.untyped_storage()._cdata) > ALONE


def poison(tensor: torch.Tensor) -> None:
    """Make the content unmistakable: with ``python -X dev``, for whoever reads a buffer that is no longer theirs."""
    ctypes.memset(tensor.data_ptr(), POISON, tensor.untyped_storage().nbytes())
