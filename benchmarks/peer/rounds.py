"""The same cases in several rounds, each compared with the first case of its own round: a shared machine drifts."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from statistics import mean, median

Moment = tuple[float, float] | None
"""When a step started: the time and the thread's CPU time, s; None: no step ends here."""

NAMES = ("median", "mean", "CPU")


def summary(moments: list[Moment]) -> tuple[float, float, float]:
    """The median and the mean step, and its mean CPU time, ms."""
    steps = [(b[0] - a[0], b[1] - a[1]) for a, b in pairwise(moments) if a is not None and b is not None]
    times = [one[0] for one in steps]
    return median(times) * 1e3, mean(times) * 1e3, mean(one[1] for one in steps) * 1e3


def compare(titles: list[str], rounds: int, run: Callable[[int, int], tuple[float, float, float]]) -> None:
    """Run all cases, ``rounds`` times, and print the median of each figure and of its ratio to the first case's.

    Args:
        titles: of the cases.
        rounds: how often.
        run: given the number of the round and of the case: its figures.
    """
    found = [[run(turn, case) for case in range(len(titles))] for turn in range(rounds)]
    for case, title in enumerate(titles):
        cells = []
        for place, name in enumerate(NAMES):
            value = median(one[case][place] for one in found)
            ratio = median(one[case][place] / one[0][place] for one in found)
            cells.append(f"{name} {value:6.2f} ms ({ratio:.2f} x)")
        print(f"{title:<28}" + "  ".join(cells))
