"""What a slow callback does to the training steps of ClinicaDL's Trainer, inline and in the background; all in one run.

    PYTHONPATH=. python benchmarks/adapters_clinicadl.py    # in the environment that .ci/clinicadl makes

A callback takes the net at every second optimization step (some 25 ms), and waits as a network would: 10 ms, so that it
keeps up, or 50 ms, so that its lane gets longer until the run ends, which waits for it. "CPU": of the training thread.
Compare ratios: to the steps of the same training without it, with ClinicaDL's own handler. An event with the net costs
the training thread 0.3 ms, of which the smaller the net is (``--width``) the more shows; and ClinicaDL's own callbacks,
which compute in Python for 0.7 ms a step, go on sharing the interpreter with the training.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import logging
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import torch
from clinicadl import callbacks as theirs
from clinicadl.losses.config import MSELossConfig
from clinicadl.models import SupervisedModel
from clinicadl.optim.optimizers.config import AdamConfig
from peer.rounds import Moment, compare, summary

from async_trainer import background
from async_trainer.adapters import clinicadl
from tests.adapters import clinicadl_runs as runs

CASES = [("alone", 0.0), *((how, wait) for wait in (0.01, 0.05) for how in ("inline", "background"))]


class Sends(theirs.Callback):
    def __init__(self, wait: float) -> None:
        self.wait = wait

    def on_optimization_step_end(self, *, model: Any, **kwargs: Any) -> None:
        model.state_dict()
        time.sleep(self.wait)


class SendsInline(Sends):
    def on_optimization_step_end(self, *, model: Any, state: Any, **kwargs: Any) -> None:
        if state.optim_step % 2 == 0:
            super().on_optimization_step_end(model=model)


class Clock(theirs.Callback):
    def __init__(self) -> None:
        self.times: list[Moment] = []

    def on_batch_start(self, *, state: Any, **kwargs: Any) -> None:
        if state.stage == "training":
            self.times.append((time.perf_counter(), time.thread_time()))

    def on_epoch_end(self, **kwargs: Any) -> None:
        self.times.append(None)  # what follows is no step


def run(folder: Path, how: str, wait: float, epochs: int, width: int) -> tuple[float, float, float]:
    """From one training batch to the next, without the first epoch: it starts threads."""
    clock = Clock()
    quiet = theirs.LoggerCallback(debug=False)
    if how == "alone":
        handler: Any = theirs.CallbacksHandler([clock, quiet])
    elif how == "inline":
        handler = theirs.CallbacksHandler([SendsInline(wait), clock, quiet])
    else:
        sends = background(Sends(wait), every={"on_optimization_step_end": 2})
        handler = clinicadl.CallbacksHandler([sends, clock, quiet])
    trainer = runs.make(folder, handler, epochs=epochs, model=model(width))
    with contextlib.redirect_stdout(io.StringIO()):
        runs.train(trainer)
    return summary(clock.times[5:])


def model(width: int) -> Any:
    torch.manual_seed(0)
    layers = [torch.nn.Flatten(), torch.nn.Linear(64, width), torch.nn.ReLU(), torch.nn.Linear(width, width)]
    network = torch.nn.Sequential(*layers, torch.nn.ReLU(), torch.nn.Linear(width, 1))
    return SupervisedModel(network=network, loss=MSELossConfig(), optimizer=AdamConfig(lr=1e-4))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--width", type=int, default=1024)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        run(Path(folder, "first"), "background", 0.0, 2, options.width)  # imports
        compare(
            [f"{how}, waits {wait * 1e3:.0f} ms" if wait else how for how, wait in CASES],
            options.rounds,
            lambda turn, case: run(Path(folder, f"{turn}-{case}"), *CASES[case], options.epochs, options.width),
        )


if __name__ == "__main__":
    main()
