"""What a checkpoint of all resume state does to the step that captures it, and to those while it is written."""

from __future__ import annotations

import logging
import tempfile
from pathlib import Path
from statistics import median

import torch

from async_trainer.bench.row import Row
from async_trainer.bench.timing import Effort, clock
from async_trainer.bench.training import Loop
from async_trainer.callback import background
from async_trainer.handler import CallbacksHandler

MEGABYTES, TENSORS = 300, 150
STEPS = 3  # after the one that captures, to see what writing does to them


class Counts:
    """A callback with a state, so that the cut has something to hold."""

    def __init__(self) -> None:
        self.count = 0

    def on_batch_end(self, *, step: int) -> None:
        self.count += 1

    def state_dict(self) -> dict[str, int]:
        return {"count": self.count}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        self.count = state_dict["count"]


def measure(effort: Effort) -> list[Row]:
    """The rows of ``resume``."""
    torch.set_num_threads(1)
    logging.getLogger("async_trainer").setLevel(logging.ERROR)
    loop = Loop(MEGABYTES, TENSORS, batch=192)
    plain: list[float] = []
    held: list[float] = []
    captures: list[float] = []
    writes: list[float] = []
    inline: list[float] = []
    with (
        tempfile.TemporaryDirectory() as temporary,
        CallbacksHandler([background(Counts())]) as handler,
    ):
        folder = Path(temporary)
        for number in range(effort.times(12) + 1):
            plain += [_step(loop), _step(loop)]
            handler.call_event("on_batch_end", step=number)
            began = clock()
            checkpoint = handler.checkpoint(folder / "ours", model=loop.model, optimizer=loop.optimizer, step=number)
            held.append(clock() - began)
            captures.append(held[-1] + _step(loop))
            while not checkpoint.done and len(writes) < STEPS * (number + 1):
                writes.append(_step(loop))
            checkpoint.wait()
            began = clock()
            torch.save({"model": loop.model.state_dict(), "adam": loop.optimizer.state_dict()}, folder / "inline.pt")
            inline.append(clock() - began)
        fence = handler.stats().waits.fence / len(captures)
    step, capture = median(plain[2:]), median(captures[1:])
    # A capture beside the two plain steps before it, as the machine was just then.
    pairs = zip(captures[1:], plain[2::2], plain[3::2], strict=True)
    ratio = median(2 * with_it / (one + two) for with_it, one, two in pairs)
    return [
        Row(
            f"a step that captures a resume bundle of {MEGABYTES} MB",
            capture * 1e3,
            "ms",
            beside="a plain step",
            other=step * 1e3,
            ratio=ratio,
            budget=1.1,
            of="ratio",
            gated=True,
            note=f"held {median(held[1:]) * 1e3:.1f} ms, and {fence * 1e3:.1f} ms at the fence",
        ),
        Row(
            "a step while the bundle is written",
            median(writes) * 1e3,
            "ms",
            beside="a plain step",
            other=step * 1e3,
            ratio=median(writes) / step,
        ),
        Row(
            "(torch.save of the same on the loop, no fsync)",
            median(inline[1:]) * 1e3,
            "ms",
            beside="a plain step",
            other=step * 1e3,
            ratio=median(inline[1:]) / step,
        ),
    ]


def _step(loop: Loop) -> float:
    began = clock()
    loop.step()
    return clock() - began
