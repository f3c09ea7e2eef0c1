"""Calls of proxied objects, in the child: the objects, and what calls have returned that later calls refer to."""

from __future__ import annotations

import inspect
import pickle
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from async_trainer.errors import AsyncTrainerError, CaptureError, ConfigurationError, StandInError
from async_trainer.process.elsewhere import said_by
from async_trainer.proxy.call import ACTIONS
from async_trainer.proxy.handle import Unsent
from async_trainer.routes import Uncaptured
from async_trainer.runtime.job import Job, Owner
from async_trainer.snapshot import Scope, open_value


class Target:
    """An object whose calls are made here, and what they have returned."""

    def __init__(self, name: str, pickled: bytes, made: bool, owner: Owner) -> None:
        self.name = name
        self.owner = owner
        self._made = made  # by a function, which is there until it has made it
        self._held: Any = None
        self._why: Exception | None = None
        try:
            self._held = pickle.loads(pickled)
        except Exception as error:
            self._why = ConfigurationError(f"{name} can't be made again in its process ({said_by(error)})")
        self.results: dict[int, Any] = {}

    def root(self) -> Any:
        """The object; made by the first call. The lane's thread."""
        if self._why is not None:
            raise self._why
        if self._made:
            self._held = self._held()
            self._made = False
        return self._held

    def result(self, number: int) -> Any:
        """What a call has returned.

        Raises:
            StandInError: the process that made the call has died.
        """
        if number not in self.results:
            raise StandInError(f"what a call of {self.name} returned is gone, with the process that made it; or None")
        return self.results[number]

    def drop(self, numbers: Iterable[int]) -> None:
        """Nobody refers to what these calls have returned."""
        for number in numbers:
            self.results.pop(number, None)


class Arguments:
    """The payload of a call."""

    lease = None

    def __init__(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        self.at = time.perf_counter()
        self.args = args
        self.kwargs = kwargs


class CallHere:
    """One call. ``source``: the call whose result it is made on; None: the object."""

    def __init__(
        self, target: Target, number: int, source: int | None, path: tuple[str, ...], action: str,
        is_async: bool,
    ) -> None:  # fmt: skip
        self._target = target
        self._number = number
        self._source = source
        self._path = path
        self._action = ACTIONS[action]
        self._is_async = is_async
        self.name = ".".join(path) or "__call__"
        self.title = f"{target.name}.{self.name}"

    def call(self, job: Job, attempt: int) -> Any:
        payload = job.payload
        if not isinstance(payload, Arguments):
            raise CaptureError(f"{self.title}: {payload.why}")
        scope = Scope(self.title)
        result: Any = None
        try:
            args = [self._opened(value, scope) for value in payload.args]
            kwargs = {name: self._opened(value, scope) for name, value in payload.kwargs.items()}
            result = self._action(self._find(), *args, **kwargs)
            if inspect.iscoroutine(result) and not self._is_async:
                result.close()
                raise ConfigurationError(f"{self.title} is async, and nothing awaits it there: use placement='task'")
        finally:
            if not inspect.iscoroutine(result):
                scope.close()
        return self._awaited(result, scope) if inspect.iscoroutine(result) else result

    def _find(self) -> Any:
        found = self._target.root() if self._source is None else self._target.result(self._source)
        for name in self._path:
            found = getattr(found, name)
        return found

    def _opened(self, value: Any, scope: Scope) -> Any:
        if type(value) is Uncaptured:
            raise CaptureError(f"{self.title}: {value.error}") from value.error.__cause__
        return open_value(value, scope)

    async def _awaited(self, result: Any, scope: Scope) -> Any:
        try:
            return await result
        finally:
            scope.close()

    def retriable(self, error: BaseException) -> bool:
        return not isinstance(error, AsyncTrainerError)

    def finished(self, result: Any) -> Any:
        """Keep what it returned, for calls that refer to it. Returns what the parent is to get."""
        if result is None:
            return None
        self._target.results[self._number] = result
        return Unsent("it is the object itself") if result is self._target.root() else result
