"""Measuring: each way in each round, one after the other, so that a busy moment of the machine hits all of them.

The first round is a warm-up. Before each burst the garbage collector runs; within it, it is on, as in a training.
"""

from __future__ import annotations

import gc
import time
import timeit
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

clock = time.perf_counter  # the same in all processes, on Linux

Call = Callable[[], Any]
Ways = Mapping[str, Call | tuple[Call, Call]]


@dataclass(frozen=True, slots=True)
class Effort:
    """How much is measured: 1 in full, less with ``--quick``."""

    share: float = 1.0

    @property
    def full(self) -> bool:
        """Whether all is measured."""
        return self.share >= 1

    def times(self, full: int, least: int = 3) -> int:
        """How often something is done that takes ``full`` times in full."""
        return max(least, round(full * self.share))


QUICK = Effort(0.2)


@dataclass(frozen=True, slots=True)
class Rounds:
    """What one way took in each round: the median and the 99th percentile of its calls, in s."""

    p50s: Sequence[float]
    p99s: Sequence[float]

    @property
    def p50(self) -> float:
        return median(self.p50s)

    @property
    def p99(self) -> float:
        return median(self.p99s)

    def ratio(self, other: Rounds) -> float:
        """The median over the rounds of how much longer this took than ``other``."""
        return median(ours / theirs for ours, theirs in zip(self.p50s, other.p50s, strict=True))


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest of ``values`` that ``share`` percent of them don't exceed (the nearest-rank method)."""
    return sorted(values)[max(0, -int(-len(values) * share // 100) - 1)]


def by_turns(names: Iterable[str], rounds: int, warm_up: int = 1) -> Iterator[tuple[str, bool]]:
    """Each way in each round: its name, and whether it counts, or is a warm-up."""
    for number in range(warm_up + rounds):
        for name in names:
            yield name, number >= warm_up


def bursts(ways: Ways, rounds: int, calls: int) -> dict[str, Rounds]:
    """Each call by itself, in bursts of ``calls``; a pair is a call and what drains what it has queued, afterwards."""
    pairs = {name: way if isinstance(way, tuple) else (way, lambda: None) for name, way in ways.items()}
    times: dict[str, list[list[float]]] = {name: [] for name in ways}
    for name, counts in by_turns(pairs, rounds):
        call, drain = pairs[name]
        gc.collect()
        burst = _burst(call, calls)
        drain()
        if counts:
            times[name].append(burst)
    return {name: _rounds(measured) for name, measured in times.items()}


def _burst(call: Call, calls: int) -> list[float]:
    times = [0.0] * calls
    for place in range(calls):
        began = clock()
        call()
        times[place] = clock() - began
    return times


def loops(statements: Mapping[str, str], names: dict[str, Any], rounds: int, calls: int) -> dict[str, Rounds]:
    """The mean of a statement in a loop of ``calls``, as timeit compiles it: for what takes less than reading the clock
    does. ``names`` are those that the statements use. Of the rounds the fastest counts, as in timeit: a loop is shorter
    than a turn on a core, so some are not interrupted."""
    on = "import gc; gc.enable()"  # timeit switches it off
    timers = {name: timeit.Timer(statement, setup=on, globals=names) for name, statement in statements.items()}
    times: dict[str, list[list[float]]] = {name: [] for name in statements}
    for name, counts in by_turns(timers, rounds):
        gc.collect()
        spent = timers[name].timeit(calls)
        if counts:
            times[name].append([spent / calls])
    return {
        name: Rounds([min(one[0] for one in measured)], [max(one[0] for one in measured)])
        for name, measured in times.items()
    }


def _rounds(measured: list[list[float]]) -> Rounds:
    return Rounds([median(times) for times in measured], [percentile(times, 99) for times in measured])


def turns(ways: Mapping[str, Call], rounds: int) -> dict[str, Rounds]:
    """One figure per way and round: each way returns the seconds that count. For what takes milliseconds."""
    times: dict[str, list[list[float]]] = {name: [] for name in ways}
    for name, counts in by_turns(ways, rounds):
        gc.collect()
        seconds = ways[name]()
        if counts:
            times[name].append([seconds])
    return {name: _rounds(measured) for name, measured in times.items()}
