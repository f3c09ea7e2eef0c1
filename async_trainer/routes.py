"""Who hears an event, and what is captured for it: worked out once, used at each event."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from async_trainer.callback import Options
from async_trainer.errors import AsyncTrainerError, CaptureError, ConfigurationError
from async_trainer.events import ONCE_PER_RUN
from async_trainer.hooks import Hook
from async_trainer.runtime.job import Job, Lease, Owner
from async_trainer.runtime.lane import Lane
from async_trainer.snapshot import Kind, Scope, Sealed, open_value
from async_trainer.untaken import Untaken


class EventInfo(NamedTuple):
    """What a hook gets that names ``event``."""

    name: str
    seq: int  # counts the events that reached a lane, from 1
    attempt: int  # from 1
    redelivered: bool = False


@dataclass(frozen=True, slots=True)
class Uncaptured:
    """In a snapshot's place for a value that could not be copied: the hooks that name it fail for this event."""

    error: Exception


class _Untaken:
    plain_fields = True  # it has none

    def __reduce__(self) -> str:
        return "UNTAKEN"  # there is one in each process


UNTAKEN: Any = _Untaken()
"""In a snapshot's place for what only ``**kwargs`` would bring, and is no plain value."""


class Slot(NamedTuple):
    """One value of a snapshot: where it comes from, and how."""

    name: str
    from_run: bool  # provided by the start of the run, not by this event
    select: Callable[[Any], Any] | None
    plain_only: bool  # only ``**kwargs`` wants it


class Snapshot:
    """What was captured of one event, for all its lanes. Not changed once it is pushed."""

    __slots__ = ("at", "errors", "lease", "plan", "redelivered", "values")

    def __init__(
        self, plan: Plan, at: float, values: list[Any], lease: Lease | None, errors: dict[HookTask, Exception] | None
    ) -> None:
        self.plan = plan
        self.at = at
        self.values = values
        self.lease = lease
        self.errors = errors  # by task: its ``when`` raised
        self.redelivered = False  # another process was given it, and died


class HookTask:
    """One background hook, as the runtime sees it."""

    __slots__ = ("counts", "essential", "every", "hook", "lane", "name", "owner", "select", "when", "where_called")

    def __init__(self, hook: Hook, owner: Owner, options: Options, lane: Lane) -> None:
        self.hook = hook
        self.owner = owner
        self.lane = lane
        self.name = hook.event
        self.essential = hook.event in ONCE_PER_RUN
        self.where_called = f"{owner.name}.{hook.event}"
        self.every = (options.every or {}).get(hook.event)
        self.when = options.when.get(hook.event) if isinstance(options.when, Mapping) else options.when
        self.select = options.select or {}
        self.counts: dict[str, int] = {}

    def __repr__(self) -> str:
        return f"<HookTask {self.where_called}>"

    @property
    def filtered(self) -> bool:
        """Whether not each event of its name is for it."""
        return self.every is not None or self.when is not None

    def wants(self, stage: str, arguments: dict[str, Any]) -> bool:
        """Whether this event is for it. The training thread, on the live arguments."""
        if self.every is not None:
            count = self.counts[stage] = self.counts.get(stage, 0) + 1
            if count % self.every:
                return False
        return self.when is None or bool(self.when(**arguments))

    def key(self, payload: Any) -> Hashable:
        return self.name

    def remote_key(self, payload: Any) -> tuple[Any, ...]:
        """What a child process knows it by."""
        return "hook", self.owner.name, self.name

    def call(self, job: Job, attempt: int) -> Any:
        snapshot: Snapshot = job.payload
        if snapshot.errors is not None and self in snapshot.errors:
            error = snapshot.errors[self]
            raise CaptureError(f"{self.where_called}: {error}") from error.__cause__
        arrangement = snapshot.plan.arrangements[self]
        if arrangement.problem is not None:
            raise arrangement.problem
        values = snapshot.values
        lease = snapshot.lease
        scope: Scope | None = None
        arguments: dict[str, Any] = {}
        for name, place in arrangement.places:
            value = values[place]
            if isinstance(value, Sealed):
                if scope is None:
                    scope = Scope(self.where_called)
                    if lease is not None and lease.transfer is not None:
                        lease.transfer.check()
                value = value.open(scope)
            elif value is UNTAKEN:
                value = Untaken(self.where_called, name)
            elif type(value) is Uncaptured:
                raise CaptureError(f"{self.where_called}: {value.error}") from value.error.__cause__
            arguments[name] = value
        for name in arrangement.nones:
            arguments[name] = None
        if arrangement.wants_event:
            arguments["event"] = EventInfo(self.name, job.seq, attempt, snapshot.redelivered)
        result: Any = None
        try:
            result = self.hook.function(**arguments)
            if result is not None and inspect.iscoroutine(result) and self.lane.placement != "task":
                result.close()  # of a wrapper or lambda that doesn't look async
                result = None
                raise ConfigurationError(
                    f"{self.where_called} returned a coroutine, and nothing awaits it in a thread: use placement='task'"
                )
        finally:
            if scope is not None and not inspect.iscoroutine(result):
                scope.close()
        return _awaited(result, scope) if result is not None and inspect.iscoroutine(result) else result

    def retriable(self, error: BaseException) -> bool:
        return not isinstance(error, AsyncTrainerError)  # ours say the same each time

    def settled(self, job: Job, result: Any, error: BaseException | None) -> None:
        """Nobody waits for a hook."""

    def where(self, payload: Any) -> str:
        snapshot: Snapshot = payload
        place = snapshot.plan.state_place
        try:
            return "" if place is None else describe_state(open_value(snapshot.values[place], Scope()))
        except Exception:  # of the state's own class: a message must not make it worse
            return ""


async def _awaited(coroutine: Any, scope: Scope | None) -> Any:
    try:
        return await coroutine
    finally:
        if scope is not None:
            scope.close()


def describe_state(state: Any) -> str:
    """``"epoch 3, step 120"``, as far as ``state`` (an object or a dict) tells."""
    parts = []
    for word, names in (("epoch", ("current_epoch", "epoch")), ("step", ("optim_step", "global_step", "step"))):
        for name in names:
            value = state.get(name) if isinstance(state, dict) else getattr(state, name, None)
            if isinstance(value, (int, float, str)):
                parts.append(f"{word} {value}")
                break
    return ", ".join(parts)


@dataclass(frozen=True, slots=True)
class Arrangement:
    """How one hook's arguments come out of a snapshot."""

    places: tuple[tuple[str, int], ...] = ()
    nones: tuple[str, ...] = ()  # ``select={name: None}``
    wants_event: bool = False
    problem: AsyncTrainerError | None = None  # it can't be called: it names what nothing provides


SmallKinds = tuple[tuple[str, Kind, Callable[[Any], Any] | None], ...]
"""By name: an argument's kind, and what copies it; None: nothing has to."""


@dataclass(slots=True)
class Plan:
    """What is captured for one event with one set of arguments, and for whom."""

    slots: tuple[Slot, ...]
    arrangements: dict[HookTask, Arrangement]
    targets: tuple[tuple[Lane, HookTask], ...]
    state_place: int | None
    small: SmallKinds | None = None
    names: tuple[str, ...] = field(init=False)
    filtered: bool = field(init=False)  # not each event is for each target
    direct: bool = field(init=False)  # each slot is captured at each event, as this brings it
    essential: bool = field(init=False)
    shared: bool = field(init=False)  # a child process is to see the values

    def __post_init__(self) -> None:
        self.names = tuple(slot.name for slot in self.slots)
        self.filtered = any(task.filtered for _, task in self.targets)
        self.direct = not (self.filtered or any(slot.from_run or slot.select or slot.plain_only for slot in self.slots))
        self.essential = any(task.essential for _, task in self.targets)
        self.shared = any(lane.placement == "process" for lane, _ in self.targets)

    def argument(self, place: int) -> str:
        """The name of the value at ``place``."""
        return self.names[place]

    def wanted(self, targets: Sequence[tuple[Lane, HookTask]]) -> set[int]:
        """The places of ``slots`` that ``targets`` need."""
        places = {place for _, task in targets for _, place in self.arrangements[task].places}
        return places if self.state_place is None else places | {self.state_place}


@dataclass(slots=True)
class Route:
    """An event's hooks."""

    event: str
    boundary: bool = False  # a run starts or ends here, or the stage changes
    fired: bool = False  # as far as it is a boundary, or has reached a background hook
    inline: list[Hook] = field(default_factory=list)
    tasks: list[HookTask] = field(default_factory=list)
    plans: dict[tuple[str, ...], Plan] = field(default_factory=dict)
    observed: dict[str, tuple[str, int]] = field(default_factory=dict)  # argument -> how it was captured, big bytes
    captures: int = 0
    seconds: float = 0.0  # of the training thread, capturing: all of it
    first: float = 0.0  # s of these: the first capture
    skipped: float = 0.0  # s of these: events that came to no capture, by ``every``, ``when`` or for want of room
    tell_at: float = 1.0  # s of these: when what it costs is told; once
    overlaps: bool = False  # copies go on while the training does

    @property
    def wanted(self) -> bool:
        """Whether the handler has anything to do at this event."""
        return self.heard or self.boundary

    @property
    def heard(self) -> bool:
        """Whether a callback has a hook for this event."""
        return bool(self.inline or self.tasks)
