"""The demo's training, by a Trainer and with checkpoints to resume it from; and one that pulls its own plug.

``python -m async_trainer.demo.resumable FOLDER EPOCHS SEED LATENCY THREADS`` trains, and kills itself half-way.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from async_trainer import (
    Callback,
    CallbacksHandler,
    ComputationalConfig,
    OptimizationConfig,
    Split,
    Trainer,
    TrainerState,
    background,
    inline,
)
from async_trainer.callbacks import TrainingCheckpoint
from async_trainer.demo.data import load_digits
from async_trainer.demo.net import make_net
from async_trainer.demo.progress import Lines
from async_trainer.demo.run import CHECKPOINT_EVERY, LaneCounts, Run, Setup, make_callbacks
from async_trainer.demo.with_trainer import Reader, accuracy
from async_trainer.resume.bundles import Bundles

RESUME_EVERY = 7
"""Optimization steps between two checkpoints of the resume state; no divisor of the half, so that steps are lost."""
PATIENCE = 60.0
"""Seconds that the plug stays in for the first checkpoint, where a training reaches its half before it."""


class PullsThePlug(Callback):
    """kill -9, from within, after the optimization step ``step``.

    Args:
        step: half of all.
        resume: the folder of the resume state: there is nothing to show before something is in it.
        console: for its last words.
    """

    def __init__(self, step: int, resume: Path, console: Console) -> None:
        self.step = step
        self.resume = resume
        self.console = console

    def on_batch_end(self, *, state: TrainerState, **kwargs: Any) -> None:
        if state.stage != "training" or state.optim_step != self.step:
            return
        until = time.monotonic() + PATIENCE
        while not Bundles(self.resume).paths and time.monotonic() < until:
            time.sleep(0.01)
        self.console.print(f"killed     after step {self.step}, by SIGKILL", highlight=False)
        self.console.file.flush()
        os.kill(os.getpid(), signal.SIGKILL)


def train(
    setup: Setup, folder: Path, progress: Lines, *, resume: bool = False, plug: PullsThePlug | None = None
) -> Run:
    """Train in ``folder``, from the start or from the newest checkpoint there."""
    begun = time.perf_counter()
    log, figures, checkpoints = make_callbacks(setup, folder)
    handler = CallbacksHandler(
        [
            inline(progress.start()),
            TrainingCheckpoint(every_n_steps=RESUME_EVERY),
            background(log),
            background(figures, placement="process"),
            background(checkpoints, every={"on_optimization_step_end": CHECKPOINT_EVERY}),
            *([inline(plug)] if plug is not None else []),
        ],
        shutdown_timeout=5.0,
    )
    maps, model, metrics = folder / "maps", Reader(make_net(seed=setup.seed)), {"accuracy": accuracy}
    split = Split(0, setup.digits.training_batches(seed=setup.seed), setup.digits.held_out_batches())
    with handler:
        if resume:
            trainer = Trainer.from_maps(maps, model=model, metrics=metrics, callbacks=handler)
            frame = trainer.resume(0, split)
        else:
            optimization = OptimizationConfig(num_epochs=setup.epochs)
            trainer = Trainer(maps, model, metrics, optimization, handler, overwrite=True)
            frame = trainer.train(split, ComputationalConfig(device="cpu", seed=setup.seed))
    progress.finish()
    stats = handler.stats()
    return Run(
        name=folder.name,
        folder=folder,
        wall=time.perf_counter() - begun,
        steps=(),
        accuracy=float(frame["accuracy"].iloc[-1]),
        paid={},
        weights=model.state_dict(),
        random=torch.get_rng_state(),
        lanes=tuple(
            LaneCounts(name, lane.delivered, lane.failed, lane.dropped, lane.lost, lane.placement)
            for name, lane in stats.lanes.items()
        ),
        failures=tuple(map(str, stats.errors)),
    )


def half(setup: Setup) -> int:
    """The optimization step after which the plug is pulled."""
    return setup.epochs * len(setup.digits.training_batches(seed=setup.seed)) // 2


def main(folder: Path, epochs: int, seed: int, latency: float, threads: int) -> None:
    """Train, and be killed."""
    torch.set_num_threads(threads)
    console = Console(force_terminal=False)
    setup = Setup(digits=load_digits(seed=seed), epochs=epochs, seed=seed, latency=latency, trainer=True)
    plug = PullsThePlug(half(setup), folder / "maps" / "split-0" / "resume", console)
    train(setup, folder, Lines(console, "killed"), plug=plug)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4]), int(sys.argv[5]))
