"""Threads that wait, so that Ctrl-C, which may break into the main thread after any call, leaves nothing broken."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

clock = time.perf_counter


class Waiters:
    """A condition variable that Ctrl-C can't break.

    ``threading.Condition`` releases a lock that it doesn't hold where an interrupt comes while it takes the lock back:
    seen within seconds of the stress test. Here a waiting thread sleeps on a lock of its own, its bell, and holds
    nothing. Who changes something rings all bells, without a lock; where nobody waits that is one look at an empty
    list.
    """

    def __init__(self) -> None:
        self._bells: list[threading.Lock] = []

    def ring(self) -> None:
        """Something has changed. Any thread, at any time."""
        for bell in tuple(self._bells):
            try:
                bell.release()
            except RuntimeError:  # it rings already
                pass

    def wait(self, decide: Callable[[float], float | None]) -> float:
        """Sleep until ``decide(now)`` returns None; it returns the seconds after which to look again in any case.

        Returns:
            The seconds that this took.
        """
        bell = threading.Lock()
        bell.acquire()
        began = now = clock()
        self._bells.append(bell)  # before the first look: what changes after it is heard
        try:
            while (seconds := decide(now)) is not None:
                bell.acquire(timeout=max(0.0, min(seconds, threading.TIMEOUT_MAX)))
                now = clock()
        finally:
            self._bells.remove(bell)
        return now - began
