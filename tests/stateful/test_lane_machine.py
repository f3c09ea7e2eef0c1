"""The lane against a model made of plain lists: order, bounds, four policies, sums, marks."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from async_trainer.runtime.job import Job, Mark
from async_trainer.runtime.lane import BATCH, Ending, Lane
from tests.doubles import FakePayload, FakeTask

NAMES = ("on_a", "on_b", "on_c")


def make_mark(number: int) -> Mark:
    return Mark(None, lambda states, error: None) if number >= 0 else None  # type: ignore[return-value]


class LaneMachine(RuleBasedStateMachine):
    """What is in the model: ``queue`` (jobs and marks, oldest first), ``hand``, and a count for each fate."""

    @initialize(size=st.integers(1, 4), overflow=st.sampled_from(["block", "drop_oldest", "drop_newest", "latest"]))
    def make(self, size: int, overflow: str) -> None:
        self.lane = Lane("lane", size=size, overflow=overflow)
        self.size, self.overflow = size, overflow
        self.queue: list[Job | Mark] = []
        self.hand: list[Job] = []
        self.begun: list[int] = []  # the numbers of the jobs handed out, in order
        self.visiting = False
        self.closed = self.abandoned = False
        self.fates = {"delivered": 0, "failed": 0, "dropped": 0, "lost": 0}
        self.pushed = 0
        self.now = 0.0
        self.deadline = 0.0

    # ------------------------------------------------------------------------------------------------- the model

    def waiting(self) -> int:
        return sum(isinstance(item, Job) for item in self.queue) + max(0, len(self.hand) - 1)

    def busy(self) -> bool:
        return bool(self.queue or self.hand or self.visiting)

    def model_push(self, job: Job, over: bool) -> Any:
        if self.closed:
            self.fates["lost"] += 1
            return job
        if self.waiting() < self.size or over or job.task.essential:
            self.queue.append(job)
            return None
        self.fates["dropped"] += 1
        victim: Any = None
        if self.overflow == "latest":
            for item in reversed(self.queue):
                if isinstance(item, Mark):
                    break
                if item.task.name == job.task.name and not item.task.essential:
                    victim = item
                    break
        if victim is None and self.overflow in ("latest", "drop_oldest"):
            victim = next((i for i in self.queue if isinstance(i, Job) and not i.task.essential), None)
        if victim is None:
            return job
        self.queue.remove(victim)
        self.queue.append(job)
        return victim

    # -------------------------------------------------------------------------------------------------- the rules

    @rule(name=st.sampled_from(NAMES), essential=st.booleans(), over=st.booleans())
    def push(self, name: str, essential: bool, over: bool) -> None:
        self.pushed += 1
        job = Job(self.pushed, FakeTask(name, essential=essential and name == "on_c"), FakePayload(self.pushed))
        expected = self.model_push(job, over)
        gone = self.lane.push(job, over=over)
        assert gone is expected

    @rule()
    def mark(self) -> None:
        mark = make_mark(0)
        self.lane.mark(mark)
        self.queue.append(mark)

    @precondition(lambda self: not self.visiting)
    @rule()
    def take(self) -> None:
        taken = self.lane.take()
        if self.abandoned or not self.queue:
            assert taken is None
        elif isinstance(self.queue[0], Mark):
            assert taken is self.queue.pop(0)
            self.visiting = True
        else:
            limit = BATCH if self.overflow == "block" else 1
            expected: list[Job] = []
            while self.queue and isinstance(self.queue[0], Job) and len(expected) < limit:
                expected.append(self.queue.pop(0))  # type: ignore[arg-type]
            self.hand += expected  # a child process may have some already
            assert taken == expected

    @precondition(lambda self: self.visiting)
    @rule()
    def passed(self) -> None:
        self.lane.passed()
        self.visiting = False

    @precondition(lambda self: self.hand)
    @rule(ending=st.sampled_from(Ending))
    def settle(self, ending: Ending) -> None:
        self.begun.append(self.hand.pop(0).seq)
        self.fates[ending.name.lower()] += 1
        self.lane.settle(ending)

    @rule()
    def give_back(self) -> None:
        self.lane.give_back()
        self.queue = [*self.hand, *self.queue]
        self.hand = []

    @rule(patience=st.sampled_from([1.0, 5.0]))
    def begin(self, patience: float) -> None:
        self.lane.begin(self.now, patience)
        self.deadline = self.now + patience

    @rule(seconds=st.sampled_from([0.5, 3.0]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds

    @rule()
    def close(self) -> None:
        self.lane.close()
        self.closed = True

    @rule()
    def abandon(self) -> None:
        self.lane.abandon()
        self.closed = self.abandoned = True

    @precondition(lambda self: self.abandoned)
    @rule()
    def bury(self) -> None:
        buried = self.lane.bury()
        left = [item for item in self.queue if isinstance(item, Job)] + self.hand
        assert buried == left
        self.fates["lost"] += len(left)
        self.queue, self.hand = [], []

    # ------------------------------------------------------------------------------------------------ the laws

    @invariant()
    def order_is_that_of_emission(self) -> None:
        if hasattr(self, "lane"):
            assert self.begun == sorted(self.begun)

    @invariant()
    def the_sums_add_up(self) -> None:
        if not hasattr(self, "lane"):
            return
        lane = self.lane
        outstanding = sum(isinstance(item, Job) for item in self.queue) + len(self.hand)
        lost = self.fates["lost"] + (outstanding if self.abandoned else 0)
        assert (lane.delivered, lane.failed, lane.dropped, lane.lost) == (
            self.fates["delivered"], self.fates["failed"], self.fates["dropped"], lost,
        )  # fmt: skip
        assert lane.outstanding == outstanding
        assert lane.waiting == self.waiting()
        assert lane.running is (self.hand[0] if self.hand else None)
        assert lane.busy == self.busy()
        counted = lane.delivered + lane.failed + lane.dropped + lane.lost
        assert counted + (0 if self.abandoned else lane.outstanding) == self.pushed

    @invariant()
    def the_bound_holds(self) -> None:
        if hasattr(self, "lane"):
            exempt = self.lane.over_limit + sum(
                item.task.essential for item in [*self.queue, *self.hand] if isinstance(item, Job)
            )
            running = 1  # given back, the running one waits again
            assert self.lane.waiting <= self.size + exempt + running

    @invariant()
    def only_a_full_moving_block_lane_blocks(self) -> None:
        if hasattr(self, "lane"):
            full = self.waiting() >= self.size
            stalled = self.busy() and self.now > self.deadline
            assert self.lane.stalled(self.now) == stalled
            assert self.lane.blocks(self.now) == (self.overflow == "block" and full and not self.closed and not stalled)


TestLane = pytest.mark.filterwarnings("ignore")(LaneMachine.TestCase)
TestLane.settings = settings(max_examples=200, stateful_step_count=40, deadline=None)
