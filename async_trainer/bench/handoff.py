"""100 MB to a process lane: from the event until the hook in the child has them, the caller's copy included."""

from __future__ import annotations

import logging
import multiprocessing
from statistics import median

import torch

from async_trainer.bench.doubles import receive
from async_trainer.bench.row import Row
from async_trainer.bench.timing import Effort, clock
from async_trainer.callback import Placement, background
from async_trainer.handler import CallbacksHandler

MEGABYTES = 100


class Arrives:
    """Keeps when an event's tensor was there, and looks at both its ends."""

    def __init__(self) -> None:
        self.at = 0.0
        self.ends = (0.0, 0.0)

    def on_batch_end(self, *, batch: torch.Tensor) -> None:
        self.at = clock()
        self.ends = (batch[0].item(), batch[-1].item())


def measure(effort: Effort) -> list[Row]:
    """The rows of ``handoff``."""
    torch.set_num_threads(1)
    logging.getLogger("async_trainer").setLevel(logging.ERROR)  # it says what such captures cost, rightly
    repeats = effort.times(15)
    held, way = _by_lane("process", repeats)
    _, thread = _by_lane("thread", repeats)
    pipe = _by_pipe(repeats)
    copy = _by_copy(repeats)
    return [
        Row(
            f"{MEGABYTES} MB through a process lane",
            way * 1e3,
            "ms",
            beside="pickled, through a pipe",
            other=pipe * 1e3,
            ratio=way / pipe,
            budget=12.0,
            note=f"the loop held {held * 1e3:.1f} ms",
        ),
        Row(f"({MEGABYTES} MB through a thread lane)", thread * 1e3, "ms"),
        Row(f"({MEGABYTES} MB copied into memory that is there)", copy * 1e3, "ms", note="the floor"),
    ]


def _by_lane(placement: Placement, repeats: int) -> tuple[float, float]:
    """The medians of what the loop was held, and of the whole way, in s; the first third is warm-up."""
    arrives = Arrives()
    held, ways = [], []
    batch = torch.zeros(MEGABYTES * 250_000)
    with CallbacksHandler([background(arrives, placement=placement)]) as handler:
        for number in range(repeats + repeats // 2):
            batch.fill_(number)
            began = clock()
            handler.call_event("on_batch_end", batch=batch)
            held.append(clock() - began)
            handler.flush()  # the callback's attributes come back, too
            ways.append(arrives.at - began)
            if arrives.ends != (number, number):
                raise AssertionError(f"event {number} brought {arrives.ends}")
    return median(held[-repeats:]), median(ways[-repeats:])


def _by_copy(repeats: int) -> float:
    batch, there = torch.zeros(MEGABYTES * 250_000), torch.zeros(MEGABYTES * 250_000)
    times = []
    for _ in range(repeats):
        began = clock()
        there.copy_(batch)
        times.append(clock() - began)
    return median(times)


def _by_pipe(repeats: int) -> float:
    """The median of pickling a tensor, as its bytes, and sending it through a pipe, in s."""
    ours, theirs = multiprocessing.Pipe()
    child = multiprocessing.get_context("spawn").Process(target=receive, args=(theirs,), daemon=True)
    child.start()
    batch = torch.zeros(MEGABYTES * 250_000).numpy()
    ways: list[float] = []
    for _ in range(repeats + repeats // 2):
        began = clock()
        ours.send(batch)
        arrived: float = ours.recv()
        ways.append(arrived - began)
    ours.send(None)
    child.join()
    return median(ways[-repeats:])
