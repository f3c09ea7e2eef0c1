"""Where a lane's hooks run: a worker for each placement."""

from __future__ import annotations

import contextvars
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

from async_trainer.runtime.placement.process import ProcessWorker
from async_trainer.runtime.placement.synchronous import SynchronousWorker
from async_trainer.runtime.placement.task import TaskWorker
from async_trainer.runtime.placement.thread import ThreadWorker

if TYPE_CHECKING:
    from async_trainer.runtime.lane import Lane
    from async_trainer.runtime.pool import Pool


class Worker(Protocol):
    """Takes a lane's jobs from the pool, and runs them one at a time."""

    def start(self, context: contextvars.Context) -> None:
        """Start, in ``context``. The training thread."""

    def ring(self) -> None:
        """There may be something to take. Any thread; takes no lock; ringing too often does no harm."""

    def run(self) -> None:
        """In synchronous mode: handle what there is. Else nothing: the worker does, when rung."""

    def stop(self) -> None:
        """The lane was abandoned: cut short what can be, the wait before another attempt, an async hook. Any thread."""

    @property
    def alive(self) -> bool:
        """Whether a thread of its own runs."""

    def join(self, timeout: float) -> None:
        """Wait, at most ``timeout`` seconds, until it has ended."""

    def after_fork(self) -> None:
        """In a forked child."""


PLACEMENTS: dict[str, Callable[[Lane, Pool], Worker]] = {
    "thread": ThreadWorker,
    "task": TaskWorker,
    "process": ProcessWorker,
    "synchronous": SynchronousWorker,
}
