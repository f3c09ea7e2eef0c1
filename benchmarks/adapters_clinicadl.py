"""What a slow callback does to the training steps of ClinicaDL's Trainer, inline and in the background; all in one run.

    PYTHONPATH=. python benchmarks/adapters_clinicadl.py    # in the environment that .ci/clinicadl makes

A callback takes the net at every second optimization step, and waits 50 ms as a network would. Compare ratios.
"""

from __future__ import annotations

import logging
import tempfile
import time
import warnings
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

from clinicadl import callbacks as theirs

from async_trainer import background
from async_trainer.adapters import clinicadl
from tests.adapters import clinicadl_runs as runs


class Sends(theirs.Callback):
    def on_optimization_step_end(self, *, model: Any, state: Any, **kwargs: Any) -> None:
        if state.optim_step % 2 == 0:
            model.state_dict()
            time.sleep(0.05)


class Clock(theirs.Callback):
    def __init__(self) -> None:
        self.times: list[float] = []

    def on_batch_start(self, *, state: Any, **kwargs: Any) -> None:
        if state.stage == "training":
            self.times.append(time.perf_counter())

    def on_epoch_end(self, **kwargs: Any) -> None:
        self.times.append(float("nan"))  # what follows is no step


def run(folder: Path, how: str) -> tuple[float, float]:
    """The median and the mean time from one training batch to the next, ms."""
    clock = Clock()
    quiet = theirs.LoggerCallback(debug=False)
    if how == "alone":
        handler: Any = theirs.CallbacksHandler([clock, quiet])
    elif how == "inline":
        handler = theirs.CallbacksHandler([Sends(), clock, quiet])
    else:
        handler = clinicadl.CallbacksHandler([background(Sends()), clock, quiet])
    runs.train(runs.make(folder / how, handler, epochs=12))
    steps = [later - earlier for earlier, later in pairwise(clock.times) if later - earlier == later - earlier]
    return median(steps) * 1e3, sum(steps) / len(steps) * 1e3


def main() -> None:
    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)
    with tempfile.TemporaryDirectory() as folder:
        run(Path(folder) / "first", "alone")  # imports
        results = {how: run(Path(folder), how) for how in ("alone", "inline", "background")}
    for how, (middle, mean) in results.items():
        print(f"{how:12} step: median {middle:6.2f} ms, mean {mean:6.2f} ms ({mean / results['alone'][1]:.2f} x)")


if __name__ == "__main__":
    main()
