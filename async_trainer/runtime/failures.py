"""What is done about a hook that failed: counted, logged once in a while, raised where asked for."""

from __future__ import annotations

import logging
import threading
import traceback
from collections import deque
from dataclasses import replace

from async_trainer.errors import AsyncTrainerError, LaneError
from async_trainer.runtime.job import DISABLE_AFTER, Job
from async_trainer.runtime.stats import Failure

logger = logging.getLogger("async_trainer")

KINDS = 100
"""Kinds of failure (callback, event, type of error) that are kept; beyond that they are counted only."""


class Failures:
    """The failures of a handler's lanes. Recorded on the lanes' threads, read from any."""

    def __init__(self) -> None:
        self._lock = threading.RLock()  # re-entrant: a signal handler may close the handler while its thread holds it
        self._kinds: dict[tuple[str, str, str], Failure] = {}
        self.to_raise: deque[LaneError] = deque()  # at the next event
        self._at_end: list[tuple[str, str, str]] = []  # kinds that the end of the run should raise

    def after_fork(self) -> None:
        """In a forked child nobody is left to release the lock, and the failures are the parent's to raise."""
        self._lock = threading.RLock()
        self._kinds = {}
        self.to_raise.clear()
        self._at_end = []

    def record(self, job: Job, attempt: int, error: BaseException) -> None:
        """A job failed for good. The lane's thread, after the job is settled."""
        task, owner = job.task, job.task.owner
        text = told(error)
        forget_frames(error)
        failure = Failure(owner.name, task.name, job.seq, attempt, task.where(job.payload), error, text)
        kind = (owner.name, task.name, _class_of(error))
        with self._lock:
            first = self._kinds.get(kind)
            count = first.count + 1 if first else 1
            if first or len(self._kinds) < KINDS:
                self._kinds[kind] = replace(first or failure, count=count)
                if owner.on_error == "raise_at_end" and not first:
                    self._at_end.append(kind)
        owner.failures_in_a_row += 1
        if not (first and isinstance(error, AsyncTrainerError) and str(error) == str(first.error)):  # ours, once
            self._log(failure, count)
        if owner.on_error == "raise":
            raised = LaneError(str(failure))
            raised.__cause__ = error
            self.to_raise.append(raised)
        elif owner.on_error == "disable" and owner.failures_in_a_row == DISABLE_AFTER:
            owner.disabled = True
            say(
                logging.ERROR,
                "%s is turned off after %d failures in a row (on_error='disable'); its events are dropped, and counted",
                owner.name,
                DISABLE_AFTER,
            )

    def _log(self, failure: Failure, count: int) -> None:
        if count & (count - 1):  # a failing hook must not flood the log: the 1st, 2nd, 4th, 8th ... of its kind
            return
        where = f", {failure.where}" if failure.where else ""
        context = f"event {failure.seq}{where}, attempt {failure.attempt}"
        if count == 1:
            text = f"\n{failure.traceback}" if "Traceback (most" in failure.traceback else f" {failure.what}"
            say(logging.ERROR, "%s.%s failed (%s):%s", failure.callback, failure.event, context, text)
        else:
            say(
                logging.ERROR, "%s.%s has failed %d times, last (%s): %s",
                failure.callback, failure.event, count, context, failure.what,
            )  # fmt: skip

    @property
    def kinds(self) -> tuple[Failure, ...]:
        """The kinds of failure so far, with counts."""
        with self._lock:
            return tuple(self._kinds.values())

    def take_to_raise_at_end(self) -> LaneError | None:
        """The error that the end of the run should raise; once."""
        with self._lock:
            failures, self._at_end = [self._kinds[kind] for kind in self._at_end], []
        if self.to_raise and not failures:
            return self.to_raise.popleft()
        if not failures:
            return None
        error = LaneError("\n".join(map(str, failures)))
        error.__cause__ = failures[0].error
        return error


def _class_of(error: BaseException) -> str:
    """The name of its class: what comes from another process may be of a class that is made anew each time, or that
    can't be made here."""
    elsewhere = vars(error).get("_class_elsewhere") if hasattr(error, "__dict__") else None
    cls = type(error)
    return elsewhere if isinstance(elsewhere, str) else f"{cls.__module__}.{cls.__qualname__}"


def told(error: BaseException) -> str:
    """``error`` with its traceback; without it where that is of an error of ours, and holds no frame but ours."""
    elsewhere = vars(error).get("_told_elsewhere") if hasattr(error, "__dict__") else None
    if isinstance(elsewhere, str):  # in another process, whose frames aren't here
        return elsewhere
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    ours = all(str(frame.f_globals.get("__name__")).startswith("async_trainer.") for frame in frames)
    if isinstance(error, AsyncTrainerError) and error.__cause__ is None and ours:
        return "".join(traceback.format_exception_only(error))
    return "".join(traceback.format_exception(error))


def say(level: int, message: str, *args: object) -> None:
    """Log from a thread of our own: a log handler that raises must not end it."""
    try:
        logger.log(level, message, *args)
    except Exception:
        traceback.print_exc()


def forget_frames(error: BaseException) -> None:
    """Drop the tracebacks of ``error`` and of its causes: their frames keep the snapshot's tensors alive."""
    seen: set[int] = set()
    chain: list[BaseException | None] = [error]
    while chain:
        link = chain.pop()
        if link is None or id(link) in seen:
            continue
        seen.add(id(link))
        link.with_traceback(None)  # not an assignment, which the error of a frozen class refuses
        chain += [link.__cause__, link.__context__]
        if isinstance(link, BaseExceptionGroup):
            chain += link.exceptions
