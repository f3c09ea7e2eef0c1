"""Attaching callbacks: names, lanes, hooks; and every mistake that can be seen before anything runs."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from async_trainer.callback import Background, Inline, Options, label, snake_case
from async_trainer.errors import ConfigurationError
from async_trainer.events import ARGUMENTS
from async_trainer.hooks import Hook, find_hooks, warn_of_unread
from async_trainer.runtime.job import Owner
from async_trainer.runtime.lane import Lane
from async_trainer.suggest import suggestion


@dataclass(frozen=True, slots=True)
class Attached:
    """A callback of a handler: ``lane``, ``owner`` and ``options`` are None where it runs inline."""

    name: str
    record: Background | Inline
    hooks: Mapping[str, Hook]
    options: Options | None = None
    owner: Owner | None = None
    lane: Lane | None = None
    synchronous: bool = False  # the handler handles its lanes on the spot

    @property
    def callback(self) -> Any:
        return self.record.callback

    @property
    def why(self) -> str:
        """Where it runs and why, for the line that is logged at the start."""
        if self.lane is None:
            return "inline"
        shared = f", lane {self.lane.name}" if self.lane.name != self.name else ""
        if self.synchronous:
            return f"synchronous{shared}"
        reason = ", for its async hooks" if any(hook.is_async for hook in self.hooks.values()) else ""
        return f"{self.lane.placement}{reason}{shared}"


def attach_all(
    records: Iterable[Background | Inline],
    attached: Iterable[Attached],
    lanes: Mapping[str, Lane],
    events: Collection[str],
    *,
    synchronous: bool,
) -> list[Attached]:
    """``records`` attached beside what is ``attached`` already; all of them, or an error and none.

    Raises:
        ConfigurationError: names the callback, what is wrong, and the remedy.
    """
    done = list(attached)
    new: list[Attached] = []
    lanes = dict(lanes)
    for record in records:
        one = replace(_attach(record, done, lanes, events), synchronous=synchronous)
        done.append(one)
        new.append(one)
        if one.lane is not None:
            lanes[one.lane.name] = one.lane
    return new


def _attach(
    record: Background | Inline, attached: Sequence[Attached], lanes: Mapping[str, Lane], events: Collection[str]
) -> Attached:
    callback = record.callback
    for other in attached:
        if other.callback is callback:
            raise ConfigurationError(
                f"{label(callback)} is attached twice (as {other.name!r}): it would handle each event twice; "
                "pass it once, or make a second instance"
            )
    hooks = find_hooks(callback, events)
    names = {other.name for other in attached} | set(lanes)
    if isinstance(record, Inline):
        asynchronous = [name for name, hook in hooks.items() if hook.is_async]
        if asynchronous:
            raise ConfigurationError(
                f"{label(callback)}.{asynchronous[0]} is async, and nothing awaits it inline: use background(...)"
            )
        return Attached(free_name(snake_case(label(callback)), names), record, hooks)
    if getattr(type(callback), "steers", False):
        raise ConfigurationError(
            f"{label(callback)} steers the training, and can't do that in the background: pass it as "
            f"{label(callback)}(...), without background(...)"
        )
    options = record.options
    _check_options(callback, hooks, options, events)
    warn_of_unread(callback, hooks, options.select or {})
    if options.placement == "process":
        from async_trainer.process.ship import ship_callback

        ship_callback(callback)
    if options.name in {other.name for other in attached}:
        raise ConfigurationError(
            f"two callbacks are called {options.name!r}: the name is the key of their states; give each its own name="
        )
    if options.lane is None and options.name in lanes:
        raise ConfigurationError(
            f"{label(callback)}: there is a lane {options.name!r} already: give it another name=, or say "
            f"lane={options.name!r} to share its FIFO"
        )
    name = options.name or free_name(snake_case(label(callback)), names)
    owner = Owner(name, options.on_error, options.retries, options.backoff, options.timeout)
    return Attached(name, record, hooks, options, owner, _lane(callback, name, hooks, options, lanes))


def _check_options(callback: Any, hooks: Mapping[str, Hook], options: Options, events: Collection[str]) -> None:
    for option, asked in (("every", options.every), ("when", options.when)):
        for event in asked if isinstance(asked, Mapping) else ():
            if event not in events:
                raise ConfigurationError(
                    f"{label(callback)}: {option}={{{event!r}: ...}}: there is no such event{suggestion(event, events)}"
                )
    named = {name for hook in hooks.values() for name in hook.names}
    catches_all = any(hook.catches_all for hook in hooks.values())
    for argument, function in (options.select or {}).items():
        where = f"{label(callback)}: select={{{argument!r}: ...}}"
        if argument == "event":
            raise ConfigurationError(f"{where}: it is the event's name and number, which is not captured")
        if argument in named or catches_all:  # what **kwargs will bring isn't known yet
            continue
        if function is not None or argument not in ARGUMENTS:  # not to capture the model is no mistake
            raise ConfigurationError(f"{where}: no hook names it{suggestion(argument, named)}")


def _lane(callback: Any, name: str, hooks: Mapping[str, Hook], options: Options, lanes: Mapping[str, Lane]) -> Lane:
    asynchronous = [hook.event for hook in hooks.values() if hook.is_async]
    if asynchronous and options.placement == "thread":
        raise ConfigurationError(
            f"{label(callback)}.{asynchronous[0]} is async: it needs placement='task' (the default for such callbacks)"
            ", not 'thread'"
        )
    placement = options.placement or ("task" if asynchronous else "thread")
    return find_lane(label(callback), name, placement, options, lanes)


def find_lane(what: str, name: str, placement: str, options: Options, lanes: Mapping[str, Lane]) -> Lane:
    """The lane for ``what`` (a callback or a proxy, for messages): one of ``lanes``, or a new one.

    Raises:
        ConfigurationError: the others in that lane have other options.
    """
    lane = lanes.get(options.lane or name)
    if lane is None:
        return Lane(options.lane or name, size=options.queue_size, overflow=options.overflow, placement=placement)
    wanted = {"placement": placement, "queue_size": options.queue_size, "overflow": options.overflow}
    has = {"placement": lane.placement, "queue_size": lane.size, "overflow": lane.overflow}
    for option, value in wanted.items():
        if has[option] != value:
            raise ConfigurationError(
                f"{what}: {option}={value!r} conflicts with {option}={has[option]!r} of the others in lane "
                f"{lane.name!r}; one lane has one {option}: give them all the same, or another lane="
            )
    return lane


def free_name(name: str, names: Collection[str]) -> str:
    """``name``, with a number where it is taken."""
    candidates = (name if number == 0 else f"{name}_{number}" for number in range(len(names) + 1))
    return next(candidate for candidate in candidates if candidate not in names)
