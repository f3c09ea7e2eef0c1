"""What a child process says: which of its jobs have ended, and how; and what is known of those that it has."""

from __future__ import annotations

import logging
import time
from collections import deque
from typing import TYPE_CHECKING, Any

from async_trainer.errors import LaneError
from async_trainer.runtime import attempt as attempts
from async_trainer.runtime.job import Mark
from async_trainer.runtime.lane import Ending
from async_trainer.runtime.listening import tell_passed
from async_trainer.runtime.placement.child import Child
from async_trainer.runtime.placement.on_thread import OnThread
from async_trainer.runtime.placement.remote import (
    Began,
    Covered,
    Heard,
    Passed,
    Remote,
    Sent,
    Settled,
    Spans,
    Took,
)

if TYPE_CHECKING:
    from async_trainer.runtime.lane import Lane
    from async_trainer.runtime.pool import Pool

START = 60.0  # s: for a child to start, on a busy machine, before its lane counts as stalled
clock = time.perf_counter


class Hearing(OnThread):
    """The half of a process lane that hears, on a thread for each child."""

    def __init__(self, lane: Lane, pool: Pool) -> None:
        super().__init__(lane, pool)
        assert lane.remote is not None
        self._remote: Remote = lane.remote
        self._child: Child | None = None
        self._state: bytes | None = None  # as the last child to send one has pickled it
        self._flight: deque[Sent] = deque()  # what the child has, in order
        self._in_a_row = 0  # jobs handed over since it had none
        self._again: deque[Sent] = deque()  # what an earlier child was given, and this one is to get, one by one
        self._uncovered: deque[Sent] = deque()  # handled, but in no state that is here
        self._uncovered_bytes = 0
        self._asked = False  # for a state
        self._beyond = 0  # handled, in no state, and let go of: lost if the child dies before its next state
        self._mark: Mark | None = None  # being visited
        self._mark_sent = False
        self._timed: tuple[Sent, float] | None = None  # the hook under way, and when it overruns its timeout, in s
        self._overran: Sent | None = None
        self._deaths = 0
        self._given_up = False
        self._spans: dict[tuple[int, str], tuple[float, float]] = {}  # by event and callback: when its hook ran, in s

    @property
    def _patience(self) -> float:
        ready = self._child is None or self._child.ready
        return self._pool.stall_timeout if ready else max(START, self._pool.stall_timeout)

    def _listen(self, child: Child) -> None:
        from async_trainer.runtime.pool import current_lane

        current_lane.set(self._lane)
        try:
            while (received := child.wire.receive()) is not None:
                for message in child.session.unpack(received[0]):
                    self._hear(message)
                self._pool.tell()
                self.ring()
        except Exception:
            logging.getLogger("async_trainer").exception("lane %s: its process can't be understood", self._lane.name)
            child.kill()
        child.gone = True
        self.ring()

    def _hear(self, message: Heard) -> None:
        if isinstance(message, Settled):
            for _ in range(message.count):
                self._settle(message)
            if self._flight:
                attempts.begin(self._pool, self._lane, self._pool.stall_timeout)
        elif isinstance(message, Began):
            self._began(message)
        elif isinstance(message, Spans):
            self._spans.update({(seq, callback): (began, ended) for seq, callback, began, ended in message.spans})
        elif isinstance(message, Took):
            self._lane.burden.add(clock(), message.wall, message.cpu, beside_loop=False)
        elif isinstance(message, Covered):
            asked, self._asked = self._asked, False
            if message.state is not None:
                self._state, self._beyond = message.state, 0
                if self._uncovered:
                    self._deaths = 0
            elif asked:  # there is no room to keep them any longer
                self._beyond += len(self._uncovered)
            else:
                return
            self._let_go_of_covered(len(self._uncovered))
        elif isinstance(message, Passed):
            self._pass(message.states, message.error)
        elif self._child is not None:
            self._child.ready = True
            attempts.begin(self._pool, self._lane, self._patience)

    def _began(self, message: Began) -> None:
        if self._flight:
            if message.patience is None:
                self._timed = None
                return
            self._flight[0].attempt = message.attempt
            self._timed = self._flight[0], clock() + message.patience

    def _settle(self, how: Settled) -> None:
        pool, lane = self._pool, self._lane
        sent = self._flight[0]
        self._timed = None
        span = self._spans.pop((sent.job.seq, sent.job.task.owner.name), None) if self._spans else None
        if not sent.handled:
            self._deaths = 0
            job, attempt = sent.job, sent.attempts + how.attempt
            if how.ending is Ending.DELIVERED:
                attempts.succeed(pool, lane, job, how.result, span)
            elif how.ending is Ending.DROPPED:
                attempts.drop(pool, lane, job)
            else:
                attempts.fail(pool, lane, job, attempt, how.error or LaneError("it failed"), span)
        sent.handled = True
        if self._remote.stateful(sent.job):
            self._uncovered.append(sent)
            lease = sent.job.payload.lease
            self._uncovered_bytes += lease.nbytes if lease is not None else 0
            self._flight.popleft()  # last: the sending thread goes on when there is none
            child = self._child
            pressed = self._uncovered_bytes > pool.max_bytes // 4 and not self._asked
            if child is not None and (pressed or sent.redelivered):  # what killed one child may kill the next
                self._asked = self._asked or pressed
                child.send([(child.session.cover(), ())])
        else:
            self._release(sent)
            self._flight.popleft()

    def _let_go_of_covered(self, count: int) -> None:
        for _ in range(count):
            self._release(self._uncovered.popleft())
        self._uncovered_bytes = 0

    def _release(self, sent: Sent) -> None:
        if sent.held:
            sent.held = False
            self._pool.settled(sent.job)

    def _pass(self, states: Any, error: BaseException | None) -> None:
        mark, self._mark = self._mark, None
        if mark is not None:
            if self._pool.listeners:
                tell_passed(self._pool, self._lane, self._lane.started)
            mark.passed(states, error)
            self._lane.passed()
            self._pool.tell()
