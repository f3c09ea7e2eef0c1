"""What lanes do, told to whoever listens: off the training thread."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

from async_trainer.runtime.failures import say

if TYPE_CHECKING:
    from async_trainer.runtime.job import Job
    from async_trainer.runtime.lane import Lane
    from async_trainer.runtime.traffic import Traffic

clock = time.perf_counter
Kind = Literal["delivered", "failed", "dropped", "passed", "stalled"]


@dataclass(frozen=True, slots=True)
class LaneEvent:
    """Something that a lane did. Times are seconds of ``time.perf_counter``.

    Attributes:
        kind: how a hook ended: ``"delivered"``, ``"failed"`` after all retries, ``"dropped"`` as its callback is turned
            off; or ``"passed"``: the lane came to a barrier; or ``"stalled"``: it has not moved for too long.
        lane: its name.
        placement: ``"thread"``, ``"task"``, ``"process"``.
        callback: the name of the callback, or of the proxied object; ``""`` for a barrier.
        hook: the event, or the method of the object; ``"barrier"``; of a stalled lane the hook that it is in, if any.
        seq: the number of the event, as hooks get it; 0 for a barrier.
        emitted: when the loop fired the event.
        began: when the hook began: of several attempts the last one.
        ended: when it ended.
        error: what it failed with, without its traceback.
    """

    kind: Kind
    lane: str
    placement: str
    callback: str
    hook: str
    seq: int
    emitted: float
    began: float
    ended: float
    error: BaseException | None = None


class Listener(Protocol):
    """Is told what the lanes of a handler do: see ``CallbacksHandler.listen``."""

    def lane_event(self, event: LaneEvent, /) -> None:
        """Called after each hook, before the books count it, on the thread that ran it: several lanes call at once, and
        a lane waits while this runs, so be quick. Of a process lane: on a thread of the training process. Never on the
        training thread, but in synchronous mode. One that raises is logged, and told nothing more."""


def tell(
    pool: Traffic, lane: Lane, job: Job, kind: Kind, error: BaseException | None = None,
    span: tuple[float, float] | None = None,
) -> None:  # fmt: skip
    """A job of ``lane`` has ended. The lane's thread.

    Args:
        span: when its hook began and ended, in s; default: as the lane has begun it, and now.
    """
    now = clock()
    began, ended = span or (now if kind == "dropped" else lane.started, now)
    owner, at = job.task.owner.name, job.payload.at
    send(pool, LaneEvent(kind, lane.name, lane.placement, owner, job.task.name, job.seq, at, began, ended, error))


def tell_passed(pool: Traffic, lane: Lane, began: float) -> None:
    """``lane`` has come to a barrier. The lane's thread."""
    send(pool, LaneEvent("passed", lane.name, lane.placement, "", "barrier", 0, began, began, clock()))


def tell_stalled(pool: Traffic, lane: Lane, job: Job | None, now: float) -> None:
    """``lane`` holds nobody up any more. The pool's loop."""
    owner, hook, seq, at = "", "", 0, lane.started
    if job is not None:
        owner, hook, seq, at = job.task.owner.name, job.task.name, job.seq, job.payload.at
    send(pool, LaneEvent("stalled", lane.name, lane.placement, owner, hook, seq, at, lane.started, now))


def send(pool: Traffic, event: LaneEvent) -> None:
    """Tell all listeners."""
    for listener in pool.listeners:
        try:
            listener.lane_event(event)
        except BaseException as error:  # SystemExit, too: a lane must not end with it
            pool.listeners = tuple(one for one in pool.listeners if one is not listener)
            say(logging.ERROR, "%r is told nothing more: its lane_event has failed: %r", listener, error)
