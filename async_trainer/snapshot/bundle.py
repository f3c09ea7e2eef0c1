"""Captured values that lead back to themselves: freed when the last lane is done, not when the collector comes by.

A model with ``self.act = lambda x: self.head(x)``, or with a reference to its parent, is captured as a cycle. Left to
Python's collector, hundreds of megabytes would stay for many events, and outside the byte budget.
"""

from __future__ import annotations

from typing import Any

from async_trainer.snapshot.sealed import Scope, Sealed


class Bundle:
    """The values of one event that were met again below themselves: every cycle goes through one of them.

    It is held by what ``take`` returned, and by nothing inside: when those are gone, it opens the cycles. Any thread.
    """

    __slots__ = ("nodes",)

    def __init__(self) -> None:
        self.nodes: list[Sealed] = []

    def __del__(self) -> None:
        for node in self.nodes:
            node.forget()


class SealedRoot(Sealed):
    """What ``take`` returns once a cycle was found in its event."""

    __slots__ = ("bundle", "held")

    def __init__(self, held: Sealed, bundle: Bundle) -> None:
        self.held = held
        self.bundle = bundle

    def open(self, scope: Scope) -> Any:
        return self.held.open(scope)


def bundled(taken: Any, bundle: Bundle) -> Any:
    """``taken``, holding the bundle of its event. TRAINING THREAD."""
    return SealedRoot(taken, bundle) if isinstance(taken, Sealed) else taken
