"""One run of the demo: the same loop and the same callbacks, inline or in the background."""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.tensorboard import SummaryWriter

from async_trainer import Callback, CallbacksHandler, Event, background, inline
from async_trainer.demo.callbacks import Checkpoints, Figures, MetricsLog
from async_trainer.demo.data import Digits
from async_trainer.demo.loop import train
from async_trainer.demo.progress import RunProgress
from async_trainer.demo.store import Store
from async_trainer.demo.timing import StepTimes, Stopwatch
from async_trainer.demo.with_trainer import train_with_trainer
from async_trainer.errors import LaneError
from async_trainer.runtime.stats import Stats

CHECKPOINT_EVERY = 30
"""Optimization steps between two checkpoints, besides those of the epochs' ends."""


@dataclass(frozen=True, slots=True)
class Setup:
    """What both runs have in common."""

    digits: Digits
    epochs: int
    seed: int
    latency: float
    """Seconds of the store's round trip."""
    trainer: bool = False
    """Whether a Trainer runs the loop, and not the demo's own."""

    def store(self, folder: Path) -> Store:
        """The store of a run that writes to ``folder``."""
        return Store(folder / "store", latency=self.latency)


@dataclass(frozen=True, slots=True)
class LaneCounts:
    """How the events of one lane ended."""

    name: str
    delivered: int
    failed: int
    dropped: int
    lost: int
    where: str = "thread"


@dataclass(frozen=True, slots=True)
class Run:
    """What one run did, and what it cost."""

    name: str
    folder: Path
    wall: float
    """Seconds from the first event until all is written."""
    steps: tuple[float, ...]
    """Seconds from each batch's start to the next."""
    accuracy: float
    paid: Mapping[str, float]
    """What the loop paid for callbacks, in seconds, by name."""
    weights: Mapping[str, Tensor]
    random: Tensor
    """The state of torch's generator after the training."""
    lanes: tuple[LaneCounts, ...] = ()
    failures: tuple[str, ...] = ()
    """What failed in the background, a line for each kind."""


def run_inline(setup: Setup, net: nn.Module, folder: Path, progress: RunProgress) -> Run:
    """Train ``net`` with every callback on the training thread."""
    stopwatch, steps = Stopwatch(), StepTimes()
    start = time.perf_counter()
    callbacks = [stopwatch.callback(callback) for callback in make_callbacks(setup, folder)]
    handler = CallbacksHandler([inline(callback) for callback in (steps, progress.start(), *callbacks)])
    with handler:
        writer = stopwatch.target("tensorboard", make_writer(folder))
        accuracy = _train(setup, net, handler, writer, folder)
    wall = time.perf_counter() - start
    progress.finish()
    return Run(
        name="inline",
        folder=folder,
        wall=wall,
        steps=steps.seconds,
        accuracy=accuracy,
        paid=dict(stopwatch.seconds),
        weights=net.state_dict(),
        random=torch.get_rng_state(),
    )


def run_background(setup: Setup, net: nn.Module, folder: Path, progress: RunProgress) -> Run:
    """Train ``net`` with the same callbacks in the background, and wait until they have written everything."""
    steps = StepTimes()
    accuracy = float("nan")
    start = time.perf_counter()
    log, figures, checkpoints = make_callbacks(setup, folder)
    handler = CallbacksHandler(
        [
            inline(steps),
            inline(progress.start()),
            background(log),
            background(figures, placement="process"),  # drawing is Python: in a thread it would slow the steps
            background(checkpoints, every={"on_optimization_step_end": CHECKPOINT_EVERY}),
        ],
        shutdown_timeout=5.0,
    )
    with suppress(LaneError), handler:  # raised at the end where a checkpoint failed: the report shows it
        writer = handler.proxy(make_writer(folder), name="tensorboard")
        accuracy = _train(setup, net, handler, writer, folder)
    wall = time.perf_counter() - start
    progress.finish()
    stats = handler.stats()
    return Run(
        name="background",
        folder=folder,
        wall=wall,
        steps=steps.seconds,
        accuracy=accuracy,
        paid=_paid(stats),
        weights=net.state_dict(),
        random=torch.get_rng_state(),
        lanes=tuple(
            LaneCounts(name, lane.delivered, lane.failed, lane.dropped, lane.lost, lane.placement)
            for name, lane in stats.lanes.items()
        ),
        failures=tuple(map(str, stats.errors)),
    )


def make_callbacks(setup: Setup, folder: Path) -> tuple[Callback, Callback, Callback]:
    """The callbacks of a run that writes to ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    return (
        MetricsLog(folder / "metrics.jsonl"),
        Figures(folder / "figures"),
        Checkpoints(setup.store(folder), every=CHECKPOINT_EVERY),
    )


def make_writer(folder: Path) -> Any:
    """A TensorBoard writer. ``Any``: torch's own isn't typed."""
    return SummaryWriter(str(folder / "tensorboard"))


def _train(setup: Setup, net: nn.Module, handler: CallbacksHandler, writer: Any, folder: Path) -> float:
    try:
        if setup.trainer:
            return train_with_trainer(
                net, setup.digits, handler, writer, epochs=setup.epochs, seed=setup.seed, maps=folder / "maps"
            )
        return train(net, setup.digits, handler, writer, epochs=setup.epochs, seed=setup.seed)
    except BaseException as exception:
        if not setup.trainer:  # which tells them itself
            handler.call_event(Event.EXCEPTION, exception=exception)
        raise
    finally:
        writer.close()


def _paid(stats: Stats) -> dict[str, float]:
    return {
        "capturing": stats.capture_seconds,
        "waiting for room in a lane": stats.waits.queue + stats.waits.budget,
        "waiting at fences": stats.waits.fence,
        "waiting at the end": stats.waits.flush,
    }
