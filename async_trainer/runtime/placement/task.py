"""A lane as a task on the pool's event loop: for callbacks with ``async def`` hooks."""

from __future__ import annotations

import contextvars
import inspect
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import anyio
from anyio.abc import TaskGroup

from async_trainer.gate import Gate
from async_trainer.runtime import attempt as attempts
from async_trainer.runtime.job import Job, Mark

clock = time.perf_counter
COPYING = 0.001  # s: to look again whether the copies are made; waiting for them would hold up the loop

if TYPE_CHECKING:
    from async_trainer.runtime.lane import Lane
    from async_trainer.runtime.pool import Pool


class TaskWorker:
    """Awaits the hooks of a lane, one at a time, on the pool's loop. A hook that is not async holds up the loop, and
    with it the other task lanes, while it runs."""

    def __init__(self, lane: Lane, pool: Pool) -> None:
        self._lane = lane
        self._pool = pool
        self._bell: anyio.Event | None = None
        self._scope: anyio.CancelScope | None = None
        self._ended = Gate()

    def start(self, context: contextvars.Context) -> None:
        def spawn(tasks: TaskGroup) -> None:
            self._bell = anyio.Event()
            context.run(tasks.start_soon, self._run)  # a task runs in a copy of the context it is started in

        self._pool.loop.call(spawn)

    def ring(self) -> None:
        self._pool.loop.call(self._ring)

    def _ring(self, _: TaskGroup) -> None:
        if self._bell is not None:
            self._bell.set()

    def run(self) -> None:
        """It runs by itself."""

    def stop(self) -> None:
        self._pool.loop.call(self._cancel)

    def _cancel(self, _: TaskGroup) -> None:
        if self._scope is not None and self._lane.abandoned:
            self._scope.cancel()

    @property
    def alive(self) -> bool:
        """It has no thread of its own."""
        return False

    def join(self, timeout: float) -> None:
        self._ended.wait(timeout)

    def after_fork(self) -> None:
        """Nothing of it is there."""

    async def _run(self) -> None:
        from async_trainer.runtime.pool import current_lane

        current_lane.set(self._lane)
        pool, lane = self._pool, self._lane
        while True:
            assert self._bell is not None
            bell, self._bell = self._bell, anyio.Event()
            items = pool.take(lane)
            if items is None:
                break
            if isinstance(items, Mark):
                attempts.visit(pool, lane, items)
            elif items:
                await self._run_batch(items)
                await anyio.lowlevel.checkpoint()  # hooks that never await must not keep the other lanes waiting
            else:
                del bell
                await self._bell.wait()
            del items
        pool.worker_ended()
        self._ended.open()

    async def _run_batch(self, jobs: Sequence[Job | None]) -> None:
        pool, lane = self._pool, self._lane
        for job in jobs:
            assert job is not None
            await self._handle(job)
            pool.tell()
            if pool.pause or lane.abandoned or pool.turn_is_over(lane):
                pool.give_back(lane)
                break

    async def _handle(self, job: Job) -> None:
        pool, lane, owner = self._pool, self._lane, job.task.owner
        if owner.disabled:
            attempts.drop(pool, lane, job)
            return
        attempt = 1
        while True:
            attempts.begin(pool, lane, pool.stall_timeout)
            error: BaseException
            with anyio.CancelScope() as self._scope:
                try:
                    result = await self._call(job, attempt)
                except BaseException as raised:  # SystemExit too: only the training thread ends a run
                    if self._is_ours(raised):
                        raise
                    error = raised
                else:
                    attempts.succeed(pool, lane, job, result)
                    return
                delay = attempts.delay_before_retry(job, attempt, error)
                if delay is not None:
                    await anyio.sleep(delay)
                    attempt += 1
                    continue
            if self._scope.cancelled_caught:  # abandoned: close() counts it as lost
                return
            attempts.fail(pool, lane, job, attempt, error)
            return

    def _is_ours(self, error: BaseException) -> bool:
        """Whether ``error`` ends this task, and is not the hook's own (which may have cancelled what it awaits)."""
        if isinstance(error, anyio.get_cancelled_exc_class()):
            return self._pool.loop.stopping or (self._scope is not None and self._scope.cancel_called)
        return isinstance(error, GeneratorExit)

    async def _call(self, job: Job, attempt: int) -> Any:
        timeout = job.task.owner.timeout
        lease = job.payload.lease
        while lease is not None and lease.transfer is not None and not lease.transfer.done:
            await anyio.sleep(COPYING)
        began = clock()
        try:
            with anyio.move_on_after(timeout) as scope:
                result = job.task.call(job, attempt)
                return await result if inspect.isawaitable(result) else result
        finally:  # what other tasks of the loop use of the CPU meanwhile can't be told from its own
            self._lane.burden.add(began, clock() - began, 0.0, beside_loop=False)
        if scope.cancelled_caught:
            raise TimeoutError(f"cancelled after its timeout of {timeout} s")
        return None
