"""What ``async-trainer bench`` says: a table of rows, and the verdict."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from async_trainer.bench.row import Row
from async_trainer.bench.run import Result
from async_trainer.runtime.stats import text_table

HEAD = ("", "measured", "p99", "beside", "ratio", "budget", "")


def table(result: Result) -> str:
    """The table of one scenario."""
    rows: list[Sequence[str]] = [(result.scenario, *HEAD[1:])]
    rows += [_cells(row) for row in result.rows]
    return text_table(rows, right=(1, 2, 4, 5))


def _cells(row: Row) -> Sequence[str]:
    beside = f"{row.beside}: {figure(row.other)} {row.unit}" if row.other is not None else ""
    verdict = {None: "", True: "met", False: "MISSED" if row.gated else "missed"}[row.met]
    gated = ", gated" if row.gated else ""
    note = f" ({row.note})" if row.note else ""
    return (
        row.what,
        f"{figure(row.value)} {row.unit}",
        figure(row.p99) if row.p99 is not None else "",
        beside,
        f"{figure(row.ratio)} x" if row.ratio is not None else "",
        _budget(row),
        f"{verdict}{gated}{note}".strip(),
    )


def _budget(row: Row) -> str:
    if row.budget is None:
        return ""
    sign = "≥" if row.at_least else "≤"
    name = "p99 " if row.of == "p99" else ""
    return f"{name}{sign} {row.budget:,g} {'x' if row.of == 'ratio' else row.unit}"


def figure(number: float | None) -> str:
    """Three digits that count: ``0.0123``, ``1.23``, ``123``, ``123,456``."""
    if number is None:
        return ""
    if number >= 100:
        return f"{number:,.0f}"
    return f"{number:.3g}"


def summary(results: Iterable[Result]) -> str:
    """What was met and missed, in a few lines; what is missed by name."""
    rows = [(result.scenario, row) for result in results for row in result.rows if row.met is not None]
    missed = [(name, row) for name, row in rows if not row.met]
    lines = [f"{len(rows) - len(missed)} of {len(rows)} budgets met"]
    lines += [f"missed: {name}: {row.what}{' (gated)' if row.gated else ''}" for name, row in missed]
    return "\n".join(lines)


def failures(results: Iterable[Result]) -> list[Row]:
    """The rows for which ``--check`` fails."""
    return [row for result in results for row in result.rows if row.failed]
