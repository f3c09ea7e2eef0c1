"""Small stand-ins for what a lane and a pool are given."""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable
from typing import Any

from async_trainer.runtime.job import Job, Lease, Owner


class FakeTask:
    """A task that calls ``function(payload)``."""

    def __init__(
        self,
        name: str = "on_x",
        function: Callable[[Any], Any] = lambda payload: None,
        *,
        owner: Owner | None = None,
        essential: bool = False,
    ) -> None:
        self.name = name
        self.owner = owner or Owner("fake")
        self.essential = essential
        self.function = function
        self.fates: list[tuple[Any, BaseException | None]] = []

    def key(self, payload: Any) -> Hashable:
        return self.name

    def call(self, job: Job, attempt: int) -> Any:
        return self.function(job.payload)

    def retriable(self, error: BaseException) -> bool:
        return True

    def settled(self, job: Job, result: Any, error: BaseException | None) -> None:
        self.fates.append((result, error))

    def where(self, payload: Any) -> str:
        return ""


class FakePayload:
    """A payload that carries ``value``."""

    def __init__(self, value: Any = None, lease: Lease | None = None) -> None:
        self.value = value
        self.at = time.perf_counter()
        self.lease = lease
