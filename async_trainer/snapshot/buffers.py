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
POISON = 0xA5


class Pooled:
    """A big copy of an event.

    Called, it gives the copy while anything but its event holds it: what a hook has kept.

    Attributes:
        nbytes: its size.
    """

    __slots__ = ("_kept", "_tensor", "nbytes")

    def __init__(self, tensor: torch.Tensor, nbytes: int) -> None:
        self._tensor: torch.Tensor | None = tensor
        self._kept: weakref.ref[Any] | None = None
        self.nbytes = nbytes

    def __call__(self) -> object:
        tensor = self._tensor
        if tensor is not None:
            return tensor if in_use(tensor) else None
        return None if self._kept is None else self._kept()

    def take_back(self) -> torch.Tensor | None:
        """The buffer, if nobody holds it; else it is the holder's from now on."""
        tensor, self._tensor = self._tensor, None
        if tensor is None:
            return None
        storage = tensor.untyped_storage()
        if _use_count is None or _uses(storage) > ALONE:
            self._kept = weakref.ref(storage)
            return None
        # A hook may have resized it, or sent it to another process, which sees it still.
        return tensor if storage.nbytes() == tensor.nbytes and not storage.is_shared() else None


class Buffers:
    """Buffers that wait to be used again. Any thread; takes no lock."""

    def __init__(self) -> None:
        self._free: dict[Any, list[torch.Tensor]] = {}
        self._returned: deque[list[Pooled]] = deque()  # event by event
        self._unsettled: deque[Any] = deque()  # copies that are still made though their events are over

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

    def give_back(self, buffers: Iterable[Any]) -> None:
        """The event of ``buffers`` is over: nobody will read them any more, save who holds them already. Those that
        aren't pooled are their holders'. Any thread, possibly under a lock: they are looked at later."""
        pooled: list[Pooled] = []
        for buffer in buffers:
            if type(buffer) is Pooled:
                pooled.append(buffer)
            elif hasattr(buffer, "give_back"):  # copies that are made while the training goes on
                pooled += buffer.give_back()
                if not buffer.done:
                    self._unsettled.append(buffer)
        if pooled:
            self._returned.append(pooled)

    def reclaim(self) -> None:
        """Look at what was given back: what no hook holds is used again."""
        for _ in range(len(self._returned)):
            try:
                event = self._returned.popleft()
            except IndexError:  # another thread was faster
                return
            for pooled in event:
                tensor = pooled.take_back()
                if tensor is not None:
                    if sys.flags.dev_mode:
                        poison(tensor)
                    self._free.setdefault((tensor.dtype, tensor.shape, tensor.stride()), []).append(tensor)

    def settle(self, room: int) -> float:
        """Wait for copies that are still made though their events are over, until those that are left take at most
        ``room`` bytes. TRAINING THREAD.

        Returns:
            The seconds that this took.
        """
        if not self._unsettled:
            return 0.0
        seconds = 0.0
        unsettled = [self._unsettled.popleft() for _ in range(len(self._unsettled))]
        over = sum(transfer.planned for transfer in unsettled if not transfer.done) - room
        for transfer in unsettled:
            if over > 0 and not transfer.done:
                seconds += transfer.wait()
                over -= transfer.planned
            if not transfer.done:
                self._unsettled.append(transfer)
        self.reclaim()
        return seconds

    def trim(self, room: int) -> None:
        """Let go of buffers until those that are left take at most ``room`` bytes; those that came first go first."""
        over = self.nbytes - room
        for key in list(self._free) if over > 0 else ():
            waiting = self._free[key]
            while over > 0:
                try:
                    over -= waiting.pop().nbytes
                except IndexError:  # it was the last, or another thread was faster
                    break
            if not waiting:
                self._free.pop(key, None)

    @property
    def nbytes(self) -> int:
        """Bytes that wait to be used again."""
        return sum(
            len(waiting) * dtype.itemsize * shape.numel() for (dtype, shape, _), waiting in [*self._free.items()]
        )


def in_use(tensor: torch.Tensor) -> bool:
    """Whether another tensor, array or storage object shares the memory of ``tensor``."""
    storage = tensor.untyped_storage()
    return _use_count is None or _uses(storage) > ALONE


def _uses(storage: torch.UntypedStorage) -> int:
    """How often a storage is used, and its one object in Python, which all tensors over it share. From a frame that
    has it in one variable: each counts."""
    return int(_use_count(storage._cdata)) + sys.getrefcount(storage)


def _uses_alone() -> int:
    """That of a storage that only its tensor uses, and the variable by which it is asked for."""
    tensor = torch.empty(1)
    storage = tensor.untyped_storage()
    return _uses(storage)


ALONE = _uses_alone() if _use_count is not None else 0


def poison(tensor: torch.Tensor) -> None:
    """Make the content unmistakable: with ``python -X dev``, for whoever reads a buffer that is no longer theirs."""
    ctypes.memset(tensor.data_ptr(), POISON, tensor.untyped_storage().nbytes())
