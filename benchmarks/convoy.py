"""A training step beside a callback that computes: plain Python, matplotlib; at several step sizes; all in one run.

    python benchmarks/convoy.py [--json PATH]

The scenario ``convoy`` of ``async-trainer bench``, for more steps and two callbacks, with one torch thread, and with as
many as torch takes by default: these leave the callback no core, in whichever process it is. What is compared takes
turns; a ratio is the median of the rounds'.
"""

from __future__ import annotations

import io
import sys
from collections.abc import Callable, Iterator
from functools import partial

import torch

from async_trainer.bench.convoy import Busy, beside
from async_trainer.bench.row import Row
from async_trainer.bench.script import run_script
from async_trainer.bench.timing import QUICK

STEPS = {"0.2 ms": (1, 64, 32), "1 ms": (16, 64, 32), "4 ms": (8, 320, 64), "20 ms": (8, 512, 128)}
"""By about what a step takes: linear layers, their width, samples in a batch."""


class Matplotlib(Busy):
    """Draws a curve."""

    def work(self) -> None:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        figure = Figure()
        canvas = FigureCanvasAgg(figure)
        figure.subplots().plot(range(1000))
        canvas.print_png(io.BytesIO())


def parts() -> Iterator[tuple[str, Callable[[], list[Row]]]]:
    """The tables: for each number of threads, one for each callback."""
    for threads in sorted({1, torch.get_num_threads()}):
        torch.set_num_threads(threads)
        for what, callback in (("plain Python", Busy), ("matplotlib", Matplotlib)):
            title = f"{what}, {threads} torch thread{'s, its default' if threads > 1 else ''}"
            yield title, partial(beside, callback, STEPS, QUICK)


if __name__ == "__main__":
    sys.exit(run_script(__doc__, parts()))
