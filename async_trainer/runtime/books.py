"""The books of a pool: what became of its events, lane by lane and in all. Read under the pool's lock."""

from __future__ import annotations

from collections.abc import Collection

from async_trainer.runtime.lane import Lane
from async_trainer.runtime.stats import Failure, LaneStats, Report


def report(lanes: Collection[Lane], errors: tuple[Failure, ...], stalled: tuple[str, ...]) -> Report:
    """The sums over ``lanes``."""
    return Report(
        delivered=sum(lane.delivered for lane in lanes),
        failed=sum(lane.failed for lane in lanes),
        dropped=sum(lane.dropped for lane in lanes),
        lost=sum(lane.lost for lane in lanes),
        errors=errors,
        stalled=stalled,
    )


def describe(lanes: Collection[Lane], report: Report) -> str:
    """``report``, which lanes have lost what, and who may yet come out of a hook that counts as lost."""
    lost = [f"{lane.name} {lane.lost}" for lane in lanes if lane.lost]
    inside = [lane.name for lane in lanes if lane.hung]
    parts = [str(report)]
    if lost:
        parts.append(f"lost by lane: {', '.join(lost)}")
    if inside:
        parts.append(f"still inside a hook: {', '.join(inside)}")
    return "; ".join(parts)


def lane_stats(lane: Lane, now: float) -> LaneStats:
    """The books of one lane."""
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
        restarts=lane.restarts,
        hook_seconds=lane.burden.wall,
        cpu_seconds=lane.burden.cpu,
    )
