"""The picture of ``async-trainer profile``: what a step takes, by where the callback runs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from async_trainer.bench.profiled import PLAIN, Profile

_COLOURS = {"step": "#9aa5b1", "events": "#d1602b", "rest": "#1f6fb2"}


def plot(path: Path, profiles: Sequence[Profile]) -> None:
    """Draw a panel for each callback into a PNG at ``path``: of a step, the plain step, the time in its events, and
    what the rest of the step takes longer than a plain one."""
    figure = Figure(figsize=(1.5 + 3.6 * len(profiles), 4.6), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle("What a step of the loop takes, by where the callback runs", fontsize=12)
    for axes, one in zip(figure.subplots(1, len(profiles), squeeze=False)[0], profiles, strict=True):
        runs = {placement: run for placement, run in one.runs.items() if not run.problem}
        cannot = [placement for placement, run in one.runs.items() if run.problem]
        plain = one.runs[PLAIN].step * 1e3
        events = [1e3 * sum(spent.wall for spent in run.events.values()) / run.steps for run in runs.values()]
        steps = [1e3 * run.step for run in runs.values()]
        idle = events[0]
        paid = [max(0.0, event - idle) for event in events]
        rest = [max(0.0, step - plain - event) for step, event in zip(steps, paid, strict=True)]
        axes.bar(list(runs), [plain] * len(runs), color=_COLOURS["step"], label="the plain step")
        axes.bar(list(runs), paid, bottom=plain, color=_COLOURS["events"], label="in its events")
        tops = [plain + event for event in paid]
        axes.bar(list(runs), rest, bottom=tops, color=_COLOURS["rest"], label="the rest of the step, slower")
        for place, step in enumerate(steps):
            axes.annotate(
                f"{step:.3g} ms", (place, max(step, plain)), xytext=(0, 3), textcoords="offset points", ha="center"
            )
        if cannot:
            axes.set_xlabel(f"it can't run: {', '.join(cannot)}")
        axes.set_title(f"{one.name}: {one.advice.placement}", fontsize=11)
        axes.set_ylabel("ms per step")
        axes.spines[["top", "right"]].set_visible(False)
        axes.margins(y=0.12)
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    figure.savefig(path)
