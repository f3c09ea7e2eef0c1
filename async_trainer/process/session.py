"""What one child is told, and what it says: the frames of a process lane."""

from __future__ import annotations

import inspect
import logging
import pickle
import sys
import traceback
import warnings
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from async_trainer.errors import CaptureError
from async_trainer.process.elsewhere import unpack_error
from async_trainer.process.frames import Frames
from async_trainer.process.home import Home, import_paths
from async_trainer.process.pickling import REMEDY, Definitions, Packer, SharedPart, dumps
from async_trainer.proxy.handle import Unsent
from async_trainer.routes import Arrangement, Plan, Snapshot
from async_trainer.runtime.job import Mark
from async_trainer.runtime.placement.remote import Began, Covered, Heard, Passed, Ready, Sent, Settled, Spans, Took
from async_trainer.runtime.wire import DESCRIPTORS
from async_trainer.snapshot.shared import Segments
from async_trainer.states import Visit

if TYPE_CHECKING:
    from async_trainer.runtime.lane import Lane

Framed = list[tuple[bytes, Sequence[int]]]
PLANS = 1000  # that a child is told of, before the numbers start anew


def _warning_filters() -> list[bytes]:
    """Those of this process, each on its own: a category may be of a class that the child can't import."""
    pickled = []
    for one in warnings.filters:
        try:
            pickled.append(dumps(one))
        except Exception:  # of a class that can't be sent at all
            continue
    return pickled


class HomeSession:
    """One child. The lane's threads: one packs, the other unpacks."""

    def __init__(self, home: Home, lane: Lane) -> None:
        self._home = home
        self._lane = lane
        self._pool = home.pool
        self._definitions = Definitions()
        self._frames = Frames()
        self._packer: Packer | None = None
        self._told_segments: set[int] = set()
        self._used: dict[int, int] = {}  # parts of segments that the child has, by number
        self._plans: dict[int, tuple[Plan, int, tuple[int, ...]]] = {}
        self._told = 0  # of what was shipped
        self._timed = False  # told that somebody listens
        self._holds = 0  # the number of the descriptor that it holds

    # ------------------------------------------------------------------------------------------------ to the child

    def hello(self, state: bytes | None) -> Framed:
        root = logging.getLogger()
        levels = {
            name: one.level
            for name, one in list(logging.root.manager.loggerDict.items())
            if isinstance(one, logging.Logger) and one.level
        }
        about = {
            "path": import_paths(), "argv": list(sys.argv),
            "warnings": _warning_filters(), "lane": self._lane.name, "level": root.level,
            "levels": levels, "deadline": self._pool.shutdown_timeout, "async": self._is_async,
        }  # fmt: skip
        return [
            self._frame(("hello", about), *self._news(), *([("load", state)] if state is not None else []), ("ready",))
        ]

    @property
    def _is_async(self) -> bool:
        hooks = [hook for one in self._home.callbacks for hook in one.hooks.values()]
        return any(hook.is_async for hook in hooks) or any(
            inspect.iscoroutinefunction(one.subject) for one in self._home.proxied
        )

    def _news(self) -> list[tuple[Any, ...]]:
        """What the child has not been told of: callbacks, objects."""
        messages = self._home.shipped[self._told :]
        self._told += len(messages)
        dropped = []
        while self._home.dropped:
            dropped.append(self._home.dropped.popleft())
        if self._pool.listeners and not self._timed:
            self._timed = True
            messages = [*messages, ("time",)]
        return [*messages, ("drop", dropped)] if dropped else messages

    def pack(self, jobs: Sequence[Sent]) -> Framed:
        messages: list[tuple[Any, ...]] = self._news()
        descriptors: list[int] = []
        if self._home.held is not None and self._holds != self._home.hold_number:
            self._holds = self._home.hold_number
            messages.append(("hold",))
            descriptors.append(self._home.held)
        frames: Framed = []
        place = 0
        while place < len(jobs):
            if len(descriptors) > DESCRIPTORS // 2:  # one event may bring several
                frames.append(self._frame(*messages, descriptors=descriptors))
                messages, descriptors = [], []
            payload, end = jobs[place].job.payload, place
            while end < len(jobs) and jobs[end].job.payload is payload:
                end += 1
            messages.append(self._event(payload, jobs[place:end], messages, descriptors))
            place = end
        gone = [number for number in self._told_segments if self._segments.segment(number) is None]
        if gone:
            self._told_segments.difference_update(gone)
            messages.append(("forget", gone))
        return [*frames, self._frame(*messages, descriptors=descriptors)]

    def _event(
        self, payload: Any, jobs: Sequence[Sent], messages: list[tuple[Any, ...]], descriptors: list[int]
    ) -> tuple[Any, ...]:
        first = jobs[0]
        tasks = [one.job.task.remote_key(payload) for one in jobs]  # type: ignore[attr-defined]
        attempts = tuple(one.attempts for one in jobs) if any(one.attempts for one in jobs) else None
        again = any(one.redelivered for one in jobs)
        plain = self._plain_payload(payload, messages)
        if plain is not None:
            return ("event", first.job.seq, tasks, plain, None, again, attempts)
        try:
            pickled, buffers = self._pack_payload(payload, jobs, messages)
        except Exception as error:
            pickled, buffers = pickle.dumps(self._refusal(payload, jobs, error)), []
        messages += [("define", *one) for one in self._definitions.take_fresh()]
        if self._packer is not None:
            for part in self._packer.parts:
                self._announce(part, messages, descriptors)
        return ("event", first.job.seq, tasks, pickled, [one.where for one in buffers], again, attempts)

    def _plain_payload(self, payload: Any, messages: list[tuple[Any, ...]]) -> tuple[Any, ...] | None:
        """What a child makes a payload from, if the frame's pickler is enough for it; else None."""
        if payload.lease is not None:
            return None
        if isinstance(payload, Snapshot):
            if payload.errors is not None:
                return None
            number, places = self._plan(payload.plan, messages)
            values = [payload.values[place] for place in places]
            return (number, values, None) if self._frames.plain(values) else None
        return payload.sent() if self._frames.plain(payload.values()) else None

    def _pack_payload(
        self, payload: Any, jobs: Sequence[Sent], messages: list[tuple[Any, ...]]
    ) -> tuple[bytes, list[SharedPart]]:
        lease = payload.lease
        block = None
        if lease is not None:
            if lease.transfer is not None:
                lease.transfer.check()
            block = lease.block
        packer = self._packer
        if packer is None:
            packer = self._packer = Packer(self._definitions, self._segments)
        packer.parts = []
        if not isinstance(payload, Snapshot):
            return packer.pack(payload.sent(), block)
        number, places = self._plan(payload.plan, messages)
        errors = None
        if payload.errors is not None:
            errors = {
                task.hook.event: error for task, error in payload.errors.items() if task.lane is self._lane
            } or None
        return packer.pack((number, [payload.values[place] for place in places], errors), block)

    @property
    def _segments(self) -> Segments:
        segments: Segments = self._pool.store.shared()
        return segments

    def _plan(self, plan: Plan, messages: list[tuple[Any, ...]]) -> tuple[int, tuple[int, ...]]:
        known = self._plans.get(id(plan))
        if known is not None and known[0] is plan:
            return known[1], known[2]
        if len(self._plans) >= PLANS:
            self._plans.clear()
        ours = {task: one for task, one in plan.arrangements.items() if task.lane is self._lane}
        wanted = {place for one in ours.values() for _, place in one.places}
        if plan.state_place is not None:
            wanted.add(plan.state_place)
        places = tuple(sorted(wanted))
        new = {old: place for place, old in enumerate(places)}
        arrangements = {
            task.remote_key(None): Arrangement(
                tuple((name, new[place]) for name, place in one.places), one.nones, one.wants_event, one.problem
            )
            for task, one in ours.items()
        }
        number = len(self._plans)
        self._plans[id(plan)] = (plan, number, places)
        state = None if plan.state_place is None else new[plan.state_place]
        pickled, _ = Packer().pack((state, arrangements))
        messages.append(("plan", number, pickled))
        return number, places

    def _announce(self, part: SharedPart, messages: list[tuple[Any, ...]], descriptors: list[int]) -> None:
        segment = part.segment
        self._used[segment.number] = self._used.get(segment.number, 0) + 1
        if segment.number not in self._told_segments:
            self._told_segments.add(segment.number)
            messages.append(("segment", segment.number, segment.size))
            descriptors.append(segment.fd)

    def _refusal(self, payload: Any, jobs: Sequence[Sent], error: Exception) -> str:
        """What to tell of a payload that can't be sent: which of its values, and why."""
        named: Iterable[tuple[str, Any]]
        if isinstance(payload, Snapshot):
            named = zip(payload.plan.names, payload.values, strict=True)
        else:
            named = ((payload.argument(place), value) for place, value in enumerate(payload.values()))
        packer = Packer(Definitions(), None)
        for name, value in named:
            try:
                packer.pack(value)
            except Exception as why:
                reason = str(why) if isinstance(why, CaptureError) else f"can't be sent to a process ({why}): {REMEDY}"
                return f"{name}: {reason}"
        return f"it can't be sent to a process ({type(error).__name__}: {error}); {REMEDY}"

    def visit(self, mark: Mark) -> bytes:
        visit = mark.visit
        how, states = (visit.how, visit.states) if isinstance(visit, Visit) else (None, None)
        return self._frame(*self._news(), ("visit", how, Packer().pack(states)[0]))[0]

    def cover(self) -> bytes:
        return self._frame(("cover",))[0]

    def end(self) -> bytes:
        return self._frame(("end",))[0]

    def _frame(self, *messages: tuple[Any, ...], descriptors: Sequence[int] = ()) -> tuple[bytes, Sequence[int]]:
        return self._frames.dump(messages), descriptors

    # --------------------------------------------------------------------------------------------- from the child

    def unpack(self, frame: bytearray) -> list[Heard]:
        heard: list[Heard] = []
        for kind, *rest in pickle.loads(frame):
            if kind == "returned":
                self._returned(rest[0])
            elif kind == "ready":
                heard.append(Ready())
            elif kind == "log":
                try:
                    _log(self._lane.name, rest[0])
                except Exception:  # of a filter of the user's
                    traceback.print_exc()
            elif kind == "attributes":
                self._set_attributes(rest[0])
            elif kind == "settled":
                heard.append(_settled(*rest))
            elif kind == "began":
                heard.append(Began(*rest))
            elif kind == "spans":
                heard.append(Spans(rest[0]))
            elif kind == "took":
                heard.append(Took(*rest))
            elif kind == "covered":
                heard.append(Covered(*rest))
            else:
                heard.append(_passed(*rest))
        return heard

    def _returned(self, numbers: Sequence[int]) -> None:
        for number in numbers:
            segment = self._segments.segment(number)
            if segment is not None:
                self._used[number] -= 1
                self._segments.let_go(segment)

    def _set_attributes(self, changed: dict[str, dict[str, bytes]]) -> None:
        """What has changed of the callbacks' attributes there is set here, where it can be read after a flush."""
        for one in self._home.callbacks:
            for name, pickled in changed.get(one.name, {}).items():
                try:
                    object.__setattr__(one.callback, name, pickle.loads(pickled))
                except Exception as error:  # a class of the child's alone, or one that refuses
                    logging.getLogger("async_trainer").debug("%s.%s stays as it was: %s", one.name, name, error)

    def close(self) -> None:
        for number, count in self._used.items():
            segment = self._segments.segment(number)
            if segment is not None and count:
                self._segments.let_go(segment, count)
        self._used.clear()


def _settled(ending: Any, count: int, attempt: int, result: Any, error: Any) -> Settled:
    from async_trainer.runtime.lane import Ending

    made = unpack_error(*error) if error is not None else None
    return Settled(Ending(ending), count, attempt, _result(result), made)


def _result(packed: Any) -> Any:
    if packed is None:
        return None
    said, pickled = packed
    if pickled is not None:
        try:
            return pickle.loads(pickled)
        except Exception as error:
            said = f"{said}: {error}"
    return Unsent(said)


def _passed(states: bytes | None, error: Any) -> Passed:
    if error is not None:
        return Passed(None, unpack_error(*error))
    return Passed(None if states is None else pickle.loads(states), None)


def _log(lane: str, record: dict[str, Any]) -> None:
    """A record of the child's, to this process's handlers, with the name of the lane."""
    made = logging.makeLogRecord(record)
    made.processName = f"async_trainer-{lane}"
    made.lane = lane
    target = logging.getLogger(made.name)
    if target.isEnabledFor(made.levelno):
        target.handle(made)
