"""What goes through one process lane, beside a thread lane and a pipe; all in one run.

    python benchmarks/process.py [--megabytes 100] [--repeats 15]

A big tensor: from the event until the hook in the child has it, the caller's copy included; and how much of it the
loop was held. Beside it: pickled, and sent through a pipe. Small events: fired in a burst, until all are handled.
Medians. The design's budgets: 100 MB in 12 ms, 50,000 events a second.
"""

from __future__ import annotations

import argparse
import logging
import multiprocessing
import platform
import time
from multiprocessing.connection import Connection
from statistics import median
from typing import Any

import torch

from async_trainer import Callback, CallbacksHandler, TrainerState, background

clock = time.perf_counter  # the same in all processes, on Linux
EVENTS, BURSTS = 30_000, 5


class Quiet(Callback):
    def on_batch_end(self, *, state: TrainerState) -> None:
        pass


class Arrives:
    """Keeps when an event's tensor was there, and looks at both its ends."""

    def __init__(self) -> None:
        self.at = 0.0
        self.ends = (0.0, 0.0)

    def on_batch_end(self, *, batch: torch.Tensor) -> None:
        self.at = clock()
        self.ends = (batch[0].item(), batch[-1].item())


def by_lane(placement: Any, megabytes: int, repeats: int) -> tuple[float, float]:
    """The medians of what the loop was held, and of the whole way, in ms; the first third is warm-up."""
    arrives = Arrives()
    held, ways = [], []
    batch = torch.zeros(megabytes * 250_000)
    with CallbacksHandler([background(arrives, placement=placement)]) as handler:
        for number in range(repeats + repeats // 2):
            batch.fill_(number)
            began = clock()
            handler.call_event("on_batch_end", batch=batch)
            held.append(clock() - began)
            handler.flush()  # the callback's attributes come back, too
            ways.append(arrives.at - began)
            assert arrives.ends == (number, number)
    return 1e3 * median(held[-repeats:]), 1e3 * median(ways[-repeats:])


def receive(end: Connection) -> None:
    """Another process: what it is sent, as long as it comes."""
    while end.recv() is not None:
        end.send(clock())


def by_pipe(megabytes: int, repeats: int) -> float:
    """The median of pickling a tensor, as its bytes, and sending it through a pipe, in ms."""
    ours, theirs = multiprocessing.Pipe()
    child = multiprocessing.get_context("spawn").Process(target=receive, args=(theirs,))
    child.start()
    batch = torch.zeros(megabytes * 250_000).numpy()
    ways = []
    for _ in range(repeats + repeats // 2):
        began = clock()
        ours.send(batch)
        ways.append(ours.recv() - began)
    ours.send(None)
    child.join()
    return 1e3 * median(ways[-repeats:])


def events_per_second(placement: Any) -> float:
    """The median over bursts; the first is warm-up."""
    state = TrainerState()
    rates = []
    with CallbacksHandler([background(Quiet(), placement=placement, queue_size=EVENTS)]) as handler:
        for _ in range(1 + BURSTS):
            began = clock()
            for _ in range(EVENTS):
                handler.call_event("on_batch_end", state=state)
            handler.flush()
            rates.append(EVENTS / (clock() - began))
        assert handler.stats().lanes["quiet"].delivered == EVENTS * (1 + BURSTS)
    return median(rates[1:])


def main() -> None:
    parser = argparse.ArgumentParser(description="What goes through one process lane.")
    parser.add_argument("--megabytes", type=int, default=100)
    parser.add_argument("--repeats", type=int, default=15)
    arguments = parser.parse_args()
    size = (arguments.megabytes, arguments.repeats)
    torch.set_num_threads(1)
    logging.getLogger("async_trainer").setLevel(logging.ERROR)  # it says what such captures cost, rightly
    print(f"Python {platform.python_version()}, torch {torch.__version__}, {platform.machine()}, 1 torch thread\n")
    for placement in ("process", "thread"):
        held, way = by_lane(placement, *size)
        name = f"{size[0]} MB through a {placement} lane"
        print(f"{name:36}{way:9.1f} ms, the loop held {held:.1f} ms")
    print(f"{f'{size[0]} MB pickled, through a pipe':36}{by_pipe(*size):9.1f} ms")
    for placement in ("process", "thread"):
        print(f"{f'through one {placement} lane':36}{events_per_second(placement):9,.0f} events/s")


if __name__ == "__main__":
    main()
