"""What is behind a proxy: the object, its lane, and what is known of its attributes."""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, Any

from async_trainer.proxy.handle import Handle
from async_trainer.proxy.unanswered import PLAIN
from async_trainer.runtime.job import Owner
from async_trainer.runtime.lane import Lane
from async_trainer.runtime.pool import Pool, current_lane

if TYPE_CHECKING:
    from async_trainer.handler import CallbacksHandler

MISSING: Any = object()
UNKNOWN: Any = object()


class Proxied:
    """An object whose calls are made on a lane.

    Attributes:
        given: the caller has the object; else the lane makes it, and nobody else touches it.
        captures: how many calls had arguments that needed copying.
        seconds: what the callers paid for that; first: for the first of them; skipped: for calls that were dropped.
    """

    def __init__(
        self, handler: CallbacksHandler, pool: Pool, lane: Lane, owner: Owner, target: Any, factory: Any
    ) -> None:
        self.handler = weakref.ref(handler)  # its proxies hold it; a call that waits in a lane must not
        self.pool = pool
        self.lane = lane
        self.owner = owner
        self.name = owner.name
        self.target = target
        self.given = factory is None
        self.captures = 0
        self.seconds = 0.0
        self.first = 0.0
        self.skipped = 0.0
        self.to_raise = pool.failures.to_raise
        self._factory = factory
        self._written: dict[tuple[str, ...], tuple[Handle, Any]] = {}

    def __repr__(self) -> str:
        return f"<Proxied {self.title}, {self.lane!r}>"

    @property
    def title(self) -> str:
        """What it is, for messages: ``SummaryWriter``, ``mlflow``."""
        return title_of(self.target if self.given else self._factory)

    @property
    def subject(self) -> Any:
        """The object, or what makes it."""
        return self.target if self.given else self._factory

    @property
    def why(self) -> str:
        """Where it runs and why, for the line that is logged at the start."""
        shared = f", lane {self.lane.name}" if self.lane.name != self.name else ""
        return f"{'synchronous' if self.pool.synchronous else self.lane.placement}, a proxy{shared}"

    def root(self) -> Any:
        """The object. Where there is a factory it is made here, by the first call; the lane's thread."""
        if self.target is MISSING:
            self.target = self._factory()
        return self.target

    def before_call(self) -> None:
        """The first call starts the handler, and any call raises what ``on_error="raise"`` asks for. Any thread."""
        handler = self.handler()
        if handler is not None and not self.pool.started and not self.pool.closed:
            handler._ensure_started()
        if self.to_raise and current_lane.get() is None:
            raise self.to_raise.popleft()

    def within(self) -> bool:
        """Whether one of the object's own calls, or the report that one has failed, has led here."""
        job = self.lane.running
        return current_lane.get() is self.lane and job is not None and job.task.owner is self.owner

    def read(self, path: tuple[str, ...]) -> Any:
        """What is at ``path`` of a given object, now; as the caller has set it, even if the lane has yet to do that.

        Returns:
            ``UNKNOWN`` where what the caller has set is no plain value, and not there yet.

        Raises:
            AttributeError: there is nothing.
        """
        for length in range(len(path), 0, -1) if self._written else ():
            handle, value = self._written.get(path[:length], (None, None))
            if handle is None:
                continue
            if handle.done:
                self._written.pop(path[:length], None)
            elif value is MISSING:
                raise AttributeError(f"{'.'.join((self.title, *path))} was deleted")
            else:
                return value if length == len(path) else UNKNOWN
        found = self.target
        for name in path:
            found = getattr(found, name)
        return found

    def wrote(self, path: tuple[str, ...], handle: Handle, value: Any) -> None:
        """A caller has set what is at ``path``; ``MISSING``: has deleted it. The call is ``handle``."""
        written = {other: held for other, held in self._written.items() if other[: len(path)] != path}
        written[path] = handle, value if value is MISSING or isinstance(value, PLAIN) else UNKNOWN
        self._written = written


def title_of(subject: Any) -> str:
    """The name of a function, class or module; else the name of an object's class."""
    name = getattr(subject, "__name__", None)
    return name if isinstance(name, str) else type(subject).__name__
