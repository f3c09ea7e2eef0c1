"""What the demo says at its end."""

from __future__ import annotations

from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table

from async_trainer.demo.compare import Comparison
from async_trainer.demo.run import Run


def print_report(console: Console, inline: Run, background: Run, comparison: Comparison, *, plot: Path) -> None:
    """Print the tables, where the files are, and whether the runs did the same; the last line says it all."""
    console.print(cost_table(inline, background))
    say(
        console,
        "(Figures run in a process; the other callbacks' Python code shares the interpreter lock with the training.)\n",
    )
    console.print(lane_table(background))
    for failure in background.failures:
        say(console, f"failed: {failure}")

    say(console, f"step times  {plot}")
    for run in (inline, background):
        say(console, f"{run.name:<10}  {run.folder}: metrics.jsonl, figures, store, tensorboard")
    say(console, f"scalars     tensorboard --logdir {plot.parent}\n")

    if comparison.files:
        say(console, f"DIFFERENT files: {', '.join(comparison.files)}")
    else:
        say(console, f"both runs wrote the same log and the same {comparison.compared - 1} checkpoints, bit by bit")
    if comparison.random:
        say(console, "DIFFERENT random streams: a callback drew from torch's global generator")
    if comparison.weights:
        say(console, f"DIFFERENT weights: {', '.join(comparison.weights)}")
    say(console, last_line(inline, background, comparison))


def last_line(inline: Run, background: Run, comparison: Comparison) -> str:
    """``inline 58 s, background 31 s, identical weights, 0 lost``; failed and dropped events only where there are."""
    words = [
        f"inline {_seconds(inline.wall)}",
        f"background {_seconds(background.wall)}",
        "DIFFERENT weights" if comparison.weights else "identical weights",
        f"{comparison.lost} lost",
    ]
    words += [f"{n} {what}" for n, what in ((comparison.failed, "failed"), (comparison.dropped, "dropped")) if n]
    return ", ".join(words)


def cost_table(inline: Run, background: Run) -> Table:
    """Wall time, step times, and what the loop paid for what."""
    runs = (inline, background)
    table = Table("", *(run.name for run in runs), box=box.SIMPLE_HEAD)
    for column in table.columns[1:]:
        column.justify = "right"
    table.add_row("wall time, until all is written", *(f"{run.wall:.1f} s" for run in runs))
    for share in (50, 99):
        table.add_row(f"step time, p{share}", *(f"{1000 * percentile(run.steps, share):,.1f} ms" for run in runs))
    table.add_row("step time, longest", *(f"{1000 * max(run.steps):,.1f} ms" for run in runs))
    table.add_row("accuracy on held-out digits", *(f"{run.accuracy:.1%}" for run in runs), end_section=True)

    table.add_row("the loop paid for callbacks", *(f"{sum(run.paid.values()):.2f} s" for run in runs))
    for name in [*inline.paid, *(name for name in background.paid if name not in inline.paid)]:
        table.add_row(f"  {name}", *(f"{run.paid[name]:.2f} s" if name in run.paid else "" for run in runs))
    table.add_row("the rest: training itself", *(f"{run.wall - sum(run.paid.values()):.2f} s" for run in runs))
    return table


def lane_table(background: Run) -> Table:
    """How the events of each lane of the background run ended."""
    counts = ("delivered", "failed", "dropped", "lost")
    table = Table("lane", "where", *counts, box=box.SIMPLE_HEAD)
    for column in table.columns[2:]:
        column.justify = "right"
    for lane in background.lanes:
        table.add_row(lane.name, lane.where, *(f"{getattr(lane, count):,}" for count in counts))
    return table


def percentile(values: tuple[float, ...], share: int) -> float:
    """The smallest of ``values`` that ``share`` percent of them don't exceed (the nearest-rank method)."""
    return sorted(values)[max(0, -(-len(values) * share // 100) - 1)]


def say(console: Console, text: str) -> None:
    """Print ``text`` as it is: no markup, no colours, no line breaks of ours."""
    console.print(text, highlight=False, soft_wrap=True, markup=False)


def _seconds(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"
