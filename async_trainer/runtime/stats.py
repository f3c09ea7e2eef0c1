"""What happened to the events: immutable, and readable as text."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType

from async_trainer.errors import LaneError


@dataclass(frozen=True, slots=True)
class Failure:
    """One kind of failure of one callback: the first of its kind in full, the rest counted."""

    callback: str
    event: str
    seq: int
    attempt: int
    where: str
    error: BaseException  # without its traceback, which would keep the snapshot's tensors alive
    traceback: str
    count: int = 1

    def __str__(self) -> str:
        where = f" at {self.where}" if self.where else ""
        times = f" ({self.count} times)" if self.count > 1 else ""
        return f"{self.callback}.{self.event}{where}: {self.what}{times}"

    @property
    def what(self) -> str:
        """``"OSError: disk full"``."""
        try:
            return f"{type(self.error).__name__}: {self.error}"
        except Exception:  # its __str__ fails too
            return type(self.error).__name__


@dataclass(frozen=True, slots=True)
class Report:
    """What became of the events that reached a lane, when the handler was flushed or closed.

    Attributes:
        delivered: handled without an error.
        failed: handled with an error, after all retries.
        dropped: given up by a full or stalled lane, or by a callback that was turned off.
        lost: not handled when the handler ended, or emitted after that.
        errors: the kinds of failure, with counts.
        stalled: the lanes that had handled nothing for ``stall_timeout`` and were not waited for.
    """

    delivered: int = 0
    failed: int = 0
    dropped: int = 0
    lost: int = 0
    errors: tuple[Failure, ...] = ()
    stalled: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether every event was delivered."""
        return not (self.failed or self.dropped or self.lost or self.stalled)

    def raise_for_errors(self) -> None:
        """Raise where a hook failed.

        Raises:
            LaneError: with all kinds of failure in its text, and the first as its cause.
        """
        if self.errors:
            error = LaneError("\n".join(str(failure) for failure in self.errors))
            error.report = self
            raise error from self.errors[0].error

    def __str__(self) -> str:
        text = f"{self.delivered} delivered, {self.failed} failed, {self.dropped} dropped, {self.lost} lost"
        if self.stalled:
            text += f"; stalled: {', '.join(self.stalled)}"
        return "\n  ".join([text, *map(str, self.errors)])


@dataclass(frozen=True, slots=True)
class LaneStats:
    """One lane, now. ``queued`` waits; ``running`` is the hook under way and ``seconds`` how long it has been.

    ``hook_seconds`` is what its hooks have taken in all; of a process lane its process adds them up, and tells them
    with what it has handled. ``cpu_seconds`` is how much of it on a core; of a task lane it is 0, as nothing tells what
    on the loop's thread was whose. In synchronous mode both are 0.
    """

    delivered: int
    failed: int
    dropped: int
    lost: int
    queued: int
    running: str | None
    seconds: float
    age: float  # s: since the oldest event that is not handled was emitted
    over_limit: int
    stalled: bool
    placement: str
    size: int
    restarts: int = 0  # of its process
    hook_seconds: float = 0.0
    cpu_seconds: float = 0.0

    @property
    def pushed(self) -> int:
        """All events that reached the lane."""
        handled = self.delivered + self.failed + self.dropped + self.lost
        return handled + self.queued + (self.running is not None)


@dataclass(frozen=True, slots=True)
class Waits:
    """Seconds that threads of the training have waited for the lanes, by cause."""

    queue: float = 0.0
    budget: float = 0.0
    fence: float = 0.0
    flush: float = 0.0


@dataclass(frozen=True, slots=True)
class Stats:
    """A handler, now: its lanes, and what it cost the loop. Prints as a table."""

    lanes: Mapping[str, LaneStats]
    captures: int = 0
    capture_seconds: float = 0.0
    waits: Waits = Waits()
    snapshot_bytes: int = 0  # of the byte budget, now
    max_snapshot_bytes: int = 0
    kept_bytes: int = 0  # left the budget, but are still held by a hook
    errors: tuple[Failure, ...] = field(default=())

    def __post_init__(self) -> None:
        object.__setattr__(self, "lanes", MappingProxyType(dict(self.lanes)))

    def _rows(self) -> list[Sequence[str]]:
        head = ("lane", "where", "delivered", "failed", "dropped", "lost", "queued", "cpu/hooks", "now")
        rows: list[Sequence[str]] = [head]
        for name, lane in self.lanes.items():
            now = f"{lane.running} for {lane.seconds:.1f} s" if lane.running else "idle"
            now = f"stalled: {now}" if lane.stalled else now
            now += f", restarted {lane.restarts} x" if lane.restarts else ""
            counts = (lane.delivered, lane.failed, lane.dropped, lane.lost, lane.queued)
            used = "–" if lane.placement == "task" else f"{lane.cpu_seconds:.1f}"
            cpu = f"{used}/{lane.hook_seconds:.1f} s" if lane.hook_seconds else ""
            rows.append((name, lane.placement, *map(str, counts), cpu, now))
        return rows

    def _summary(self) -> str:
        waits = self.waits
        return (
            f"the loop paid {self.capture_seconds:.3f} s for {self.captures} captures, and waited "
            f"{waits.queue:.3f} s for full queues,\n{waits.budget:.3f} s for the byte budget, "
            f"{waits.fence:.3f} s at fences, {waits.flush:.3f} s in flush and close;\n"
            f"snapshots hold {megabytes(self.snapshot_bytes)} of {megabytes(self.max_snapshot_bytes)}, "
            f"hooks keep {megabytes(self.kept_bytes)}"
        )

    def __str__(self) -> str:
        return text_table(self._rows(), right=range(2, 8)) + "\n" + self._summary()

    def _repr_html_(self) -> str:
        return html_table(self._rows()) + f"<p>{html.escape(self._summary())}</p>"


def megabytes(n: int) -> str:
    """``1234567`` -> ``"1.2 MB"``."""
    return f"{n / 1e6:.1f} MB"


def text_table(rows: Sequence[Sequence[str]], right: Sequence[int] | range = ()) -> str:
    """``rows``, the first of them a heading, in columns; those of ``right`` aligned right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]

    def line(row: Sequence[str]) -> str:
        cells = (
            cell.rjust(width) if place in right else cell.ljust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        return "  ".join(cells).rstrip()

    head, *body = map(line, rows)
    return "\n".join([head, "  ".join("-" * width for width in widths), *body])


def html_table(rows: Sequence[Sequence[str]]) -> str:
    """``rows``, the first of them a heading, as an HTML table."""

    def line(row: Sequence[str], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in row) + "</tr>"

    return "<table>" + line(rows[0], "th") + "".join(line(row, "td") for row in rows[1:]) + "</table>"
