"""What becomes of the values of one type when they are captured."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from async_trainer.snapshot.memo import Memo

SMALL = 64 * 1024
"""Bytes. A value up to this size is outside the byte budget, and each hook that opens it gets a copy of its own."""


@dataclass(frozen=True, slots=True)
class Kind:
    """How the values of one type are captured.

    Attributes:
        how: said by ``explain()``: "by reference", "replica of the module", ...
        take: called on the *training thread* with a live value and the event's memo; returns a value that never
            changes again, or a ``Sealed`` that each hook opens for itself. ``None``: by reference.
        size: bytes of the big parts (above ``SMALL`` each) that ``take`` will copy; cheap, on the training thread.
            ``None``: nothing big, or not knowable before copying.
        plain: str, bytes, number, bool, None, enum, path: what ``**kwargs`` of a hook brings.
        quick: as ``take``, for values whose copy is small and frozen, and shares nothing: without a memo.
        parts: for a value made of others: those that may be big. ``size`` then sums over them, each counted once.
    """

    how: str
    take: Callable[[Any, Memo], Any] | None
    size: Callable[[Any], int] | None = None
    plain: bool = False
    parts: Callable[[Any], Iterable[Any]] | None = None
    quick: Callable[[Any], Any] | None = None


REFERENCE = Kind("by reference", None)
PLAIN = Kind("by reference", None, plain=True)
