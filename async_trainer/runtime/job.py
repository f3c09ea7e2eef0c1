"""What a lane carries: jobs, and marks between them."""

from __future__ import annotations

import random
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

DISABLE_AFTER = 3
"""Failures in a row after which ``on_error="disable"`` turns a callback off."""

_jitter = random.Random()  # of its own: the global generators belong to the training


class Transfer(Protocol):
    """Copies that are under way."""

    @property
    def done(self) -> bool:
        """Whether they are made."""

    def check(self) -> None:
        """Wait for them, and raise what went wrong."""


class Lease:
    """The bytes that a snapshot takes of the budget, until the last of its lanes is done with it."""

    __slots__ = ("__weakref__", "block", "buffers", "lanes", "nbytes", "transfer")

    def __init__(self, nbytes: int) -> None:
        self.nbytes = nbytes
        self.lanes = 1  # the capture itself, until it is pushed
        self.buffers: Sequence[Any] = ()  # the big copies: to be used again, and to tell what a hook still holds
        self.transfer: Transfer | None = None  # copies that are made while the training goes on
        self.block: Any = None  # where they are, if child processes see them


class Payload(Protocol):
    """What the jobs of one event share. The runtime only carries it."""

    at: float  # s, perf_counter: when the event was emitted
    lease: Lease | None


@dataclass(slots=True)
class Owner:
    """A callback, as its lane sees it: how it fails, and whether it still runs."""

    name: str
    on_error: str = "log"
    retries: int = 0
    backoff: float = 0.1  # s
    timeout: float | None = None  # s
    failures_in_a_row: int = 0
    disabled: bool = False

    def delay_before_retry(self, attempt: int) -> float | None:
        """Seconds to wait after a failed ``attempt`` (counted from 1) before the next one; None: there is none.

        Exponential with "equal jitter": between half and all of ``backoff * 2 ** (attempt - 1)``.
        """
        if attempt > self.retries:
            return None
        return self.backoff * float(2 ** (attempt - 1)) * (0.5 + _jitter.random() / 2)


class Task(Protocol):
    """One hook (or one method of a proxied object): what a job calls."""

    name: str  # of the event or method
    owner: Owner
    essential: bool  # comes once per run: never dropped

    def key(self, payload: Any) -> Hashable:
        """What ``overflow="latest"`` replaces by."""

    def call(self, job: Job, attempt: int) -> Any:
        """Run the hook. The lane's thread (of a task lane: returns an awaitable, on the pool's loop)."""

    def retriable(self, error: BaseException) -> bool:
        """Whether another attempt could end otherwise than in ``error``."""

    def settled(self, job: Job, result: Any, error: BaseException | None) -> None:
        """Called once, however the job ended, possibly under the pool's lock: must not wait, call out or raise."""

    def where(self, payload: Any) -> str:
        """For messages: ``"epoch 3, step 120"``, or ``""``."""


class Job(NamedTuple):
    """One hook's part of an event."""

    seq: int
    task: Task
    payload: Any


@dataclass(frozen=True, slots=True)
class Mark:
    """A place in every lane at once. A lane that comes to it makes a visit, then reports that it has passed."""

    visit: Callable[[], Any] | None
    passed: Callable[[Any, BaseException | None], None] = field(repr=False)
