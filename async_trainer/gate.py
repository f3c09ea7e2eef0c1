"""Waiting for another thread once, so that Ctrl-C leaves nothing broken."""

from __future__ import annotations

import _thread
import threading
from collections.abc import Callable
from typing import Any


class Gate:
    """An event that Ctrl-C can't break: one of ``threading`` stays locked where an interrupt comes into it."""

    def __init__(self) -> None:
        self.is_open = False
        self._lock = threading.Lock()
        self._lock.acquire()

    def open(self) -> None:
        """Let all through, from now on. Any thread."""
        self.is_open = True
        try:
            self._lock.release()
        except RuntimeError:  # it was open already
            pass

    def wait(self, timeout: float) -> bool:
        """Wait at most ``timeout`` seconds; whether it is open."""
        if not self.is_open and self._lock.acquire(timeout=min(timeout, threading.TIMEOUT_MAX)):
            self.open()  # for the next one
        return self.is_open


def uninterrupted(function: Callable[..., None], *args: Any) -> None:
    """Call ``function`` on another thread, where Ctrl-C doesn't reach it, and wait for it.

    Not by ``threading.Thread``: an interrupt in its ``start()`` may leave the lock taken that the new thread needs.
    """
    errors: list[BaseException] = []
    done = Gate()

    def run() -> None:
        try:
            function(*args)
        except BaseException as error:
            errors.append(error)
        finally:
            done.open()

    _thread.start_new_thread(run, ())
    done.wait(threading.TIMEOUT_MAX)
    if errors:
        raise errors[0]
