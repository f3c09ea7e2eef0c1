"""What every placement does around a job: patience, failures, the books."""

from __future__ import annotations

import time
import traceback
from typing import TYPE_CHECKING, Any

from async_trainer.errors import EventLostError
from async_trainer.runtime.job import Job, Mark
from async_trainer.runtime.lane import DELIVERED, DROPPED, FAILED, Lane
from async_trainer.runtime.listening import tell, tell_passed

if TYPE_CHECKING:
    from async_trainer.runtime.pool import Pool

clock = time.perf_counter


def begin(pool: Pool, lane: Lane, patience: float) -> float:
    """A hook starts: the lane has ``patience`` seconds before it counts as stalled. Returns the time."""
    now = clock()
    lane.begin(now, patience)
    lane.overran = False
    if lane.deadline < pool.next_check:
        pool.arm(lane.deadline)
    return now


def succeed(pool: Pool, lane: Lane, job: Job, result: Any, span: tuple[float, float] | None = None) -> None:
    """The hook has returned. ``span``: when it began and ended, where that was not here and now."""
    job.task.owner.failures_in_a_row = 0
    pool.settled(job)
    if pool.listeners:
        tell(pool, lane, job, "delivered", span=span)
    lane.settle(DELIVERED)
    job.task.settled(job, result, None)  # last: who waited for it finds it in the books


def fail(
    pool: Pool, lane: Lane, job: Job, attempt: int, error: BaseException, span: tuple[float, float] | None = None
) -> None:
    """The hook has failed for good. ``span``: as for :func:`succeed`."""
    try:
        pool.failures.record(job, attempt, error)
    except Exception:  # what an error's or a state's own code raises must not end the lane
        traceback.print_exc()
    pool.settled(job)
    if pool.listeners:
        tell(pool, lane, job, "failed", error, span)
    lane.settle(FAILED)
    job.task.settled(job, None, error)


def drop(pool: Pool, lane: Lane, job: Job) -> None:
    """The callback was turned off while this job waited."""
    pool.settled(job)
    if pool.listeners:
        tell(pool, lane, job, "dropped")
    lane.settle(DROPPED)
    job.task.settled(job, None, EventLostError(f"{job.task.owner.name}.{job.task.name} was dropped: it is turned off"))


def delay_before_retry(job: Job, attempt: int, error: BaseException) -> float | None:
    """Seconds until the next attempt; None: this was the last."""
    return job.task.owner.delay_before_retry(attempt) if job.task.retriable(error) else None


def visit(pool: Pool, lane: Lane, mark: Mark) -> None:
    """The lane has come to a mark."""
    began = begin(pool, lane, pool.stall_timeout)
    states: Any = None
    error: BaseException | None = None
    try:
        states = mark.visit() if mark.visit is not None else None
    except BaseException as raised:  # state_dict() is the callback's own code: its error is the barrier's to raise
        error = raised
    if pool.listeners:
        tell_passed(pool, lane, began)
    mark.passed(states, error)
    lane.passed()
    pool.tell()
