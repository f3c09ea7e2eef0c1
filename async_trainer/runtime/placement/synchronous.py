"""A lane that is handled on the spot, on the thread that emits: for debugging."""

from __future__ import annotations

import contextvars
import inspect
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from anyio.from_thread import start_blocking_portal

from async_trainer.runtime import attempt as attempts
from async_trainer.runtime.job import Job, Mark

if TYPE_CHECKING:
    from async_trainer.runtime.lane import Lane
    from async_trainer.runtime.pool import Pool


class SynchronousWorker:
    """Runs a lane's hooks where the event is emitted, and raises their errors there. No retries, no timeouts."""

    def __init__(self, lane: Lane, pool: Pool) -> None:
        self._lane = lane
        self._pool = pool
        self._running = False
        self._context = contextvars.Context()
        self._open = ExitStack()
        self._portal: Any = None

    def start(self, context: contextvars.Context) -> None:
        self._context = context

    def ring(self) -> None:
        """Nothing sleeps: whoever pushed calls :meth:`run`."""

    def stop(self) -> None:
        """Nothing is under way between two calls."""

    @property
    def alive(self) -> bool:
        """It has no thread of its own."""
        return False

    def join(self, timeout: float) -> None:
        self.run()
        self._open.close()

    def after_fork(self) -> None:
        """Nothing of it is there."""

    def run(self) -> None:
        """Handle what is there. A job that a hook of this lane pushes comes after that hook, as in the background."""
        if self._running:
            return
        self._running = True
        try:
            self._context.run(self._drain)
        finally:
            self._running = False

    def _drain(self) -> None:
        from async_trainer.runtime.pool import current_lane

        current_lane.set(self._lane)
        while items := self._pool.take(self._lane):
            if isinstance(items, Mark):
                attempts.visit(self._pool, self._lane, items)
                continue
            try:
                for job in items:
                    assert job is not None
                    self._handle(job)
            finally:
                self._pool.give_back(self._lane)

    def _handle(self, job: Job) -> None:
        pool, lane = self._pool, self._lane
        attempts.begin(pool, lane, pool.stall_timeout)
        try:
            result = job.task.call(job, 1)
            if inspect.isawaitable(result):
                result = self._await(result)
        except BaseException as error:
            attempts.fail(pool, lane, job, 1, error)
            pool.failures.to_raise.clear()  # it is raised here, and once is enough
            raise
        attempts.succeed(pool, lane, job, result)

    def _await(self, awaitable: Any) -> Any:
        if self._portal is None:
            self._portal = self._open.enter_context(start_blocking_portal())

        async def result() -> Any:
            return await awaitable

        return self._portal.call(result)
