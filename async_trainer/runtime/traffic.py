"""The way of an event: pushed to the lanes, all at once, and handed out to their workers, under one lock."""

from __future__ import annotations

import contextvars
import logging
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from async_trainer.errors import EventLostError
from async_trainer.runtime.budget import Budget
from async_trainer.runtime.failures import Failures
from async_trainer.runtime.job import Job, Lease, Mark, Task
from async_trainer.runtime.kept import Kept
from async_trainer.runtime.lane import Lane
from async_trainer.runtime.listening import Listener
from async_trainer.runtime.loop import LoopThread
from async_trainer.runtime.placement import Worker
from async_trainer.runtime.slots import Slots
from async_trainer.runtime.waited import Waited
from async_trainer.runtime.waiters import Waiters

logger = logging.getLogger("async_trainer")
clock = time.perf_counter

current_lane: contextvars.ContextVar[Lane | None] = contextvars.ContextVar("async_trainer_lane", default=None)
"""The lane whose hook this is; None on the training thread. Tasks and threads that a hook starts inherit it."""

new_tuple: Callable[..., Any] = tuple.__new__  # makes a NamedTuple in half the time
NEVER = float("inf")
LOST = "lost: the handler was closed"
TURN = 0.005  # s: a lane that others wait for hands its slot over after that
TICK = 0.001  # s: past a deadline, to find it over


class Traffic:
    """What passes through a pool: jobs come in from the threads that emit, and go out to the workers.

    One lock, held for decisions only: lanes, slots and budget decide, this does what they answer. How all that starts
    and ends is the Pool's.
    """

    loop: LoopThread

    def __init__(self, *, max_workers: int, max_bytes: int, stall_timeout: float, synchronous: bool) -> None:
        self.stall_timeout = stall_timeout
        self.synchronous = synchronous
        self.max_bytes = max_bytes
        self.failures = Failures()
        self.kept = Kept()
        self.store: Any = None  # where the big copies are: it is told when the lanes are done with them, and of the end
        self.lanes: dict[str, Lane] = {}
        self.workers: dict[str, Worker] = {}
        self.ending = False  # workers end when there is nothing left to do
        self.closed = False
        self.seq = 0  # events that reached a lane
        self.pause = False  # a worker with jobs in hand should come back and ask: it is held, or over
        self.crowded = False  # a lane waits for a slot
        self.waited = Waited({"queue": 0.0, "budget": 0.0, "fence": 0.0, "flush": 0.0})  # s
        self.listeners: tuple[Listener, ...] = ()
        self.next_check = NEVER  # s: when the watch looks again
        self._lock = threading.RLock()  # else a garbage collection under it, that comes back to it, would hang
        self._finalizers: deque[tuple[Sequence[tuple[Lane, Task]], Any]] = deque()  # what those have pushed
        self._waiters = Waiters()
        self._held = False
        self._slots = Slots(max_workers if not synchronous else sys.maxsize)
        self._budget = Budget(max_bytes)
        self._told_lost = False

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
            if len(targets) == 1 and payload.lease is None:  # as most are: what _append does, in half the time
                lane, task = targets[0]
                self.seq = seq = self.seq + 1
                room = lane.admit(new_tuple(Job, (seq, task, payload)))
                if not room:
                    self.seq = seq - 1
                elif lane.idle:
                    self._rouse(lane, now)
            else:
                room = False
            if not room and not any(lane.blocks(now) for lane, _ in targets):
                room = True
                self._append(targets, payload, now, False)
        if not room:
            self._push_when_there_is_room(targets, payload)
        if self.synchronous:
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
            if lane.running is None:
                lane.deadline = now + self.stall_timeout
            worker.ring()
            lane.idle = False

    def _rouse_sleepers(self, now: float) -> None:
        """Under the lock, before waiting: a Ctrl-C between a push and its ring leaves a lane asleep with work to do."""
        for lane in self.lanes.values() if not self._held else ():
            if lane.neglected:
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
            if self.store is not None:
                self.store.give_back(lease.buffers)
            lease.buffers = ()
            self._waiters.ring()

    def drop(self, targets: Sequence[tuple[Lane, Task]]) -> None:
        """Count an event as dropped that there was no room to capture."""
        with self._lock:
            for lane, _ in targets:
                lane.drop()

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
                if not lane.slot:
                    return []
                items = lane.take()
                if items is not None:
                    return items
                lane.idle = True  # a child process has work, and nothing waits
                return []
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

    def hold_lease(self, job: Job) -> bool:
        """Keep the memory of a job's snapshot until :meth:`settled` is called once more for it. Returns whether there
        is any."""
        lease: Lease | None = job.payload.lease
        if lease is None:
            return False
        with self._lock:
            lease.lanes += 1
        return True

    def revoke(self, lane: Lane, count: int) -> None:
        """What ``lane`` has handled is lost with its state."""
        with self._lock:
            lane.revoke(count)

    def tell(self) -> None:
        """Something moved: wake the threads that wait for it. Cheap where there are none."""
        self._waiters.ring()

    def arm(self, deadline: float) -> None:
        """Have the watch look at ``deadline``, unless it looks before."""
        if deadline < self.next_check:
            self.next_check = deadline
            self.loop.look()
