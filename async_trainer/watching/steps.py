"""Steps: how long the steps of a loop took, from the times at which they ended."""

from __future__ import annotations

import math
from statistics import median

PER_DECADE = 20
"""Classes of durations in each power of ten: neighbours differ by 12 %."""

RECENT = 100_000
"""Durations that are kept between two looks, at most."""


class Steps:
    """Durations of steps, sorted into classes. Pure: time arrives as an argument."""

    def __init__(self) -> None:
        self.count = 0
        self.seconds = 0.0
        self.classes: dict[int, int] = {}
        self._last: float | None = None
        self._recent: list[float] = []

    def ended(self, now: float) -> None:
        """A step has ended: it began where the one before had ended."""
        last, self._last = self._last, now
        self.count += 1
        if last is None:
            return
        took = max(now - last, 1e-9)
        self.seconds += took
        place = math.floor(math.log10(took) * PER_DECADE)
        self.classes[place] = self.classes.get(place, 0) + 1
        if len(self._recent) < RECENT:
            self._recent.append(took)

    def interrupted(self) -> None:
        """What comes next (a validation) is no part of a step."""
        self._last = None

    def take_recent(self) -> tuple[int, float, float] | None:
        """Since the last call: how many, their median and the longest, in s."""
        recent, self._recent = self._recent, []
        return (len(recent), median(recent), max(recent)) if recent else None

    def quantile(self, share: float) -> float | None:
        """The duration that ``share`` of the steps don't exceed, in s, to 6 %."""
        return quantile(self.classes, share)


def quantile(classes: dict[int, int], share: float) -> float | None:
    """As :meth:`Steps.quantile`, of classes."""
    left = share * sum(classes.values())
    for place in sorted(classes):
        left -= classes[place]
        if left <= 0:
            return float(10.0 ** ((place + 0.5) / PER_DECADE))
    return None
