"""A method of a proxied object, as the runtime sees it: captured arguments in, a job for the lane, the call."""

from __future__ import annotations

import inspect
import operator
import re
import time
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any

from async_trainer.emit import take_values
from async_trainer.errors import AsyncTrainerError, CaptureError, ConfigurationError, EventLostError, StandInError
from async_trainer.proxy.handle import Handle
from async_trainer.proxy.proxied import Proxied
from async_trainer.proxy.unanswered import PLAIN
from async_trainer.routes import Uncaptured
from async_trainer.runtime.job import Job
from async_trainer.snapshot import Scope, capture, open_value

WRONG_THREAD = re.compile(r"\b(same|different|another|other|wrong) (thread|(event )?loop)\b", re.IGNORECASE)

clock = time.perf_counter
references = capture.references


@dataclass(frozen=True, slots=True)
class Place:
    """Where a proxy points: to the object, or to what a call returned, or to an attribute of these."""

    home: Proxied
    source: Handle | None = None  # the call; None: the object itself
    path: tuple[str, ...] = ()  # the names of the attributes that lead there

    def __str__(self) -> str:
        return ".".join(([] if self.source is None else [self.source.task.answer]) + [*self.path])

    @property
    def known(self) -> bool:
        """Whether a caller may look at what is there."""
        return self.source is None and self.home.given

    def find(self) -> Any:
        """What is there. The lane's thread."""
        found = self.home.root() if self.source is None else self.source.get()
        for name in self.path:
            found = getattr(found, name)
        return found

    def task(self, action: Callable[..., Any] = operator.call) -> CallTask:
        """The task of calling ``action`` with what is there, then the arguments."""
        return CallTask(self, action)


class CallTask:
    """One method of a proxied object (or an operation: ``setattr``, ``with``, ...)."""

    __slots__ = ("_action", "essential", "lane", "name", "owner", "place", "targets", "title")

    def __init__(self, place: Place, action: Callable[..., Any]) -> None:
        home = place.home
        self.place = place
        self.lane = home.lane
        self.owner = home.owner
        self.name = ".".join(filter(None, (str(place), OPERATIONS.get(action)))) or "__call__"
        self.title = f"{home.name}.{self.name}"
        self.essential = action in (enter, enter_itself, leave)  # what was opened must be closed
        self.targets = ((home.lane, self),)
        self._action = action

    def __repr__(self) -> str:
        return f"<CallTask {self.title}>"

    @property
    def answer(self) -> str:
        """What the call returns, for messages: ``"start_run()"``."""
        name = self.name.removesuffix(".__enter__")
        return name if name.endswith("()") else f"{name}()"

    def push(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Handle:
        """Capture the arguments, and push the call to its lane. Any thread.

        Raises:
            LaneError: an earlier call or hook with ``on_error="raise"`` has failed.
        """
        home = self.place.home
        if home.to_raise or not home.pool.started:
            home.before_call()
        handle = Handle(self, clock(), args, kwargs)
        if references.issuperset(map(type, args)) and references.issuperset(map(type, kwargs.values())):
            home.pool.push(self.targets, handle)
        else:
            self._push_captured(handle)
        return handle

    def _push_captured(self, handle: Handle) -> None:
        home = self.place.home
        pool = home.pool
        values, lease = take_values(pool, [*handle.args, *handle.kwargs.values()], handle)
        spent = clock() - handle.at
        home.seconds += spent
        if values is None:
            home.skipped += spent
            pool.drop(self.targets)
            handle.settle(
                None, EventLostError(f"{self.title} was dropped: the byte budget is full, and the lanes have stalled")
            )
            return
        home.first = home.first or spent
        home.captures += 1
        handle.seal(values, lease)
        try:
            pool.push(self.targets, handle)
        finally:
            if lease is not None:
                pool.release(lease)

    # ---------------------------------------------------------------------------------------------- from the runtime

    def key(self, payload: Handle) -> Hashable:
        """The method and its first argument, where that is a plain value (a tag, say)."""
        first = next(iter((*payload.args, *payload.kwargs.values())), None)
        return self.name, first if isinstance(first, PLAIN) else None

    def remote_key(self, payload: Handle) -> tuple[Any, ...]:
        """What a child process knows the call by."""
        home, source, path = self.place.home, self.place.source, self.place.path
        return "call", home.name, payload.number, None if source is None else source.number, path, self._action.__name__

    def call(self, job: Job, attempt: int) -> Any:
        handle: Handle = job.payload
        if handle.lease is not None and handle.lease.transfer is not None:
            handle.lease.transfer.check()
        scope = Scope(self.title) if handle.sealed else None
        try:
            args, kwargs = (handle.args, handle.kwargs) if scope is None else self._open(handle, scope)
            result = self._action(self.place.find(), *args, **kwargs)
            if result is not None and inspect.isawaitable(result):
                result, scope = self._awaitable(result, scope), None
            return result
        except Exception as error:
            self._blame_thread(error)
            raise
        finally:
            if scope is not None:
                scope.close()

    def _open(self, handle: Handle, scope: Scope) -> tuple[list[Any], dict[str, Any]]:
        def opened(value: Any) -> Any:
            if type(value) is Uncaptured:
                raise CaptureError(f"{self.title}: {value.error}") from value.error.__cause__
            return open_value(value, scope)

        return [opened(value) for value in handle.args], {name: opened(value) for name, value in handle.kwargs.items()}

    def _awaitable(self, result: Any, scope: Scope | None) -> Any:
        if self.lane.placement == "task":
            return self._await(result, scope)
        if inspect.iscoroutine(result):
            result.close()
            raise ConfigurationError(f"{self.title} is async, and nothing awaits it in a thread: use placement='task'")
        return result

    async def _await(self, result: Any, scope: Scope | None) -> Any:
        try:
            return await result
        except Exception as error:
            self._blame_thread(error)
            raise
        finally:
            if scope is not None:
                scope.close()

    def _blame_thread(self, error: Exception) -> None:
        if self.place.home.given and WRONG_THREAD.search(str(error)):
            raise ConfigurationError(
                f"{error} (it was made elsewhere than its calls are; let the lane make it: handler.proxy(factory=...))"
            ) from error

    def retriable(self, error: BaseException) -> bool:
        return not isinstance(error, AsyncTrainerError)  # ours say the same each time

    def settled(self, job: Job, result: Any, error: BaseException | None) -> None:
        job.payload.settle(result, error)
        if result is not None and self.lane.remote is not None:
            self.lane.remote.keep_while_referred_to(job.payload)

    def where(self, payload: Handle) -> str:
        return ""


# What is done with the object, where it is not simply called. On the lane's thread.


def enter(manager: Any) -> Any:
    """For ``with handle as x``: ``x`` stands for what this returns."""
    return type(manager).__enter__(manager)


def enter_itself(manager: Any) -> Any:
    """For ``with proxy as p``: ``p`` is the proxy."""
    entered = enter(manager)
    if entered is not manager:
        type(manager).__exit__(manager, None, None, None)
        raise StandInError(
            f"{type(manager).__name__}.__enter__ returns another object, which a proxy of this one can't stand for: "
            "make a proxy of that object, or of the function that makes this one, and call it: with make(...) as x"
        )
    return entered


def leave(manager: Any, entered: Any, kind: Any, error: Any) -> None:
    """``entered`` is the handle of the call that entered: where that failed, it raises, and this isn't reached."""
    type(manager).__exit__(manager, kind, error, None)


ACTIONS: dict[str, Callable[..., Any]] = {
    action.__name__: action
    for action in (operator.call, setattr, delattr, operator.setitem, operator.delitem, enter, enter_itself, leave)
}
"""By name, for another process."""

OPERATIONS = {
    setattr: "__setattr__",
    delattr: "__delattr__",
    operator.setitem: "__setitem__",
    operator.delitem: "__delitem__",
    enter: "__enter__",
    enter_itself: "__enter__",
    leave: "__exit__",
}
