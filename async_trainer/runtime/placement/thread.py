"""A lane on a thread of its own."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from async_trainer.runtime import attempt as attempts
from async_trainer.runtime.failures import say
from async_trainer.runtime.interpreter import switch_interval
from async_trainer.runtime.job import Job, Mark
from async_trainer.runtime.placement.on_thread import OnThread

if TYPE_CHECKING:
    from async_trainer.runtime.lane import Lane
    from async_trainer.runtime.pool import Pool

TELL_EVERY = 0.001  # s: how often, within a batch, waiting threads are told that there is room
MEASURE_EVERY = 0.25  # s: how often, within a batch, what its hooks take is added up
clock, cpu_clock = time.perf_counter, time.thread_time


class ThreadWorker(OnThread):
    """Runs all hooks of a lane on one thread, in one copy of the contextvars.

    Not on anyio's worker threads: those have no affinity (a callback with a thread-local state, such as mlflow's
    active run or a sqlite3 connection, would be scattered), and a hop to one and back takes 30 to 50 µs of the
    interpreter that the training thread wants.
    """

    def __init__(self, lane: Lane, pool: Pool) -> None:
        super().__init__(lane, pool)
        self._measured = (0.0, 0.0)  # s: wall and CPU time, when last added up

    def stop(self) -> None:
        self._over.open()
        switch_interval.leave(self._lane)

    def after_fork(self) -> None:
        """Nothing of it is there."""

    def _run(self) -> None:
        from async_trainer.runtime.pool import current_lane

        current_lane.set(self._lane)
        pool, lane = self._pool, self._lane
        busy = False
        while (items := pool.take(lane)) is not None:
            if isinstance(items, Mark):
                attempts.visit(pool, lane, items)
            elif items:
                if not busy and pool.switch_interval is not None:
                    switch_interval.enter(lane, pool.switch_interval)
                    busy = True
                self._run_batch(items)
            else:
                if busy:
                    switch_interval.leave(lane)
                    busy = False
                self._bell.acquire()
            del items  # while this sleeps, the last snapshot must not live on in a local
        switch_interval.leave(lane)
        pool.worker_ended()

    def _run_batch(self, jobs: Sequence[Job | None]) -> None:
        pool, lane = self._pool, self._lane
        told = 0.0
        self._measured = (clock(), cpu_clock())
        for job in jobs:
            assert job is not None
            if job.task.essential:  # it imports, opens, and comes once
                self._measure()
                now = self._handle(job)
                self._measure(beside_loop=False)
            else:
                now = self._handle(job)
            if now - told > TELL_EVERY:
                told = now
                pool.tell()
                if now - self._measured[0] > MEASURE_EVERY:
                    self._measure()
            if pool.pause or lane.abandoned or (pool.crowded and pool.turn_is_over(lane)):
                pool.give_back(lane)
                break
        self._measure()
        pool.tell()

    def _measure(self, *, beside_loop: bool = True) -> None:
        """Add up what the hooks have taken since the last time."""
        pool, lane = self._pool, self._lane
        began, before = self._measured
        now, cpu = self._measured = (clock(), cpu_clock())
        beside_loop = beside_loop and pool.beside_loop and not (pool.awaited or pool.closed or pool.ending)
        if lane.burden.add(began, now - began, cpu - before, beside_loop=beside_loop):
            say(
                logging.WARNING,
                "lane %s may hold the interpreter: its hooks have used %s. While they run Python, each torch operation "
                'of the loop waits for them; placement="process" would free the loop', lane.name, str(lane.burden),
            )  # fmt: skip

    def _handle(self, job: Job) -> float:
        pool, lane, task = self._pool, self._lane, job.task
        owner = task.owner
        if owner.disabled:
            attempts.drop(pool, lane, job)
            return 0.0
        patience = pool.stall_timeout
        if owner.timeout is not None:
            patience = min(owner.timeout, patience)
        attempt = 1
        while True:
            now = attempts.begin(pool, lane, patience)
            try:
                result = task.call(job, attempt)
            except BaseException as error:  # SystemExit too: only the training thread ends a run
                delay = attempts.delay_before_retry(job, attempt, error)
                if delay is None or self._over.wait(delay):
                    attempts.fail(pool, lane, job, attempt, error)
                    return now
                attempt += 1
            else:
                attempts.succeed(pool, lane, job, result)
                return now
