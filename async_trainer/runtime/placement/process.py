"""A lane in a child process of its own: what burns CPU there, or crashes, doesn't touch the training."""

from __future__ import annotations

import contextvars
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence

from async_trainer.errors import LaneError
from async_trainer.runtime import attempt as attempts
from async_trainer.runtime.failures import say
from async_trainer.runtime.interpreter import switch_interval
from async_trainer.runtime.job import Job, Mark
from async_trainer.runtime.lane import PROCESS_BATCH
from async_trainer.runtime.placement.child import GRACE, LEAVE, Child
from async_trainer.runtime.placement.hearing import Hearing
from async_trainer.runtime.placement.remote import Sent

clock = time.perf_counter

DEATHS = 3  # with nothing delivered in between: then the lane is given up
AHEAD = PROCESS_BATCH  # jobs that a child may still have when it is given more: it need not wait for them
REST = 16 * PROCESS_BATCH  # jobs after which it is waited for: what a lane holds in hand must not grow for ever
LOOK = 1.0  # s: whether the child is still there
RESPAWN = 0.1  # s: before another child, doubled each time


class ProcessWorker(Hearing):
    """Hands the jobs of a lane to a child, which runs their hooks, and replaces the child when it dies.

    Two threads: one takes jobs and sends them, one hears how they ended. The first goes on while the child still has
    some, so that it never waits for the next.

    A child's hooks may have state. What was handled since the child last sent it is kept, with its memory: a new child
    begins with that state, and is given all that came after once more.
    """

    # ------------------------------------------------------------------------------------------- called by the pool

    def stop(self) -> None:
        self._over.open()
        self.ring()

    def join(self, timeout: float) -> None:
        super().join(timeout)
        child = self._child
        if self.alive and self._lane.abandoned and child is not None:  # it may not even read any more
            child.kill()

    def after_fork(self) -> None:
        """In a forked child: the connection must end when the parent does."""
        if self._child is not None:
            self._child.wire.forget()

    # ---------------------------------------------------------------------------------------------- the sending thread

    def _run(self) -> None:
        from async_trainer.runtime.pool import current_lane

        current_lane.set(self._lane)
        pool, lane = self._pool, self._lane
        try:
            self._begin_child()
        except Exception as error:
            self._give_up(f"no process can be started for it ({error})")
        while (items := pool.take(lane)) is not None:
            try:
                self._go_on(items)
            except Exception:  # of ours: the training must not wait for a lane that is no more
                logging.getLogger("async_trainer").exception("lane %s has failed", lane.name)
                self._give_up("an error of async_trainer")
            del items
        self._end_child()
        pool.worker_ended()

    def _go_on(self, items: Mark | Sequence[Job | None]) -> None:
        if isinstance(items, Mark):
            self._visit(items)
        elif items:
            self._hand_over([Sent(job) for job in items if job is not None])
        elif self._flight:
            self._wait(lambda: bool(self._flight) and self._lane.idle)
        else:
            self._bell.acquire()
            if self._child is not None and self._child.gone:
                self._replace()
                self._wait(lambda: False)

    def _hand_over(self, sent: list[Sent]) -> None:
        pool, lane = self._pool, self._lane
        if self._given_up:
            for one in sent:
                attempts.drop(pool, lane, one.job)
            pool.tell()
            return
        if not self._flight:
            attempts.begin(pool, lane, self._patience)
            self._in_a_row = 0
        for one in sent:
            if self._remote.stateful(one.job):
                one.held = pool.hold_lease(one.job)
        self._send_jobs(sent)
        self._in_a_row += len(sent)
        ahead = AHEAD if lane.overflow == "block" and self._in_a_row < REST else 0
        self._wait(lambda: len(self._flight) > ahead)

    def _visit(self, mark: Mark) -> None:
        attempts.begin(self._pool, self._lane, self._patience)
        self._mark, self._mark_sent = mark, False
        if self._given_up:
            self._pass(None, None)
            return
        self._wait(lambda: self._mark is not None)

    def _send_jobs(self, sent: Sequence[Sent]) -> None:
        child = self._child
        assert child is not None
        self._flight.extend(sent)  # first: the answer may come before this goes on
        heavy = self._pool.switch_interval is not None and any(one.job.payload.lease is not None for one in sent)
        if heavy and self._pool.switch_interval is not None:  # a model is a thousand objects to pickle
            switch_interval.enter(self._lane, self._pool.switch_interval)
        try:
            frames = child.session.pack(sent)
        finally:
            if heavy:
                switch_interval.leave(self._lane)
        child.send(frames)

    def _wait(self, under_way: Callable[[], bool]) -> None:
        """Until it is no longer; the child may be another by then, and has all that its predecessor was given."""
        lane = self._lane
        until: float | None = None
        while self._again or under_way():
            child = self._child
            if child is None or (child.gone and lane.abandoned):
                break
            if child.gone:
                self._replace()
                continue
            if not self._flight and self._again:
                # One by one: should the child die once more, it is known of what.
                self._send_jobs([self._again.popleft()])
            elif not self._flight and self._mark is not None and not self._mark_sent:
                self._mark_sent = True
                try:
                    child.send([(child.session.visit(self._mark), ())])
                except Exception as error:  # of a state that can't be sent
                    self._pass(None, error)
                    continue
            now = clock()
            if lane.abandoned:
                until = until or now + GRACE
                if now >= until:
                    break
            timed = self._timed
            deadlines = [one for one in (until, timed and timed[1], now + LOOK) if one is not None]
            rung = self._bell.acquire(timeout=max(0.0, min(deadlines) - now))
            if not rung and child.process.poll() is not None:
                child.gone = True  # and its connection is still open elsewhere
            if timed is not None and timed is self._timed and clock() >= timed[1]:
                self._overran, self._timed = timed[0], None
                child.kill()
        if lane.abandoned:
            self._abandon()

    def _abandon(self) -> None:
        """What is with the child counts as lost."""
        if self._child is not None:
            self._child.kill()
            self._child.reap(LEAVE)
            self._child = None
        for one in (*self._flight, *self._again):
            self._release(one)
        self._flight.clear()
        self._again.clear()
        self._let_go_of_covered(len(self._uncovered))
        self._given_up = True
        if self._mark is not None:
            self._pass(None, None)

    # ------------------------------------------------------------------------------------------------- its children

    def _begin_child(self) -> None:
        session = self._remote.session()
        child = self._child = Child(self._remote, session)
        context = contextvars.copy_context()
        child.reader = threading.Thread(
            target=context.run, args=(self._listen, child), name=f"async_trainer-{self._lane.name}-hears", daemon=True
        )
        child.reader.start()
        child.send(session.hello(self._state))
        self._asked = False

    def _replace(self) -> None:
        """The child is gone: another takes its place, and goes on from the last state."""
        child, lane = self._child, self._lane
        assert child is not None
        how = child.reap(LEAVE)
        self._child = None
        overran, self._overran, self._timed = self._overran, None, None
        if self._beyond:
            say(
                logging.ERROR, "lane %s: %d events that it had handled are lost with its state", lane.name, self._beyond
            )
            self._pool.revoke(lane, self._beyond)
            self._beyond = 0
        if overran is not None:
            self._settle_overrun(overran)
        else:
            self._deaths += 1
            task = self._flight[0].job.task if len(self._flight) == 1 else None
            what = f" in {task.owner.name}.{task.name}" if task is not None else ""
            if self._deaths >= DEATHS:
                self._give_up(f"its process died {self._deaths} times ({how}{what})")
                return
            count = len(self._uncovered) + len(self._flight) + len(self._again)
            say(
                logging.WARNING, "lane %s: its process died (%s%s); another goes on %s%s", lane.name, how, what,
                "from its last state" if self._state is not None else "without a state",
                f", and is given {count} event{'s' * (count > 1)} that it had not handled for sure" if count else "",
            )  # fmt: skip
            self._over.wait(RESPAWN * 2 ** (self._deaths - 1))
        if lane.abandoned:
            return
        lane.restarts += 1
        handled = [*self._uncovered, *(one for one in self._flight if one.handled)]
        self._again.extendleft(one for one in reversed(self._flight) if not one.handled)
        self._again.extendleft(reversed(handled))
        self._spans.clear()
        self._uncovered.clear()
        self._uncovered_bytes = 0
        self._flight.clear()
        for one in self._again:
            one.redelivered = True
        try:
            self._begin_child()
        except OSError as error:
            self._give_up(f"no process can be started for it ({error})")
            return
        self._mark_sent = False
        attempts.begin(self._pool, lane, self._patience)

    def _settle_overrun(self, sent: Sent) -> None:
        """Its hook was killed with the child: tried again, or failed; unless it ended in the last moment."""
        if not any(one is sent for one in self._flight):
            return
        owner = sent.job.task.owner
        sent.attempts += max(1, sent.attempt)
        delay = owner.delay_before_retry(sent.attempts)
        if delay is not None:
            self._over.wait(delay)
            return
        self._flight = deque(one for one in self._flight if one is not sent)
        if not sent.handled:
            error = TimeoutError(f"killed, with its process, after its timeout of {owner.timeout} s")
            attempts.fail(self._pool, self._lane, sent.job, sent.attempts, error)
            self._pool.tell()
        self._release(sent)

    def _give_up(self, why: str) -> None:
        """No more children: what is left, and what comes, is counted, and not handled."""
        lane, pool = self._lane, self._pool
        self._given_up = True
        revoked = len(self._uncovered) + sum(one.handled for one in (*self._flight, *self._again))
        flight = [one for one in (*self._flight, *self._again) if not one.handled]
        self._flight.clear()
        self._again.clear()
        for one in [*self._uncovered, *flight]:
            self._release(one)
        self._uncovered.clear()
        if revoked and self._state is not None:
            pool.revoke(lane, revoked)
        say(
            logging.ERROR, "lane %s is given up: %s; its events are dropped, and counted%s", lane.name, why,
            f"; {revoked} that it had handled are lost with its state" if revoked and self._state is not None else "",
        )  # fmt: skip
        for place, one in enumerate(flight):
            if place == 0:
                attempts.fail(pool, lane, one.job, max(1, one.attempts), LaneError(f"{why}; its lane is given up"))
            else:
                attempts.drop(pool, lane, one.job)
        if self._mark is not None:
            self._pass(None, None)
        pool.tell()

    def _end_child(self) -> None:
        child, self._child = self._child, None
        if child is None:
            return
        child.send([(child.session.end(), ())])
        child.wire.hang_up()
        child.reap(LEAVE)
        self._let_go_of_covered(len(self._uncovered))
