"""One call of a proxied object: what it is given, and, once its lane has made it, what it returned."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, NoReturn

from async_trainer.errors import CaptureError, EventLostError, StandInError
from async_trainer.proxy.unanswered import Unanswered, refuse
from async_trainer.runtime.job import Lease
from async_trainer.runtime.pool import current_lane
from async_trainer.snapshot import Scope, Sealed, capture

if TYPE_CHECKING:
    from async_trainer.proxy.call import CallTask


class Handle(Unanswered):
    """What a proxied call returns: ``wait()`` for it, or ignore it. In a ``with`` it enters what the call returned.

    Given as an argument to a later call in the same lane, it stands for what its own call returned.

    Attributes:
        done: whether it is known how the call ended.
    """

    # It is also the payload of the call's job, and the plan of its capture: an object less, per call, counts.
    __slots__ = (
        "__weakref__", "_entered", "_error", "_result", "args", "at", "done", "kwargs", "lease", "number",
        "sealed", "task",
    )  # fmt: skip

    def __init__(self, task: CallTask, at: float, args: Sequence[Any], kwargs: dict[str, Any]) -> None:
        self.task = task
        self.at = at  # s, perf_counter
        self.args = args
        self.kwargs = kwargs
        self.sealed = False  # the arguments are to be opened
        self.lease: Lease | None = None
        self.done = False
        self.number = next(_numbers)  # how other processes call it

    def __repr__(self) -> str:
        how = "pending"
        if self.done:
            how = "done" if self._error is None else f"failed, {type(self._error).__name__}"
        return f"<handle of {self.task.title}: {how}>"

    def wait(self, timeout: float | None = None) -> Any:
        """What the call returned, waiting for it. Any thread, but not inside a background hook.

        Args:
            timeout: seconds; None: as long as the lane moves.

        Raises:
            TimeoutError: the call has not been made yet, or its lane has stalled; names the lane.
            EventLostError: it was dropped or lost.
            InsideHookError: called from within a background hook.
            Exception: what the call raised.
        """
        task = self.task
        lane, what = task.lane, f"{task.title}: wait()"
        task.place.home.pool.wait(lambda: () if self.done else (lane,), timeout, what)
        if self.done:
            return self.get()
        if lane.abandoned:
            raise EventLostError(f"{task.title} was lost: the handler was closed")
        raise TimeoutError(f"{what}: lane {lane.name} has stalled")

    def get(self) -> Any:
        """What the call returned, once it is done. Any thread.

        Raises:
            Exception: what the call raised.
        """
        if self._error is None:
            if isinstance(self._result, Unsent):
                raise StandInError(f"{self.task.title}: what it returned {self._result.why}")
            return self._result
        try:
            raise self._error.with_traceback(None)  # else each wait would lengthen it
        finally:
            del self  # the new traceback holds this frame

    def __enter__(self) -> Any:
        from async_trainer.proxy.call import Place, enter
        from async_trainer.proxy.stand_in import Proxy

        home = self.task.place.home
        self._entered = Place(home, self).task(enter).push((), {})
        return Proxy(Place(home, self._entered), home.handler())

    def __exit__(self, kind: Any, error: Any, traceback: Any) -> None:
        from async_trainer.proxy.call import Place, leave

        Place(self.task.place.home, self).task(leave).push((self._entered, kind, error), {})

    # ---------------------------------------------------------------------------------------------- from the runtime

    @property
    def essential(self) -> bool:
        """Never dropped for want of room."""
        return self.task.essential

    @property
    def shared(self) -> bool:
        """Whether a child process is to see the arguments."""
        return self.task.lane.placement == "process"

    def argument(self, place: int) -> str:
        """How messages call the value at ``place``."""
        count = len(self.args)
        return f"argument {place + 1 if place < count else list(self.kwargs)[place - count]}"

    def values(self) -> list[Any]:
        """The arguments, as they were captured."""
        return [*self.args, *self.kwargs.values()]

    def sent(self) -> tuple[list[Any], dict[str, Any]]:
        """What another process is given of it."""
        return list(self.args), self.kwargs

    def seal(self, values: list[Any], lease: Lease | None) -> None:
        """Take the arguments as they were captured. The calling thread."""
        if self.kwargs:
            count = len(self.args)
            self.args, self.kwargs = values[:count], dict(zip(self.kwargs, values[count:], strict=True))
        else:
            self.args = values
        self.sealed = True
        self.lease = lease

    def settle(self, result: Any, error: BaseException | None) -> None:
        """The call has ended, and all that is kept of it is this."""
        self._result, self._error = result, error
        self.args, self.kwargs = (), {}
        self.done = True

    # ------------------------------------------------------------------------------- what would need the answer at once

    def __getattr__(self, name: str) -> NoReturn:
        refuse(self, f".{name}")

    def __bool__(self) -> NoReturn:
        refuse(self, "its truth")

    def __format__(self, spec: str) -> NoReturn:  # f"{handle}.pt" would be a file's name; print(handle) is harmless
        refuse(self, "its text")


class Unsent:
    """What a call in another process has returned, and can't be sent here."""

    def __init__(self, why: str) -> None:
        self.why = f"stays in its process ({why}): use the handle itself, in calls of that lane"

    def __reduce__(self) -> tuple[Any, ...]:
        return _unsent, (self.why,)


def _unsent(why: str) -> Unsent:
    made = Unsent("")
    made.why = why
    return made


class Returned(Sealed):
    """To another process: an object of its own, or what a call there has returned, or an attribute of these.

    Args:
        home: the name of the proxied object.
        number: the call; None: the object itself.
        path: the names of the attributes that lead on.
    """

    __slots__ = ("home", "number", "path")

    known: ClassVar[Mapping[str, Any]] = {}  # there: its objects, by name

    def __init__(self, home: str, number: int | None, path: tuple[str, ...] = ()) -> None:
        self.home = home
        self.number = number
        self.path = path

    def open(self, scope: Scope) -> Any:
        target = self.known.get(self.home)
        if target is None:
            raise StandInError(
                f"what a call of {self.home} returned is known in its own lane only: wait() for it first, or give "
                "both the same lane="
            )
        found = target.root() if self.number is None else target.result(self.number)
        for name in self.path:
            found = getattr(found, name)
        return found


_numbers = itertools.count(1)


class SealedHandle(Sealed):
    """A handle among the arguments of a later call."""

    __slots__ = ("handle",)

    def __init__(self, handle: Handle) -> None:
        self.handle = handle

    def __reduce__(self) -> tuple[Any, ...]:
        handle = self.handle
        home = handle.task.place.home
        if home.lane.placement != "process":
            raise CaptureError(f"{handle!r}: wait() for it first: what it returns is known in its own lane only")
        return Returned, (home.name, handle.number)

    def open(self, scope: Scope) -> Any:
        if current_lane.get() is not self.handle.task.lane:
            raise StandInError(
                f"{self.handle!r}: what it returns is known in its own lane only: wait() for it first, or give both "
                "the same lane="
            )
        return self.handle.get()


capture.register(Handle)(SealedHandle)
