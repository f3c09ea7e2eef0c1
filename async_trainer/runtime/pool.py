"""The pool: the lanes of a handler, one lock, and the waits."""

from __future__ import annotations

import contextvars
import logging
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from async_trainer.errors import EventLostError, InsideHookError
from async_trainer.runtime import exits
from async_trainer.runtime.barrier import Barrier
from async_trainer.runtime.budget import Budget
from async_trainer.runtime.failures import Failures, say
from async_trainer.runtime.job import Job, Lease, Mark, Task
from async_trainer.runtime.kept import Kept
from async_trainer.runtime.lane import Lane
from async_trainer.runtime.loop import LoopThread
from async_trainer.runtime.placement import PLACEMENTS, Worker
from async_trainer.runtime.slots import Slots
from async_trainer.runtime.stats import LaneStats, Report, Waits
from async_trainer.runtime.waiters import Waiters, uninterrupted

logger = logging.getLogger("async_trainer")
clock = time.perf_counter

current_lane: contextvars.ContextVar[Lane | None] = contextvars.ContextVar("async_trainer_lane", default=None)
"""The lane whose hook this is; None on the training thread. Tasks and threads that a hook starts inherit it."""

new_tuple: Callable[..., Any] = tuple.__new__  # makes a NamedTuple in half the time
NEVER = float("inf")
LOST = "lost: the handler was closed"
TURN = 0.005  # s: a lane that others wait for hands its slot over after that
TICK = 0.001  # s: past a deadline, to find it over
JOIN = 2.0  # s: for a worker that has nothing left to do to end
QUIET = 0.5  # s: a drain that takes longer is told of
LOOP_GRACE = 0.5  # s: for the loop to end, when no lane is left on it
GRACE = 0.2  # s: for one that is inside a hook, but may come out: an async hook is cancelled, a backoff cut short


class Pool:
    """Runs lanes: pushes jobs to them, hands them out to the workers, and waits where waiting is due.

    One lock, held for decisions only: lanes, slots and budget decide, the pool does what they answer. It knows its
    workers, and its workers it; nothing here knows the handler, so that a dropped handler drains and goes.
    """

    def __init__(
        self, *, max_workers: int, max_bytes: int, stall_timeout: float, switch_interval: float | None,
        shutdown_timeout: float, synchronous: bool,
    ) -> None:  # fmt: skip
        self.stall_timeout = stall_timeout
        self.switch_interval = switch_interval
        self.shutdown_timeout = shutdown_timeout
        self.synchronous = synchronous
        self.failures = Failures()
        self.kept = Kept()
        self.lanes: dict[str, Lane] = {}
        self.workers: dict[str, Worker] = {}
        self.started = False
        self.ending = False  # workers end when there is nothing left to do
        self.closed = False
        self.seq = 0  # events that reached a lane
        self.pause = False  # a worker with jobs in hand should come back and ask: it is held, or over
        self.crowded = False  # a lane waits for a slot
        self.waited = dict.fromkeys(("queue", "budget", "fence", "flush"), 0.0)  # s
        self.loop = LoopThread(self)
        self.next_check = NEVER  # s: when the watch looks again
        self._context: contextvars.Context | None = None
        self._starting = threading.Lock()
        self._lock = threading.RLock()  # else a garbage collection under it, that comes back to it, would hang
        self._finalizers: deque[tuple[Sequence[tuple[Lane, Task]], Any]] = deque()  # what those have pushed
        self._waiters = Waiters()
        self._held = False
        self._slots = Slots(max_workers if not synchronous else sys.maxsize)
        self._budget = Budget(max_bytes)
        self._told_lost = False
        self.told = False  # somebody was told what is lost

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

    # ------------------------------------------------------------------------------------- from the emitting thread

    def push(self, targets: Sequence[tuple[Lane, Task]], payload: Any) -> None:
        """Put a job into each lane of ``targets``: into all at once, or after waiting for room into all at once."""
        now = payload.at
        if self._lock._is_owned():  # type: ignore[attr-defined]
            self._push_soon(targets, payload)
            return
        if self.closed and current_lane.get() is None:  # what hooks emit while the lanes drain is taken
            self._lose(targets, payload)
            return
        with self._lock:
            for lane, _ in targets:
                if lane.blocks(now):
                    room = False
                    break
            else:
                room = True
                self._append(targets, payload, now, False)
        if not room:
            self._push_when_there_is_room(targets, payload)
        self.run_synchronously()

    def _push_soon(self, targets: Sequence[tuple[Lane, Task]], payload: Any) -> None:
        """A garbage collection in the middle of one of the pool's own decisions has run a ``__del__`` that logs, or
        closes a proxied writer: this thread holds the lock, and must not decide anything in between."""
        if payload.lease is not None:
            payload.lease.lanes += 1
        self._finalizers.append((targets, payload))
        self.loop.call(lambda _: self._catch_up())

    def _catch_up(self) -> None:
        with self._lock:
            while self._finalizers:
                targets, payload = self._finalizers.popleft()
                self._append(targets, payload, clock(), True)
                self._release(payload.lease)

    def _lose(self, targets: Sequence[tuple[Lane, Task]], payload: Any) -> None:
        with self._lock:
            for lane, task in targets:
                lane.lose()
                error = EventLostError(f"{task.owner.name}.{task.name} was {LOST}")
                task.settled(new_tuple(Job, (self.seq, task, payload)), None, error)
        if not self._told_lost:
            self._told_lost = True
            task = targets[0][1]
            logger.warning(
                "%s for %s came after close(): it and what follows is lost, and counted", task.name, task.owner.name
            )

    def run_synchronously(self) -> None:
        """In synchronous mode: handle what there is, here and now."""
        if self.synchronous:
            self._catch_up()
            for worker in list(self.workers.values()):
                worker.run()

    def _push_when_there_is_room(self, targets: Sequence[tuple[Lane, Task]], payload: Any) -> None:
        over = current_lane.get() is not None  # a hook that waited for lanes could wait for itself

        def push(now: float) -> float | None:
            with self._lock:
                self._rouse_sleepers(now)
                full = [lane.deadline for lane, _ in targets if lane.blocks(now)]
                if full and not over:
                    return min(full) - now + TICK
                self._append(targets, payload, now, over)
                return None

        self.waited["queue"] += self._waiters.wait(push)

    def _append(self, targets: Sequence[tuple[Lane, Task]], payload: Any, now: float, over: bool) -> None:
        """Under the lock."""
        lease: Lease | None = payload.lease
        self.seq = seq = self.seq + 1
        try:
            for lane, task in targets:
                if lease is not None:
                    lease.lanes += 1
                gone = lane.push(new_tuple(Job, (seq, task, payload)), over)
                if gone is not None:
                    self._gave_way(lane, gone)
                if lane.idle:
                    self._rouse(lane, now)
        except BaseException:  # Ctrl-C between two lanes: count again who has it
            if lease is not None:
                lease.lanes = 1 + sum(lane.holds(payload) for lane, _ in targets)
            raise

    def _gave_way(self, lane: Lane, job: Job) -> None:
        self._let_go(job, LOST if lane.closed else "dropped: the lane was full or stalled")

    def _let_go(self, job: Job, fate: str) -> None:
        self._release(job.payload.lease)
        job.task.settled(job, None, EventLostError(f"{job.task.owner.name}.{job.task.name} was {fate}"))
        self._waiters.ring()

    def _rouse(self, lane: Lane, now: float) -> None:
        """Under the lock: wake the worker of ``lane``. Rung before it is no longer idle, so that no Ctrl-C in between
        leaves a lane that sleeps and is never rung again; a bell rung twice does no harm."""
        worker = self.workers.get(lane.name)
        if worker is not None:
            lane.deadline = now + self.stall_timeout
            worker.ring()
            lane.idle = False

    def _rouse_sleepers(self, now: float) -> None:
        """Under the lock, before waiting: a Ctrl-C between a push and its ring leaves a lane asleep with work to do."""
        for lane in self.lanes.values() if not self._held else ():
            if lane.idle and lane.busy:
                self._rouse(lane, now)

    def reserve(self, nbytes: int, *, essential: bool) -> Lease | None:
        """Room in the budget for a snapshot of ``nbytes``, waiting for it. The emitting thread.

        Returns:
            None: the lanes that hold the budget have all stalled; the event is to be dropped. One that is
            ``essential`` is admitted then.
        """
        over = current_lane.get() is not None  # a hook that waited for room could wait for itself
        with self._lock:
            if self._budget.fits(nbytes):
                return self._budget.lease(nbytes)
        lease: Lease | None = None
        give_up = clock() + self.stall_timeout

        def take(now: float) -> float | None:
            nonlocal lease
            with self._lock:
                self._rouse_sleepers(now)
                room = over or self._budget.fits(nbytes)
                seconds = None if room else self._until_room(now, give_up)
                if room or (seconds is None and essential):
                    lease = self._budget.lease(nbytes)
                return seconds

        self.waited["budget"] += self._waiters.wait(take)
        return lease

    def _until_room(self, now: float, give_up: float) -> float | None:
        """Under the lock: seconds after which to look for room again; None: who holds the budget has stalled."""
        holders = [lane for lane in self.lanes.values() if lane.holds_room]
        moving = [lane.deadline for lane in holders if not lane.stalled(now)]
        if moving:
            return min(moving) - now + TICK
        # No lane has it: another thread is about to push what it has captured.
        return TICK if not holders and now < give_up else None

    def account(self, lease: Lease | None, nbytes: int) -> Lease:
        """``nbytes`` were copied in fact: big parts inside a deep copy show only afterwards. The emitting thread."""
        with self._lock:
            if lease is None:
                return self._budget.lease(nbytes)
            self._budget.grow(lease, nbytes)
            return lease

    def release(self, lease: Lease) -> None:
        """The emitting thread is done with ``lease``."""
        with self._lock:
            self._release(lease)

    def _release(self, lease: Lease | None) -> None:
        if lease is not None and self._budget.release(lease):
            self.kept.add(lease.buffers)
            lease.buffers = ()
            self._waiters.ring()

    def drop(self, targets: Sequence[tuple[Lane, Task]]) -> None:
        """Count an event as dropped that there was no room to capture."""
        with self._lock:
            for lane, _ in targets:
                lane.drop()

    def barrier(self, visits: Mapping[str, Callable[[], Any] | None], states: dict[str, Any]) -> Barrier:
        """A mark in every lane at once; each makes its visit of ``visits`` on its worker. Never waits."""
        self._catch_up()
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

    # ------------------------------------------------------------------------------------------------- from a worker

    def take(self, lane: Lane) -> Sequence[Job | None] | Mark | None:
        """What ``lane`` does next. An empty list: sleep until rung; None: end."""
        with self._lock:
            if lane.slot and (not lane.busy or lane.abandoned or self._held or self.turn_is_over(lane)):
                self._hand_over_slot(lane)
            if lane.busy and not (lane.abandoned or self._held):
                if not lane.slot and self._slots.acquire(lane):
                    lane.turn = clock()
                self.crowded = self._slots.wanted
                return (lane.take() or []) if lane.slot else []
            if self.ending and not self._held:
                for job in lane.bury() if lane.abandoned else ():
                    self._let_go(job, LOST)
                lane.ended = True
                return None
            lane.idle = True
            return []

    def turn_is_over(self, lane: Lane) -> bool:
        """Whether ``lane`` should let another have its slot, as one waits."""
        return self.crowded and clock() - lane.turn > TURN

    def _hand_over_slot(self, lane: Lane) -> None:
        heir = self._slots.release(lane)
        self.crowded = self._slots.wanted
        if heir is not None:
            heir.turn = clock()
            heir.deadline = heir.turn + self.stall_timeout
            self.workers[heir.name].ring()

    def give_back(self, lane: Lane) -> None:
        """``lane`` comes back with jobs in hand."""
        with self._lock:
            lane.give_back()

    def settled(self, job: Job) -> None:
        """A job is handled: its snapshot may go."""
        if job.payload.lease is not None:
            with self._lock:
                self._release(job.payload.lease)

    def tell(self) -> None:
        """Something moved: wake the threads that wait for it. Cheap where there are none."""
        self._waiters.ring()

    def arm(self, deadline: float) -> None:
        """Have the watch look at ``deadline``, unless it looks before."""
        if deadline < self.next_check:
            self.next_check = deadline
            self.loop.look()

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
            what = f"{job.task.owner.name}.{job.task.name}, for {now - lane.started:.1f} s" if job else "its next event"
            say(
                logging.WARNING,
                "lane %s has stalled in %s: it holds nobody up any more; when it is full, new events for it are "
                "dropped, and counted, until it moves on", lane.name, what,
            )  # fmt: skip
        return self.next_check - now

    # --------------------------------------------------------------------------------------------------- from anyone

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

        try:
            self.waited["flush"] += self._waiters.wait(look)
        except TimeoutError:
            self.waited["flush"] += timeout or 0.0
            raise
        return tuple(lane.name for lane in late)

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
        if not self.hung:
            exits.forget(self)

    def worker_ended(self) -> None:
        """Called by a worker, last of all: when all have, the loop may end."""
        self.tell()
        if self._workers_have_ended:
            self.loop.stop()
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
            exits.forget(self)

    @property
    def hung(self) -> list[str]:
        """Who can't end, though the pool has: the lanes that are inside a hook, or else the loop."""
        lanes = [lane.name for lane in self.lanes.values() if lane.hung]
        return lanes or (["the event loop"] if self.loop.alive else [])

    # ------------------------------------------------------------------------------------------------------ the books

    def report(self, stalled: tuple[str, ...] = ()) -> Report:
        """The books, summed over the lanes."""
        with self._lock:
            lanes = self.lanes.values()
            return Report(
                delivered=sum(lane.delivered for lane in lanes),
                failed=sum(lane.failed for lane in lanes),
                dropped=sum(lane.dropped for lane in lanes),
                lost=sum(lane.lost for lane in lanes),
                errors=self.failures.kinds,
                stalled=stalled,
            )

    def describe(self, report: Report) -> str:
        """``report``, and which lanes have lost what, and who may yet come out of a hook that is counted as lost."""
        lost = [f"{lane.name} {lane.lost}" for lane in self.lanes.values() if lane.lost]
        inside = [lane.name for lane in self.lanes.values() if lane.hung]
        parts = [str(report)]
        if lost:
            parts.append(f"lost by lane: {', '.join(lost)}")
        if inside:
            parts.append(f"still inside a hook: {', '.join(inside)}")
        return "; ".join(parts)

    def lane_stats(self) -> dict[str, LaneStats]:
        """The books, lane by lane, all at one moment."""
        now = clock()
        with self._lock:
            return {lane.name: lane_stats(lane, now) for lane in self.lanes.values()}

    @property
    def waits(self) -> Waits:
        """What the training has waited for, in seconds."""
        return Waits(**self.waited)

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
        self.ending = self.closed = True
        self.workers = {}
        self.loop.after_fork()
        self._told_lost = True
        for lane in self.lanes.values():
            lane.abandon()


def lane_stats(lane: Lane, now: float) -> LaneStats:
    """The books of one lane; the pool's lock is held."""
    job = None if lane.abandoned else lane.running
    oldest = None if lane.abandoned else lane.oldest
    return LaneStats(
        delivered=lane.delivered,
        failed=lane.failed,
        dropped=lane.dropped,
        lost=lane.lost,
        queued=0 if lane.abandoned else lane.waiting,
        running=job.task.name if job else None,
        seconds=now - lane.started if job else 0.0,
        age=now - oldest.payload.at if oldest else 0.0,
        over_limit=lane.over_limit,
        stalled=lane.stalled(now),
        placement=lane.placement,
        size=lane.size,
    )
