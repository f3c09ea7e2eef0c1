"""What workers with a thread of their own have in common: it sleeps until it is rung."""

from __future__ import annotations

import contextvars
import threading
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

from async_trainer.gate import Gate

if TYPE_CHECKING:
    from async_trainer.runtime.lane import Lane
    from async_trainer.runtime.pool import Pool


class OnThread(ABC):
    """A lane's thread, which runs :meth:`_run`."""

    def __init__(self, lane: Lane, pool: Pool) -> None:
        self._lane = lane
        self._pool = pool
        self._bell = threading.Lock()  # held while there is nothing to hear
        self._bell.acquire()
        self._over = Gate()  # cuts a wait before another attempt short
        self._thread: threading.Thread | None = None

    def start(self, context: contextvars.Context) -> None:
        self._thread = threading.Thread(
            target=context.run, args=(self._run,), name=f"async_trainer-{self._lane.name}", daemon=True
        )
        self._thread.start()

    def ring(self) -> None:
        try:
            self._bell.release()
        except RuntimeError:  # it rings already
            pass

    def run(self) -> None:
        """It runs by itself."""

    @property
    def alive(self) -> bool:
        """Whether its thread runs."""
        return self._thread is not None and self._thread.is_alive()

    def join(self, timeout: float) -> None:
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(timeout)

    @abstractmethod
    def _run(self) -> None:
        """Take jobs, until there are no more."""
