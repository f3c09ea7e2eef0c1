"""What a process lane needs to know of its jobs: how they are sent to a child, and what comes back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from async_trainer.runtime.job import Job, Mark
from async_trainer.runtime.lane import Ending


@dataclass(slots=True)
class Sent:
    """A job that a child is given.

    Attributes:
        job: what it was taken as.
        redelivered: another child was given it before.
        attempts: how often it was tried before, and was killed.
        handled: it is in the books already; it is sent again for the sake of the callback's state.
        attempt: the one under way.
        held: its lease is held for it until a state covers it.
    """

    job: Job
    redelivered: bool = False
    attempts: int = 0
    handled: bool = False
    attempt: int = 0
    held: bool = False


@dataclass(slots=True)
class Settled:
    """How a job ended in the child; ``count`` of them in a row, if they were delivered and nothing is to be told."""

    ending: Ending
    count: int = 1
    attempt: int = 1
    result: Any = None
    error: BaseException | None = None


@dataclass(slots=True)
class Began:
    """A hook with a timeout has begun."""

    attempt: int
    patience: float | None  # s: then it is to be killed; None: it has ended, and will be tried again


@dataclass(slots=True)
class Spans:
    """When the hooks ran that the next messages settle: number of the event, callback, and two times in s."""

    spans: Sequence[tuple[int, str, float, float]]


@dataclass(slots=True)
class Took:
    """What the hooks have taken since the last time: s, and s of CPU."""

    wall: float
    cpu: float


@dataclass(slots=True)
class Covered:
    """A state of the lane's callbacks, after all jobs that are settled so far; the parent keeps it as it comes."""

    state: bytes | None


@dataclass(slots=True)
class Passed:
    """A mark was visited."""

    states: Any
    error: BaseException | None


@dataclass(slots=True)
class Ready:
    """The child has started."""


Heard = Settled | Began | Spans | Took | Covered | Passed | Ready


class Session(Protocol):
    """One child: what it was told, and how to understand what it says."""

    def hello(self, state: bytes | None) -> Sequence[tuple[bytes, Sequence[int]]]:
        """The frames that make a child ready: its callbacks, and the state to go on from."""

    def pack(self, jobs: Sequence[Sent]) -> Sequence[tuple[bytes, Sequence[int]]]:
        """The frames that hand it ``jobs``. A job that can't be sent fails there, in its turn. The lane's thread."""

    def visit(self, mark: Mark) -> bytes:
        """The frame that has it visit ``mark``."""

    def cover(self) -> bytes:
        """The frame that asks for a state."""

    def end(self) -> bytes:
        """The frame that has it end when all is handled."""

    def unpack(self, frame: bytearray) -> Sequence[Heard]:
        """What it says. What doesn't concern the lane (log records, memory that it has done with) is seen to here."""

    def close(self) -> None:
        """The child is gone."""


class Remote(Protocol):
    """The callbacks and objects of one process lane."""

    def ship(self) -> None:
        """Make ready what each child is told first. The thread that starts the lane.

        Raises:
            ConfigurationError: something can't be sent.
        """

    def session(self) -> Session:
        """For a new child."""

    def stateful(self, job: Job) -> bool:
        """Whether the callback of ``job`` has a state, so that a new child needs what came after the last one."""

    def command(self) -> list[str]:
        """What starts a child; the number of the descriptor follows."""

    def environment(self) -> dict[str, str]:
        """The variables of a child."""
