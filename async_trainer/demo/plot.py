"""The plot of both runs' step times."""

from __future__ import annotations

from itertools import accumulate
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from async_trainer.demo.report import percentile
from async_trainer.demo.run import Run

_COLOURS = {"inline": "#d1602b", "background": "#1f6fb2"}


def plot_steps(path: Path, inline: Run, background: Run) -> None:
    """Draw each step's time, and how far each run was at which time, into a PNG at ``path``."""
    figure = Figure(figsize=(12, 5), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle("One training with the same callbacks, inline and in the background", fontsize=13)
    left, right = figure.subplots(1, 2, width_ratios=(1.6, 1))
    _draw_steps(left, (inline, background))
    _draw_pace(right, (inline, background))
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25)
        axes.set_axisbelow(True)
    figure.savefig(path)


def _draw_steps(axes: Axes, runs: tuple[Run, Run]) -> None:
    axes.set_title("Step time: from one batch's start to the next, callbacks included", fontsize=11)
    axes.set_xlabel("step (batches of training and validation)")
    axes.set_ylabel("step time (ms, log scale)")
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
    for run in runs:
        times = [1000 * seconds for seconds in run.steps]
        p50, p99 = (1000 * percentile(run.steps, share) for share in (50, 99))
        label = f"{run.name}: p50 {p50:.0f} ms, p99 {p99:.0f} ms (dashed), longest {max(times):,.0f} ms"
        axes.scatter(
            range(1, len(times) + 1), times, s=10, alpha=0.5, linewidths=0, color=_COLOURS[run.name], label=label
        )
        axes.axhline(p99, color=_COLOURS[run.name], linewidth=1.2, linestyle="--")
    low, high = axes.get_ylim()
    axes.set_ylim(low, high * (high / low) ** 0.22)  # room for the legend
    legend = axes.legend(loc="upper left", frameon=False, markerscale=2, fontsize=10)
    for handle in legend.legend_handles:
        if handle is not None:
            handle.set_alpha(1)


def _draw_pace(axes: Axes, runs: tuple[Run, Run]) -> None:
    axes.set_title("Steps done over time", fontsize=11)
    axes.set_xlabel("time since the start (s)")
    axes.set_ylabel("steps done")
    for run in runs:
        colour = _COLOURS[run.name]
        clock = [*accumulate(run.steps, initial=0.0), run.wall]
        done = [*range(len(run.steps) + 1), len(run.steps)]
        axes.plot(clock, done, color=colour, linewidth=2)
        axes.plot(run.wall, len(run.steps), marker="o", color=colour)
        axes.annotate(
            f"{run.name}\n{run.wall:.1f} s",
            (run.wall, len(run.steps)),
            xytext=(0, 8),
            textcoords="offset points",
            ha="right",
            color=colour,
        )
    axes.set_xlim(0, 1.04 * max(run.wall for run in runs))
    axes.set_ylim(0, 1.15 * len(runs[0].steps))
