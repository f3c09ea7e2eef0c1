"""A training step beside a callback that computes: plain Python, matplotlib; at several step sizes; all in one run.

    python benchmarks/convoy.py [--json PATH]

The scenario ``convoy`` of ``async-trainer bench``, for more steps and two callbacks, with one torch thread, and with as
many as torch takes by default: these leave the callback no core, in whichever process it is. What is compared takes
turns; a ratio is the median of the rounds'.
"""

from __future__ import annotations

import argparse
import io
import json
import logging
import sys
import time
from pathlib import Path

import torch

from async_trainer.bench.convoy import Busy, beside
from async_trainer.bench.machine import describe_machine, line
from async_trainer.bench.report import table
from async_trainer.bench.run import Result
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


def main() -> int:
    """Measure, and print the tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", type=Path, metavar="PATH", help="write the figures, and the machine, to this file")
    arguments = parser.parse_args()
    logging.getLogger("async_trainer").setLevel(logging.ERROR)  # it warns of the thread lane, rightly
    about = describe_machine()
    print(line(about), flush=True)
    default = torch.get_num_threads()
    results = []
    for threads in sorted({1, default}):
        torch.set_num_threads(threads)
        for what, callback in (("plain Python", Busy), ("matplotlib", Matplotlib)):
            began = time.perf_counter()
            rows = tuple(beside(callback, STEPS, QUICK))
            name = f"{what}, {threads} torch thread{'s, its default' if threads > 1 else ''}"
            results.append(Result(name, rows, time.perf_counter() - began, about["load_before"]))
            print(f"\n{table(results[-1])}", flush=True)
    if arguments.json is not None:
        plain = {"machine": about, "results": [one.to_json() for one in results]}
        arguments.json.write_text(json.dumps(plain, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
