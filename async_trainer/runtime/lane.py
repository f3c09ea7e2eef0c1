"""The lane: the FIFO of a background callback, as a pure state machine."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from enum import Enum
from typing import Any

from async_trainer.runtime.burden import Burden
from async_trainer.runtime.job import Job, Mark

BATCH = 64
"""Jobs that a worker takes at once: few enough to stop soon, enough to leave the lock alone in a burst."""


PROCESS_BATCH = 256
"""The same, for a process, which is given them all at once."""


class Ending(Enum):
    """What became of a job that a lane took."""

    DELIVERED = 0
    FAILED = 1
    DROPPED = 2


DELIVERED, FAILED, DROPPED = Ending  # for each event: looked up in an enum they take longer than what is done with them


class Lane:
    """What waits, what is in hand, and what became of the rest.

    No awaits, threads, clocks or I/O: it decides and answers. The pool calls it under its lock, save :meth:`begin`
    and :meth:`settle`, which only the lane's own worker calls, without the lock. At all times every job that was
    pushed is in exactly one of delivered, failed, dropped, lost, outstanding (once abandoned, what is outstanding is
    lost): what the worker counts moves in one store, and the rest is derived. Ctrl-C can only break into the training
    thread after a call; so nothing here is called between two stores that belong together.
    """

    __slots__ = (
        "_batch", "_books", "_dropped", "_hand", "_lost", "_marks", "_queue", "_roomy", "abandoned", "burden",
        "closed", "deadline", "ended", "idle", "name", "over_limit", "overflow", "overran", "placement", "remote",
        "restarts", "size", "slot", "started", "turn", "visiting",
    )  # fmt: skip

    def __init__(self, name: str, *, size: int = 1024, overflow: str = "block", placement: str = "thread") -> None:
        self.name = name
        self.size = size
        self.overflow = overflow
        self.placement = placement
        self.closed = False  # takes nothing more
        self.abandoned = False  # hands out nothing more: what is left is lost
        self.ended = False  # its worker has come to its end
        self.idle = True  # its worker sleeps, and wants to be rung
        self.slot = False  # it counts in max_workers
        self.turn = 0.0  # s: when it got its slot
        self.visiting = False  # a mark's visit is under way
        self.overran = False  # told that it stalled; until it moves on
        self.started = 0.0  # s: when the running hook started
        self.deadline = 0.0  # s: when it counts as stalled, unless it moves on
        self.over_limit = 0  # admitted though full: from within hooks, once-per-run events
        self._queue: deque[Job | Mark] = deque()
        self._marks = 0  # in the queue
        self._hand: list[Job | None] = []  # what the worker took; None: handled, and its snapshot let go
        self._books = (0, 0, 0, 0)  # settled of those in hand; delivered, failed, dropped in all: moved in one store
        self._dropped = 0
        self._lost = 0
        self._roomy = size - 1  # with so many items or fewer, marks and finished jobs included, it can't be full
        self.remote: Any = None  # of a process lane: how its jobs are sent
        self.restarts = 0  # of its process
        self.burden = Burden()  # of its hooks
        batch = PROCESS_BATCH if placement == "process" else BATCH
        self._batch = batch if overflow == "block" else 1  # what is in hand can't give way to a newer job

    def __repr__(self) -> str:
        return f"<Lane {self.name}: {self.waiting} waiting, {self.delivered} delivered, {self.failed} failed>"

    # ------------------------------------------------------------------------------------------------ what is where

    @property
    def outstanding(self) -> int:
        """Jobs that are neither handled nor given up: waiting and running."""
        return len(self._queue) - self._marks + len(self._hand) - self._books[0]

    @property
    def running(self) -> Job | None:
        """The job whose hook is running."""
        hand, settled = self._hand, self._books[0]
        return hand[settled] if settled < len(hand) else None

    @property
    def waiting(self) -> int:
        """Jobs that wait for their turn; ``size`` bounds them."""
        in_hand = len(self._hand) - self._books[0]
        return len(self._queue) - self._marks + (in_hand - 1 if in_hand else 0)

    @property
    def delivered(self) -> int:
        return self._books[1]

    @property
    def failed(self) -> int:
        return self._books[2]

    @property
    def dropped(self) -> int:
        return self._dropped + self._books[3]

    @property
    def lost(self) -> int:
        return self._lost + (self.outstanding if self.abandoned else 0)

    @property
    def busy(self) -> bool:
        """Whether there is anything to do: jobs, marks, a visit."""
        return bool(self._queue) or self._books[0] < len(self._hand) or self.visiting

    @property
    def neglected(self) -> bool:
        """Whether something waits while its worker sleeps."""
        return self.idle and bool(self._queue)

    @property
    def oldest(self) -> Job | None:
        """The job that has waited longest, the running one included."""
        return self.running or next((item for item in self._queue if isinstance(item, Job)), None)

    @property
    def hung(self) -> bool:
        """Whether it is still inside a hook or a visit though it was abandoned."""
        return self.abandoned and not self.ended and (self.running is not None or self.visiting)

    def holds(self, payload: object) -> bool:
        """Whether a job of this event is here."""
        return any(isinstance(item, Job) and item.payload is payload for item in (*self._queue, *self._hand))

    @property
    def holds_room(self) -> bool:
        """Whether a job here has a part of the byte budget."""
        return any(isinstance(item, Job) and item.payload.lease is not None for item in (*self._queue, *self._hand))

    def stalled(self, now: float) -> bool:
        """Whether it has work, and has not moved for longer than it may."""
        return now > self.deadline and self.busy

    # ---------------------------------------------------------------------------------- from the emitting thread

    def blocks(self, now: float) -> bool:
        """Whether the emitting thread has to wait for room."""
        return (
            len(self._queue) + len(self._hand) > self._roomy  # else there is room, whatever is running
            and self.waiting >= self.size
            and self.overflow == "block"
            and not self.closed
            and not self.stalled(now)
        )

    def admit(self, job: Job) -> bool:
        """Append ``job`` where there is room in any case. Returns whether there is; else :meth:`push` decides."""
        if self.closed or len(self._queue) + len(self._hand) > self._roomy:
            return False
        self._queue.append(job)
        return True

    def push(self, job: Job, over: bool = False) -> Job | None:
        """Append ``job``. Returns what gives way to it where the lane is full: an older job, or ``job`` itself.

        Args:
            job: the newest job.
            over: admit it though the lane is full.
        """
        if self.closed:
            self._lost += 1
            return job
        if len(self._queue) + len(self._hand) > self._roomy and self.waiting >= self.size:
            if not (over or job.task.essential):
                return self._make_room(job)
            self.over_limit += 1
        self._queue.append(job)
        return None

    def _make_room(self, job: Job) -> Job:
        place = self._giving_way(job) if self.overflow in ("drop_oldest", "latest") else None
        if place is None:  # "block" only comes here where the lane has stalled
            self._dropped += 1
            return job
        queue = self._queue
        gone = queue[place]
        assert isinstance(gone, Job)
        self._dropped += 1
        del queue[place]
        queue.append(job)
        return gone

    def _giving_way(self, job: Job) -> int | None:
        """Where the queued job stands that ``job`` replaces: for "latest" one of its key since the last mark."""
        if self.overflow == "latest":
            key = job.task.key(job.payload)
            for place, item in zip(range(len(self._queue) - 1, -1, -1), reversed(self._queue), strict=False):
                if isinstance(item, Mark):
                    break
                if not item.task.essential and item.task.key(item.payload) == key:
                    return place
        for place, item in enumerate(self._queue):
            if isinstance(item, Job) and not item.task.essential:
                return place
        return None

    def drop(self) -> None:
        """An event of this lane was given up before it could be pushed."""
        self._dropped += 1

    def lose(self) -> None:
        """An event of this lane came after the end."""
        self._lost += 1

    def mark(self, mark: Mark) -> None:
        """Append ``mark``: never dropped, never overtaken, whatever the bounds."""
        marks = (mark,)
        self._marks += 1
        self._queue += marks

    def close(self) -> None:
        """Take nothing more; what is there is still handled."""
        self.closed = True

    def abandon(self) -> None:
        """Hand out nothing more: what is not handled is lost. The running hook may still end, and counts then."""
        self.closed = True
        self.abandoned = True

    # ------------------------------------------------------------------------------------------ from the worker

    def take(self) -> Sequence[Job | None] | Mark | None:
        """The next jobs, in order, at most up to the next mark; or that mark; None: nothing to do."""
        if self.abandoned or not self._queue:
            return None
        head = self._queue[0]
        if isinstance(head, Mark):
            self._queue.popleft()
            self._marks -= 1
            self.visiting = True
            return head
        taken: list[Any] = []
        queue = self._queue
        for _ in range(min(self._batch, len(queue))):
            if self._marks and isinstance(queue[0], Mark):
                break
            taken.append(queue.popleft())
        if self._books[0] < len(self._hand):  # a child process has them, and is given more meanwhile
            self._hand += taken
        else:
            self._hand, self._books = taken, (0, *self._books[1:])
        return taken

    def give_back(self) -> None:
        """Put what is in hand, but not begun, back to the head of the queue."""
        self._queue.extendleft(job for job in reversed(self._hand) if job is not None)
        self._hand, self._books = [], (0, *self._books[1:])

    def begin(self, now: float, patience: float) -> None:
        """A hook starts, or starts again; it has ``patience`` seconds before the lane counts as stalled."""
        self.started = now
        self.deadline = now + patience

    def settle(self, ending: Ending) -> None:
        """The running job is handled."""
        settled, delivered, failed, dropped = self._books
        hand = self._hand  # once this was the last of it, another may take its place
        if ending is DELIVERED:
            self._books = (settled + 1, delivered + 1, failed, dropped)
        elif ending is FAILED:
            self._books = (settled + 1, delivered, failed + 1, dropped)
        else:
            self._books = (settled + 1, delivered, failed, dropped + 1)
        hand[settled] = None  # or the snapshots of a whole batch would live as long as the batch

    def revoke(self, count: int) -> None:
        """Of those that were delivered, the last ``count`` were not, after all: they are lost."""
        settled, delivered, failed, dropped = self._books
        count = min(count, delivered)
        self._books = (settled, delivered - count, failed, dropped)
        self._lost += count

    def passed(self) -> None:
        """The visit of the mark is done."""
        self.visiting = False

    def bury(self) -> list[Job]:
        """After :meth:`abandon`, by a worker that ends: what is lost, so that its snapshots can go."""
        left = [item for item in (*self._queue, *self._hand) if isinstance(item, Job)]
        self._lost += len(left)
        self._queue.clear()
        self._marks = 0
        self._hand, self._books = [], (0, *self._books[1:])
        return left
