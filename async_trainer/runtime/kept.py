"""Big buffers that hooks still hold though their event is over: out of the budget, but shown."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol


class Buffer(Protocol):
    """A weak reference to a big copy, that knows its bytes."""

    nbytes: int

    def __call__(self) -> Any:
        """The copy, or None where nothing holds it any more."""


class Kept:
    """Weak references to the big copies of snapshots that have left the budget. The pool's lock guards ``add``."""

    def __init__(self) -> None:
        self._buffers: list[Buffer] = []
        self._prune_at = 256

    def add(self, buffers: Sequence[Buffer]) -> None:
        """A snapshot has left the budget."""
        self._buffers += buffers
        if len(self._buffers) > self._prune_at:
            self._buffers = [buffer for buffer in self._buffers if buffer() is not None]
            self._prune_at = 256 + 2 * len(self._buffers)

    @property
    def nbytes(self) -> int:
        """Bytes that are still alive."""
        return sum(buffer.nbytes for buffer in list(self._buffers) if buffer() is not None)
