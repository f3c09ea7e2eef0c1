"""Hooks and calls as the pool of a child process runs them: each tells the parent how it ended."""

from __future__ import annotations

import time
from collections.abc import Hashable
from dataclasses import replace
from typing import Any, Protocol

from async_trainer.errors import CaptureError, ConfigurationError
from async_trainer.routes import HookTask
from async_trainer.runtime.failures import Failures, told
from async_trainer.runtime.job import DISABLE_AFTER, Job, Owner

CANCELLING = 1.0  # s: for an async hook to be cancelled; then the parent may kill
clock = time.perf_counter


class Teller(Protocol):
    """The child."""

    is_async: bool

    def say(self, message: tuple[Any, ...]) -> None:
        """Tell the parent."""

    def settled(self, result: Any, error: BaseException | None) -> None:
        """A job has ended."""


class Quiet(Failures):
    """Failures are the parent's to log and to count: here it is only seen to that a callback is turned off in time."""

    def __init__(self) -> None:
        super().__init__()
        self.attempt = 1
        self.text = ""

    def record(self, job: Job, attempt: int, error: BaseException) -> None:
        owner = job.task.owner
        self.attempt, self.text = attempt, told(error)
        owner.failures_in_a_row += 1
        if owner.on_error == "disable" and owner.failures_in_a_row >= DISABLE_AFTER:
            owner.disabled = True


class Task:
    """A hook or a call, as the pool of the child sees it: it tells the parent how it ended."""

    essential = False

    def __init__(self, child: Teller, held: Any, owner: Owner, before: int = 0) -> None:
        self._child = child
        self._held = held
        self._before = before  # attempts, in a child that was killed
        self.name: str = held.name
        self.owner = owner if not before else replace(owner, retries=max(0, owner.retries - before))

    def key(self, payload: Any) -> Hashable:
        return self.name

    def call(self, job: Job, attempt: int) -> Any:
        timeout = self.owner.timeout
        if timeout is not None:
            self._child.say(("began", attempt, timeout + (CANCELLING if self._child.is_async else 0.0)))
        return self._held.call(job, attempt + self._before)

    def retriable(self, error: BaseException) -> bool:
        if self.owner.timeout is not None:  # the attempt is over: the wait before another is not part of it
            self._child.say(("began", 0, None))
        return bool(self._held.retriable(error))

    def settled(self, job: Job, result: Any, error: BaseException | None) -> None:
        self._child.settled(self._held.finished(result), error)

    def where(self, payload: Any) -> str:
        return ""


class HookHere:
    """A hook of a callback that was sent here."""

    def __init__(self, task: HookTask) -> None:
        self._task = task
        self.name = task.name

    def call(self, job: Job, attempt: int) -> Any:
        snapshot = job.payload
        if isinstance(snapshot, Refused):
            raise CaptureError(f"{self._task.where_called}: {snapshot.why}")
        return self._task.call(job, attempt)

    def retriable(self, error: BaseException) -> bool:
        return self._task.retriable(error)

    def finished(self, result: Any) -> None:
        """Nobody waits for what a hook returns."""


class Missing:
    """In the place of a hook whose callback could not be made again here: each of its events fails, and says why."""

    def __init__(self, callback: str, event: str, why: str) -> None:
        self.name = event
        self._task = self
        self._why = (
            f"{callback}.{event}: its callback can't be made again in its process ({why}); use placement='thread'"
        )

    def call(self, job: Job, attempt: int) -> Any:
        raise ConfigurationError(self._why)

    def retriable(self, error: BaseException) -> bool:
        return False

    def finished(self, result: Any) -> None:
        """It has none."""


class Refused:
    """In a payload's place: it could not be sent, or not be read."""

    lease = None

    def __init__(self, why: str) -> None:
        self.at = clock()
        self.why = why
