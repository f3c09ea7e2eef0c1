"""What a loop and a callback's hooks take, seen from outside: by the handler that fires, and around each hook."""

from __future__ import annotations

import functools
import os
import threading
import time
from dataclasses import dataclass, field
from typing import Any, Never, cast

from async_trainer.callback import Background, Inline, Placement, background, inline
from async_trainer.events import Event
from async_trainer.handler import CallbacksHandler

clock = time.perf_counter


@dataclass(slots=True)
class Spent:
    """Calls, and the seconds that they took: of the clock, and of wanting a core."""

    calls: int = 0
    wall: float = 0.0
    cpu: float = 0.0

    @property
    def each(self) -> float:
        """s per call."""
        return self.wall / self.calls if self.calls else 0.0

    @property
    def busy(self) -> float:
        """The share of the time that was spent on a core; the rest is waiting."""
        return min(1.0, self.cpu / self.wall) if self.wall else 0.0

    def add(self, wall: float, cpu: float = 0.0) -> None:
        self.calls += 1
        self.wall += wall
        self.cpu += cpu


@dataclass(slots=True)
class Watch:
    """What one run of the loop took.

    Attributes:
        events: what the training thread spent in ``call_event``, by event.
        hooks: what inline hooks took, by event.
        captured: bytes over 64 KiB that a snapshot of the event holds, by event.
        seconds: the loop, from its first event to its end.
        handled: the same, until all events were handled.
        problem: why it could not be run; then the rest is empty.
    """

    events: dict[str, Spent] = field(default_factory=dict)
    hooks: dict[str, Spent] = field(default_factory=dict)
    captured: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0
    handled: float = 0.0
    waited: float = 0.0  # s of the loop: for a full queue, or the byte budget
    took: tuple[float, float] = (0.0, 0.0)  # s of its hooks, and s of CPU, as its lane has added them up
    problem: str = ""

    @property
    def steps(self) -> int:
        """Batches of the loop; 1 where it fires none."""
        ends = self.events.get(Event.BATCH_END)
        return ends.calls if ends is not None and ends.calls else 1

    @property
    def step(self) -> float:
        """s of the loop per batch."""
        return self.seconds / self.steps


class Recorder:
    """Holds the watch of the run that is under way, and what an inline hook has raised."""

    def __init__(self) -> None:
        self.watch = Watch()
        self.raised: Exception | None = None


class WatchedHandler(CallbacksHandler):
    """A handler that keeps what its events took."""

    def __init__(self, callbacks: Any, recorder: Recorder) -> None:
        self._recorder = recorder
        super().__init__(callbacks)

    def call_event(self, event: Event | str, /, *misplaced: Never, **arguments: Any) -> None:
        began = clock()
        try:
            super().call_event(event, *misplaced, **arguments)
        finally:
            self._recorder.watch.events.setdefault(str(event), Spent()).add(clock() - began)

    def captured(self) -> dict[str, int]:
        """By event that its callback has a hook for: the bytes over 64 KiB of what was captured."""
        heard = {event for one in self.attached for event in one.hooks}
        routes = [route for event, route in self._routes.items() if route is not None and str(event) in heard]
        return {str(route.event): sum(nbytes for _, nbytes in route.observed.values()) for route in routes}


class Timed:
    """An inline callback whose hooks are timed."""

    def __init__(self, callback: Any, hooks: dict[str, Any], recorder: Recorder) -> None:
        for event, hook in hooks.items():
            setattr(self, event, _timed(hook.function, recorder, event))
        check = getattr(callback, "check_training", None)
        if callable(check):
            self.check_training = check


def thread_wants() -> float:
    """s that this thread has wanted a core for: on one, or (where the system tells, as Linux does) in line for one. On
    a machine whose cores others want too, a hook that computes isn't taken for one that waits."""
    try:
        in_line = int(os.pread(_schedstat(), 128, 0).split()[1]) * 1e-9
    except (OSError, ValueError, IndexError):
        in_line = 0.0
    return time.thread_time() + in_line  # the file's own time on a core lags by a tick


def _schedstat() -> int:
    """The file of this thread; opened once."""
    if not hasattr(_files, "schedstat"):
        _files.schedstat = os.open("/proc/thread-self/schedstat", os.O_RDONLY | os.O_CLOEXEC)
    descriptor: int = _files.schedstat
    return descriptor


_files = threading.local()


def _timed(function: Any, recorder: Recorder, event: str) -> Any:
    @functools.wraps(function)  # handlers read a hook's arguments from its signature
    def hook(**arguments: Any) -> Any:
        wanted, began = thread_wants(), clock()
        try:
            return function(**arguments)
        except Exception as error:
            recorder.raised = error
            raise
        finally:
            spent = clock() - began
            recorder.watch.hooks.setdefault(event, Spent()).add(spent, min(spent, thread_wants() - wanted))

    return hook


def placed(record: Any, placement: str, recorder: Recorder) -> Any:
    """``record`` (a callback, wrapped or not) as it is to run: inline and timed, or in the background."""
    if placement != "inline":
        callback = record.callback if isinstance(record, Inline) else record
        return background(callback, placement=cast(Placement, placement))
    callback = record.callback if isinstance(record, (Background, Inline)) else record
    hooks = next(iter(CallbacksHandler([inline(callback)]).attached)).hooks
    return inline(Timed(callback, dict(hooks), recorder))
