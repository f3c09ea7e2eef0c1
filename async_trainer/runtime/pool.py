"""The pool: the lanes of a handler and their workers, from the start to the end."""

from __future__ import annotations

import contextvars
import logging
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from async_trainer.errors import InsideHookError
from async_trainer.gate import uninterrupted
from async_trainer.runtime import books, exits
from async_trainer.runtime.barrier import Barrier
from async_trainer.runtime.failures import say
from async_trainer.runtime.job import Job, Mark
from async_trainer.runtime.lane import Lane
from async_trainer.runtime.listening import tell_stalled
from async_trainer.runtime.loop import LoopThread
from async_trainer.runtime.placement import PLACEMENTS
from async_trainer.runtime.stats import LaneStats, Report, Waits
from async_trainer.runtime.traffic import NEVER, TICK, Traffic, current_lane
from async_trainer.runtime.waiters import Waiters

__all__ = ["Pool", "current_lane"]

logger = logging.getLogger("async_trainer")
clock = time.perf_counter

JOIN = 2.0  # s: for a worker that has nothing left to do to end
QUIET = 0.5  # s: a drain that takes longer is told of
LOOP_GRACE = 0.5  # s: for the loop to end, when no lane is left on it
GRACE = 0.2  # s: for one that is inside a hook, but may come out: an async hook is cancelled, a backoff cut short


class Pool(Traffic):
    """Runs lanes: starts their workers, waits where waiting is due, ends them, and keeps the books.

    It knows its workers, and its workers it; nothing here knows the handler, so that a dropped handler drains and
    goes. How events pass through is in ``traffic.py``.
    """

    def __init__(
        self, *, max_workers: int, max_bytes: int, stall_timeout: float, switch_interval: float | None,
        shutdown_timeout: float, synchronous: bool,
    ) -> None:  # fmt: skip
        super().__init__(
            max_workers=max_workers, max_bytes=max_bytes, stall_timeout=stall_timeout, synchronous=synchronous
        )
        self.switch_interval = switch_interval
        self.shutdown_timeout = shutdown_timeout
        self.over = False  # nothing will come of it any more; its threads may still be on their last lines
        self.loop = LoopThread(self)
        self.started = False
        self.told = False  # somebody was told what is lost
        self.beside_loop = stall_timeout < NEVER  # else it is the child of a process lane, where none trains
        self.awaited = 0  # by so many threads, in flush, close or a barrier's wait
        self._context: contextvars.Context | None = None
        self._starting = threading.Lock()

    def __repr__(self) -> str:
        state = "ended" if self.closed else "ending" if self.ending else "running" if self.started else "not started"
        return f"<Pool of {len(self.lanes)} lanes, {state}>"

    # ----------------------------------------------------------------------------------------------------- the start

    def add_lane(self, lane: Lane) -> None:
        """Add ``lane``, and start its worker if the pool runs."""
        with self._lock:
            lane.closed = self.closed or self.ending
            self.lanes = {**self.lanes, lane.name: lane}
        if self.started:
            self.start()

    def start(self) -> None:
        """Start the workers of the lanes that have none, each in a copy of the contextvars of the first start."""
        if self.started and self.workers.keys() >= self.lanes.keys():
            return
        if self._context is None:
            context = contextvars.copy_context()
            context.run(current_lane.set, None)
            self._context = context
        if self.synchronous:
            self._start_workers(self._context)
        else:
            for lane in self.lanes.values():
                if lane.remote is not None and lane.name not in self.workers:
                    lane.remote.ship()  # here: another thread would wait for what this one is importing
            uninterrupted(self._start_workers, self._context)

    def _start_workers(self, context: contextvars.Context) -> None:
        with self._starting:
            if self.ending:
                return
            if not (self.started or self.synchronous):
                exits.register(self)
                ours = context.copy()
                ours.run(current_lane.set, Lane("async_trainer-loop"))  # it must not wait for lanes either
                self.loop.start(ours)
            for lane in list(self.lanes.values()):
                if lane.name not in self.workers and not lane.closed:
                    placement = "synchronous" if self.synchronous else lane.placement
                    worker = self.workers[lane.name] = PLACEMENTS[placement](lane, self)
                    worker.start(context.copy())
            self.started = True

    # -------------------------------------------------------------------------------------------------- while it runs

    def barrier(self, visits: Mapping[str, Callable[[], Any] | None], states: dict[str, Any]) -> Barrier:
        """A mark in every lane at once; each makes its visit of ``visits`` on its worker. Never waits."""
        self._catch_up()
        for notebook in self.waited.notebooks:
            notebook.barrier()
        with self._lock:
            lanes = [lane for lane in self.lanes.values() if lane.name in self.workers and not lane.ended]
            barrier = Barrier(self, lanes, states)
            now = clock()
            for lane in lanes:
                lane.mark(Mark(visits.get(lane.name), barrier.passing(lane)))
                if lane.idle:
                    self._rouse(lane, now)
        self.run_synchronously()
        return barrier

    def check(self) -> float:
        """The watch, on the pool's loop: lanes that stalled lose their slot. Returns seconds until the next look."""
        now = clock()
        stalled: list[tuple[Lane, Job | None]] = []
        with self._lock:
            self.next_check = NEVER
            for lane in self.lanes.values():
                if not lane.busy or lane.abandoned:
                    continue
                if not lane.stalled(now):
                    self.next_check = min(self.next_check, lane.deadline)
                elif not lane.overran and not self._held:
                    lane.overran = True
                    stalled.append((lane, lane.running))
                    if lane.slot:
                        self._hand_over_slot(lane)
        self._waiters.ring()
        for lane, job in stalled:
            if self.listeners:
                tell_stalled(self, lane, job, now)
            what = f"{job.task.owner.name}.{job.task.name}, for {now - lane.started:.1f} s" if job else "its next event"
            say(
                logging.WARNING,
                "lane %s has stalled in %s: it holds nobody up any more; when it is full, new events for it are "
                "dropped, and counted, until it moves on", lane.name, what,
            )  # fmt: skip
        return self.next_check - now

    def wait(
        self, pending: Callable[[], Collection[Lane]], timeout: float | None, what: str
    ) -> tuple[str, ...]:  # fmt: skip
        """Wait until no lane is ``pending``, or only stalled ones are: returns their names.

        Raises:
            TimeoutError: names the lanes that are pending.
            InsideHookError: called from within a background hook.
        """
        self._refuse_inside_hook(what)
        until = NEVER if timeout is None else clock() + timeout
        late: list[Lane] = []

        def look(now: float) -> float | None:
            nonlocal late
            with self._lock:
                self._rouse_sleepers(now)
                late = [lane for lane in pending() if not lane.abandoned]
                moving = [lane.deadline for lane in late if not lane.stalled(now)]
            if moving and now >= until:
                names = ", ".join(lane.name for lane in late)
                raise TimeoutError(f"{what}: not done after {timeout} s; still at work: {names}")
            return min(*moving, until) - now + TICK if moving else None

        self.awaited += 1
        try:
            self.waited["flush"] += self._waiters.wait(look)
        except TimeoutError:
            self.waited["flush"] += timeout or 0.0
            raise
        finally:
            self.awaited -= 1
        return tuple(lane.name for lane in late)

    def watch(self, pending: Callable[[], Collection[Lane]], timeout: float) -> None:
        """As :meth:`wait`, for a thread that nobody waits for.

        Raises:
            TimeoutError: some are still pending.
        """
        until = clock() + timeout

        def look(now: float) -> float | None:
            with self._lock:
                self._rouse_sleepers(now)
                late = [lane for lane in pending() if not lane.abandoned]
            if late and now >= until:
                raise TimeoutError
            return until - now + TICK if late else None

        self._waiters.wait(look)

    def _refuse_inside_hook(self, what: str) -> None:
        if current_lane.get() is not None:
            raise InsideHookError(
                f"{what} inside a background hook would wait for the hook itself; call it from the training loop"
            )

    @contextmanager
    def hold(self) -> Iterator[None]:
        """Within it no lane takes a job. For tests."""
        with self._lock:
            self._held = self.pause = True
        try:
            yield
        finally:
            self.unhold()

    def unhold(self) -> None:
        """Let the lanes go on."""
        with self._lock:
            self._held = False
            self.pause = self.ending
            now = clock()
            for lane in self.lanes.values():
                self._rouse(lane, now)

    # ------------------------------------------------------------------------------------------------------- the end

    def drain(self, timeout: float | None, cause: BaseException | None = None) -> tuple[str, ...]:
        """Wait until the lanes are empty or stalled: the names of those that are stalled.

        Args:
            timeout: seconds; None: as long as the lanes move.
            cause: what has ended the training, so that somebody may be waiting for the prompt: if it takes longer
                than ``QUIET``, it is told for what, and how to end it.

        Raises:
            TimeoutError: names the lanes that are still at work.
        """
        self._catch_up()
        until = NEVER if timeout is None else clock() + timeout
        quiet = NEVER if cause is None else clock() + QUIET
        stalled: tuple[str, ...] = ()
        for _ in (None, *self.lanes):  # a hook may have called a proxy, whose method called another: a link a round
            if not any(lane.busy for lane in self.lanes.values()):
                break
            barrier = self.barrier({}, {})
            pending = lambda: barrier.pending  # noqa: B023, E731
            try:
                stalled = self.wait(pending, max(0.0, min(until, quiet) - clock()), "close()")
            except TimeoutError:
                if until <= quiet:
                    raise
                self._tell_of_drain(until - clock(), cause)
                quiet = NEVER
                stalled = self.wait(pending, max(0.0, until - clock()), "close()")
        return stalled

    def _tell_of_drain(self, seconds: float, cause: BaseException | None) -> None:
        with self._lock:
            events = sum(lane.outstanding for lane in self.lanes.values() if not lane.abandoned)
        logger.warning(
            "draining %s events for at most %.3g s; Ctrl-C%s to stop", f"{events:,}", seconds,
            " again" if isinstance(cause, KeyboardInterrupt) else "",
        )  # fmt: skip

    def close(self, timeout: float | None, cause: BaseException | None = None) -> Report:
        """Drain, as :meth:`drain` does; then end the workers: what is left is lost."""
        self._refuse_inside_hook("close()")
        self.closed = True
        stalled: tuple[str, ...] = ()
        try:
            stalled = self.drain(timeout, cause)
        except TimeoutError:
            pass
        finally:
            self.end(abandon=True)
        return self.report(stalled)

    def end(self, *, abandon: bool) -> None:
        """Workers end: now, if ``abandon``, else when their lanes are empty. Takes no lock in the second case: a
        garbage collector calls it, whatever its thread holds."""
        self.ending = True
        for lane in self.lanes.values():
            lane.close()
            if abandon and lane.busy:
                lane.abandon()
        self.pause = True
        for worker in list(self.workers.values()):
            worker.ring()
        if abandon:
            self._join()

    def _join(self) -> None:
        with self._starting:  # a start may be under way, that Ctrl-C has not waited for
            workers = list(self.workers.items())
        for _, worker in workers:
            worker.stop()
        soon, until = clock() + GRACE, clock() + JOIN
        for name, worker in workers:
            worker.join(max(0.0, (soon if self.lanes[name].hung else until) - clock()))
        self.loop.stop()
        self.loop.join(LOOP_GRACE)
        if self.store is not None:
            self.store.close(JOIN)
        if not self.hung:
            exits.forget(self)

    def worker_ended(self) -> None:
        """Called by a worker, last of all: when all have, the loop may end."""
        self.tell()
        if self._workers_have_ended:
            self.loop.stop()
            if self.store is not None:
                self.store.close(JOIN)  # before the exit forgets it: no copy may be under way then
            self._forget()

    def loop_ended(self) -> None:
        """Called by the loop's thread, last of all: the pool is over when the workers are, too."""
        self._forget()

    @property
    def _workers_have_ended(self) -> bool:
        return self.ending and all(self.lanes[name].ended for name in list(self.workers))

    def _forget(self) -> None:
        """Unless a hook is inside, or the loop waits for what hooks had an executor do: the exit must know of both."""
        if self._workers_have_ended and not self.loop.alive:
            self.over = True

    @property
    def alive(self) -> bool:
        """Whether a thread of its own still runs."""
        return self.loop.alive or any(worker.alive for worker in list(self.workers.values()))

    @property
    def hung(self) -> list[str]:
        """Who can't end, though the pool has: the lanes that are inside a hook, or else the loop."""
        lanes = [lane.name for lane in self.lanes.values() if lane.hung]
        return lanes or (["the event loop"] if self.loop.alive else [])

    # ------------------------------------------------------------------------------------------------------ the books

    def report(self, stalled: tuple[str, ...] = ()) -> Report:
        """The books, summed over the lanes."""
        with self._lock:
            return books.report(self.lanes.values(), self.failures.kinds, stalled)

    def describe(self, report: Report) -> str:
        """``report``, which lanes have lost what, and who is still inside a hook."""
        return books.describe(self.lanes.values(), report)

    def lane_stats(self) -> dict[str, LaneStats]:
        """The books, lane by lane, all at one moment."""
        now = clock()
        with self._lock:
            return {lane.name: books.lane_stats(lane, now) for lane in self.lanes.values()}

    @property
    def waits(self) -> Waits:
        """What the training has waited for, in seconds."""
        return Waits(**self.waited)

    @property
    def used(self) -> int:
        """Bytes of the budget in use, about."""
        return self._budget.used

    @property
    def snapshot_bytes(self) -> int:
        """Bytes of the budget in use."""
        with self._lock:
            return self._budget.recount()

    def after_fork(self) -> None:
        """In a forked child: no hook runs, no lock of the parent's is waited for."""
        self._starting = threading.Lock()
        self._lock = threading.RLock()
        self._finalizers.clear()
        self.failures.after_fork()
        self._waiters = Waiters()
        if self.store is not None:
            self.store.after_fork()
        self.ending = self.closed = True
        for worker in self.workers.values():
            worker.after_fork()
        self.workers = {}
        self.loop.after_fork()
        self._told_lost = True
        for lane in self.lanes.values():
            lane.abandon()
