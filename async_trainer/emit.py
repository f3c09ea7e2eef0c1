"""Taking snapshots: on the training thread, so each line has to earn its place."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from async_trainer.errors import CaptureError
from async_trainer.routes import UNTAKEN, HookTask, Plan, SmallKinds, Uncaptured
from async_trainer.runtime.job import Lease
from async_trainer.runtime.lane import Lane
from async_trainer.runtime.pool import Pool
from async_trainer.snapshot import Memo, capture, size, take

if TYPE_CHECKING:
    from async_trainer.snapshot.offload import Offload

Targets = Sequence[tuple[Lane, HookTask]]


class CapturePlan(Protocol):
    """What :func:`take_values` needs to know besides the values."""

    @property
    def essential(self) -> bool:
        """Never dropped for want of room."""

    @property
    def shared(self) -> bool:
        """Whether a child process is to see the values."""

    def argument(self, place: int) -> str:
        """The name of the value at ``place``, for messages."""


def small_kinds(names: Iterable[str], arguments: Mapping[str, Any]) -> SmallKinds | None:
    """How the arguments ``names`` are captured, where all of them are small or by reference; else None."""
    kinds = [(name, capture.kind(type(arguments[name]))) for name in names]
    if any(kind.take is not None and kind.quick is None for _, kind in kinds):
        return None
    return tuple((name, kind, kind.quick) for name, kind in kinds)


def take_small(plan: Plan, arguments: Mapping[str, Any]) -> list[Any] | None:
    """As :func:`take_values`, in three quarters of the time, where each value is of the kind that it was when the plan
    was made, and none is big. None: it isn't so."""
    if plan.small is None:
        return None
    kind_of = capture.kinds.get
    values: list[Any] = []
    try:
        for name, kind, quick in plan.small:
            value = arguments[name]
            if kind_of(type(value)) is not kind:
                return None
            values.append(value if quick is None else quick(value))
    except Exception:  # whose it is, take_values says
        return None
    return values


def take_chosen(
    pool: Pool, plan: Plan, arguments: dict[str, Any], run: Mapping[str, Any], stage: str
) -> tuple[Targets, list[Any] | None, Lease | None, dict[HookTask, Exception] | None]:
    """Copy what those hooks of ``plan`` named that want this event, once: for a plan that isn't ``direct``.

    Returns:
        Who wants it; then as :func:`take_values`, and by task what its ``when`` raised.
    """
    targets: Targets = plan.targets
    errors: dict[HookTask, Exception] | None = None
    if plan.filtered:
        targets, errors = _choose(plan, stage, {**run, **arguments})
        if not targets:
            return (), None, None, None
    return targets, *take_values(pool, _select(plan, targets, arguments, run), plan), errors


def _select(plan: Plan, targets: Targets, arguments: dict[str, Any], run: Mapping[str, Any]) -> list[Any]:
    """The live values that ``targets`` need, as their ``select`` functions give them."""
    wanted = plan.wanted(targets) if plan.filtered else None
    live: list[Any] = []
    for name, from_run, select, plain_only in plan.slots:
        value = run[name] if from_run else arguments[name]
        if wanted is not None and len(live) not in wanted:
            value = UNTAKEN
        elif select is not None:
            try:
                value = select(value)
            except Exception as error:  # not essential: the error is its hook's, not the loop's
                value = Uncaptured(_blamed(error, f"the function of select={{{name!r}: ...}}"))
        elif plain_only and not capture.kind(type(value)).plain:
            value = UNTAKEN
        live.append(value)
    return live


def take_values(pool: Pool, live: Iterable[Any], plan: CapturePlan) -> tuple[list[Any] | None, Lease | None]:
    """Copy ``live``, each value as its kind asks; a copy that fails leaves an ``Uncaptured`` in its place.

    Room in the byte budget is waited for once, for all of them, before the first big one is copied.

    Returns:
        The values, and the bytes that they take of the budget. None for the values: there is no room, and the lanes
        that could make some have stalled.
    """
    kinds = capture.kinds
    values: list[Any] = []
    found: dict[int, Any] | None = None
    for value in live:
        try:
            kind = kinds.get(type(value)) or capture.kind(type(value))
            if kind.take is not None:
                if kind.quick is not None:
                    value = kind.quick(value)
                else:
                    found = {} if found is None else found
                    found[len(values)] = value
        except Exception as error:
            value = _uncaptured(error)
        values.append(value)
    return (values, None) if found is None else _take_found(pool, values, found, plan)


def _take_found(
    pool: Pool, live: list[Any], found: dict[int, Any], plan: CapturePlan
) -> tuple[list[Any] | None, Lease | None]:
    """All tensors are found first, so that they needn't be counted apart, and then copied."""
    memo = Memo(pool.store, pool.used)
    memo.batch = []
    memo.room = room = Room(pool, found.values(), plan)
    offload: Offload | None = None
    try:
        _take_each(live, found, memo, plan)
        if room.refused or ((memo.batch or memo.states or memo.parts) and not room.reserve(memo, memo.pending())):
            return None, None
        try:
            memo.copy_batch()
        except Exception:  # one by one, to see which of them is to blame
            memo = Memo(pool.store, pool.used)
            _take_each(live, found, memo, plan)
        if memo.parts and pool.store is not None:
            offload = pool.store.launch(memo)
    except BaseException:  # Ctrl-C
        if room.lease is not None:
            pool.release(room.lease)
        raise
    if not memo.nbytes and offload is None:
        return live, room.lease
    lease = pool.account(room.lease, memo.nbytes)
    lease.buffers = memo.buffers
    if memo.transfer is not None and pool.store is not None:
        lease.transfer = memo.transfer
        pool.store.submit(memo.transfer, memo.expecting)
    lease.transfer = offload or lease.transfer
    lease.block = memo.block
    return live, lease


def _take_each(live: list[Any], found: dict[int, Any], memo: Memo, plan: CapturePlan) -> None:
    for place, value in found.items():
        try:
            live[place] = take(value, memo, plan.argument(place))
        except Exception as error:
            live[place] = _uncaptured(error)


def _uncaptured(error: Exception) -> Uncaptured:
    return Uncaptured(error.with_traceback(None))  # whose frames hold live values


class Room:
    """The bytes of the budget that an event takes.

    Attributes:
        lease: what was reserved.
        refused: there is no room, and the lanes that could make some have stalled.
    """

    __slots__ = ("_essential", "_live", "_pool", "_shared", "lease", "refused")

    def __init__(self, pool: Pool, live: Iterable[Any], plan: CapturePlan) -> None:
        self._pool = pool
        self._live = live
        self._essential = plan.essential
        self._shared = plan.shared
        self.lease: Lease | None = None
        self.refused = False

    def reserve(self, memo: Memo, nbytes: int | None = None) -> bool:
        """Wait for ``nbytes``, once; by default for what the event's values are counted to be. TRAINING THREAD.

        Returns:
            Whether there is room.
        """
        if memo.room is None or self.refused:
            return not self.refused
        if nbytes is None:
            try:
                nbytes = size(*self._live)
            except Exception:  # of a class of the user's: taking it will tell
                nbytes = 0
        if nbytes:
            self.lease = self._pool.reserve(nbytes, essential=self._essential)
            self.refused = self.lease is None
        if not self.refused:
            memo.room = None
            memo.used = self._pool.used
            store = self._pool.store
            if store is not None:
                store.reclaim(memo.used)
                if self._shared and nbytes:
                    memo.block = store.block(nbytes, memo.used)
        return not self.refused


def _choose(plan: Plan, stage: str, arguments: dict[str, Any]) -> tuple[Targets, dict[HookTask, Exception] | None]:
    """The targets of ``plan`` that want this event, and by task the errors of ``when``, which their hooks fail with."""
    chosen = []
    errors: dict[HookTask, Exception] = {}
    for lane, task in plan.targets:
        try:
            wants = not task.filtered or task.wants(stage, arguments)
        except Exception as error:
            errors[task] = _blamed(error, "when=")
            wants = True
        if wants:
            chosen.append((lane, task))
    return chosen, errors or None


def _blamed(error: Exception, what: str) -> CaptureError:
    """``error`` of a function that the user gave, as the hook's error: the same at each attempt, so not tried again."""
    blamed = CaptureError(f"{what} raised {type(error).__name__}: {error}")
    blamed.__cause__ = error
    return blamed
