"""What a handler's books say of one run: what has come since they stood as they did at its start. Pure."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from async_trainer.runtime.stats import Failure, Stats

COUNTS = ("delivered", "failed", "dropped", "lost", "over_limit", "restarts", "hook_seconds", "cpu_seconds")
ERRORS = 20  # kinds of failure that are told
LETTERS = 20_000  # of a traceback

WAITS = {"queue": "full queues", "budget": "byte budget", "fence": "fences", "flush": "flush and end"}


def title(name: str) -> str:
    """What to call a part of :func:`paid`: ``"waiting: queue"`` -> ``"full queues"``."""
    cause = name.removeprefix("waiting: ")
    return WAITS.get(cause, cause)


def paid(stats: Stats, before: Stats) -> dict[str, float]:
    """Seconds of the loop, by what for."""
    waited = asdict(before.waits)
    return {
        "capturing": max(0.0, stats.capture_seconds - before.capture_seconds),
        **{f"waiting: {cause}": seconds - waited[cause] for cause, seconds in asdict(stats.waits).items()},
    }


def lanes(stats: Stats, before: Stats) -> dict[str, dict[str, Any]]:
    """The lanes, by name."""
    found = {name: asdict(lane) for name, lane in stats.lanes.items()}
    for name, lane in before.lanes.items():
        for count in COUNTS if name in found else ():
            found[name][count] -= getattr(lane, count)
    return found


def errors(stats: Stats, before: Stats) -> list[dict[str, Any]]:
    """The kinds of failure."""
    counted = {_kind(one): one.count for one in before.errors}
    return [
        {
            "callback": one.callback, "event": one.event, "where": one.where, "what": one.what,
            "count": one.count - counted.get(_kind(one), 0), "traceback": one.traceback[-LETTERS:],
        }
        for one in stats.errors
        if one.count > counted.get(_kind(one), 0)
    ][:ERRORS]  # fmt: skip


def _kind(one: Failure) -> tuple[str, str, type[BaseException]]:
    return one.callback, one.event, type(one.error)
