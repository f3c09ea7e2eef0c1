"""One line of a benchmark's table: a figure, what it stands beside, and what it may be."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Row:
    """A figure, measured.

    Attributes:
        what: what was measured.
        value: how much, in ``unit``; a median unless ``what`` says otherwise.
        unit: ``"µs"``, ``"ms"``, ``"events/s"``.
        p99: the 99th percentile, in ``unit``, where there are enough figures for one.
        beside: what was measured in the same run to compare it with.
        other: how much that was, in ``unit``.
        ratio: of the two; the median of the ratios of the rounds, so not quite the ratio of the medians.
        budget: the most that ``of`` may be; the least with ``at_least``.
        of: ``"value"``, ``"p99"`` or ``"ratio"``: what the budget is for.
        gated: whether ``--check`` fails where the budget is missed. Ratios only: absolute times are the machine's.
        note: what one has to know to read it.
    """

    what: str
    value: float
    unit: str
    p99: float | None = None
    beside: str = ""
    other: float | None = None
    ratio: float | None = None
    budget: float | None = None
    of: str = "value"
    at_least: bool = False
    gated: bool = False
    note: str = ""

    def __post_init__(self) -> None:
        if self.gated and (self.of != "ratio" or self.budget is None):
            raise ValueError(f"{self.what}: only the budget of a ratio can be gated")

    @property
    def met(self) -> bool | None:
        """Whether the budget is met; None where there is none."""
        if self.budget is None:
            return None
        figure: float | None = getattr(self, self.of)
        if figure is None:
            return False
        return figure >= self.budget if self.at_least else figure <= self.budget

    @property
    def failed(self) -> bool:
        """Whether ``--check`` fails for it."""
        return self.gated and not self.met

    def to_json(self) -> dict[str, Any]:
        """A dict of plain values, with the verdict."""
        return {**asdict(self), "met": self.met}

    @classmethod
    def from_json(cls, plain: dict[str, Any]) -> Row:
        """The row that :meth:`to_json` described."""
        return cls(**{key: value for key, value in plain.items() if key != "met"})
