"""One callback, run in every way there is: the files and the states must be the same."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch

from async_trainer.callback import Background, Inline, Placement, background, inline
from async_trainer.errors import ConfigurationError
from async_trainer.events import Event
from async_trainer.handler import CallbacksHandler
from async_trainer.hooks import ALL_EVENTS, find_hooks
from async_trainer.testing.hold import hold
from async_trainer.testing.overwrite import overwritten
from async_trainer.testing.play import Rehearsal

EPOCHS = 3

Files = Mapping[str, Any]


class Outcome(NamedTuple):
    """What a run of a callback leaves."""

    files: Files
    states: Mapping[str, Any]


def read_files(directory: Path) -> dict[str, bytes]:
    """``{path relative to directory: content}``."""
    return {str(p.relative_to(directory)): p.read_bytes() for p in sorted(directory.rglob("*")) if p.is_file()}


def check_callback(
    factory: Callable[..., Any], *, read: Callable[[Path], Files] = read_files, exactly_once: bool = True
) -> None:
    """Check that a callback does the same however it runs.

    It is run inline, in the background with ``synchronous=True``, and in each placement that it can have; each time
    through a training of three epochs, and through the same training interrupted in the second, then resumed from the
    end of the first with another instance in the same directory (not so in a process: to start one takes a second or
    two). Where it can't be sent to a process, a warning says why. After each event every live object that it brought
    (weights, batches, state, frames) is overwritten before the background hook runs, and put back afterwards.

    Args:
        factory: makes the callback, afresh; called with an empty directory (a ``Path``) for its files, or with nothing
            if it takes no argument. The callback is not wrapped.
        read: what to compare of a directory afterwards; default: each file's bytes. For files with a time stamp in
            them, read back what counts.
        exactly_once: what the first instance wrote after its state was taken must be gone after the resume. False, for
            sinks that take nothing back: it is interrupted right when its state is taken.

    Raises:
        AssertionError: a file or a state differs (says where, and between which ways to run); or, where the callback
            has a state: the resumed training left other files than the uninterrupted one.
        LaneError: a background hook failed.
    """
    outcomes: dict[str, Outcome] = {}
    resumed: dict[str, Outcome] = {}
    *here, (last, wrap_last, _) = _ways(factory)
    if last != "process":
        here.append((last, wrap_last, False))
    for way, wrap, synchronous in here:
        outcomes[way] = _run(factory, wrap, synchronous, read)
        resumed[way] = _run(factory, wrap, synchronous, read, interrupted_after=2 if exactly_once else 1)
    first, *others = outcomes
    for way in others:
        _compare(outcomes[first], outcomes[way], first, way)
        _compare(resumed[first], resumed[way], f"{first}, resumed", f"{way}, resumed")
    if any(outcomes[first].states.values()):
        _compare(outcomes[first], resumed[first], first, f"{first}, resumed")
    if last == "process":  # when all else is well
        _compare(outcomes[first], _run(factory, wrap_last, False, read), first, last)


def _ways(factory: Callable[..., Any]) -> Iterator[tuple[str, Callable[[Any], Background | Inline], bool]]:
    with TemporaryDirectory() as directory:
        callback = _make(factory, Path(directory))
        hooks = find_hooks(callback, ALL_EVENTS)
        stays = _what_keeps_it(callback)
    is_async = any(hook.is_async for hook in hooks.values())
    if not is_async:
        yield "inline", inline, False
    yield "synchronous", background, True
    placements: tuple[Placement, ...] = ("task",) if is_async else ("thread", "task")
    for placement in placements:
        yield placement, partial(_placed, placement), False
    if stays is None:
        yield "process", partial(_placed, "process"), False
    else:
        warnings.warn(f"check_callback: it is not run in a process, and not checked there: {stays}", stacklevel=3)


def _what_keeps_it(callback: Any) -> str | None:
    """Why it can't be sent to a process; None: it can."""
    from async_trainer.process.ship import ship_callback

    try:
        ship_callback(callback)
    except ConfigurationError as error:
        return str(error)
    return None


def _placed(placement: Placement, callback: Any) -> Background:
    record: Background = background(callback, placement=placement)
    return record


def _make(factory: Callable[..., Any], directory: Path) -> Any:
    return factory(directory) if inspect.signature(factory).parameters else factory()


def _run(
    factory: Callable[..., Any],
    wrap: Callable[[Any], Background | Inline],
    synchronous: bool,
    read: Callable[[Path], Files],
    *,
    interrupted_after: int | None = None,
) -> Outcome:
    """One training; or one that is interrupted after some epochs, and goes on from its state after the first."""
    with TemporaryDirectory() as temporary, TemporaryDirectory() as run:
        directory = Path(temporary)
        rehearsal = Rehearsal(Path(run), EPOCHS)

        def train(states: dict[str, Any], until: int) -> dict[str, Any]:
            """Train with a callback that starts from ``states``; returns its states at the end of each epoch."""
            nonlocal rehearsal
            handler = CallbacksHandler([wrap(_make(factory, directory))], synchronous=synchronous)
            call = _behind_its_back(handler, synchronous)
            cuts: list[tuple[dict[str, Any], Rehearsal]] = []

            def fire(event: Event, **arguments: Any) -> None:
                call(event, **arguments)
                if event == Event.EPOCH_END:
                    cuts.append((handler.state_dict(), rehearsal.fork()))

            with handler:
                if states:
                    handler.load_state_dict(states)
                rehearsal.train(handler, until=until, fire=fire)
            handler.close().raise_for_errors()
            if until < EPOCHS:
                states, rehearsal = cuts[0]
                return states
            return cuts[-1][0]

        states: dict[str, Any] = {}
        if interrupted_after is not None:
            states = train(states, interrupted_after)
        states = train(states, EPOCHS)
        return Outcome(read(directory), states)


def _behind_its_back(handler: CallbacksHandler, synchronous: bool) -> Callable[..., None]:
    """``call_event``, after which the live objects hold nonsense until the background hooks have run."""
    if synchronous:
        return handler.call_event

    def fire(event: Event, **arguments: Any) -> None:
        with overwritten(arguments) as overwrite:
            with hold(handler):
                handler.call_event(event, **arguments)
                overwrite()
            handler.flush()

    return fire


def _compare(one: Outcome, other: Outcome, first: str, second: str) -> None:
    for kind, left, right in (("file", one.files, other.files), ("state", one.states, other.states)):
        for name in sorted({*left, *right}):
            for way, present in ((first, left), (second, right)):
                if name not in present:
                    raise AssertionError(f"{kind} {name!r} is missing when run {way}")
            if not equal(left[name], right[name]):
                here, there = _excerpt(left[name], right[name]), _excerpt(right[name], left[name])
                raise AssertionError(
                    f"{kind} {name!r} differs between {first} and {second}:\n  {first}: {here}\n  {second}: {there}"
                )


def _excerpt(value: Any, other: Any) -> str:
    """``value`` from a little before it differs from ``other``."""
    if not (isinstance(value, (bytes, str)) and isinstance(other, (bytes, str))):
        return repr(value)[:500]
    place = next((n for n, (a, b) in enumerate(zip(value, other, strict=False)) if a != b), min(len(value), len(other)))
    start = max(0, place - 40)
    return f"{'...' if start else ''}{value[start : place + 80]!r} (at {place} of {len(value)})"


def equal(one: Any, other: Any) -> bool:
    """Whether two values are the same through and through: tensors, arrays and frames by value and dtype."""
    if type(one) is not type(other):
        return False
    if isinstance(one, torch.Tensor):
        return one.dtype == other.dtype and one.shape == other.shape and bool(torch.equal(one, other))
    if isinstance(one, np.ndarray):
        return one.dtype == other.dtype and np.array_equal(one, other, equal_nan=one.dtype.kind == "f")
    if isinstance(one, (pd.DataFrame, pd.Series)):
        return bool(one.equals(other))
    if isinstance(one, Mapping):
        return one.keys() == other.keys() and all(equal(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(equal, one, other))
    return bool(one == other)
