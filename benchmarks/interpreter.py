"""What a callback that computes in Python does to a training step, by where it runs; all in one run.

    python benchmarks/interpreter.py [--rounds 3] [--seconds 0.25]

A step alone; beside a process that has nothing to do with it, and computes; beside a plain background thread with a
queue; beside a thread lane; beside a process lane. The callback is busy all the time: an event is fired at each step,
and what doesn't fit is dropped. A measurement in which it was in its hook for less than 85 % is repeated; at last it is
an error, with one torch thread, and marked (*) with more, which leave it no core. Variants are interleaved, after a
warm-up. Times are means (some steps wait for the interpreter, others don't), of which the median of the rounds is
shown; ratios are what to compare. What the other process costs, no placement can save: it shows whether a core is free.
The design's budgets, with one thread and a core free: process lane 1.05, thread lane 3.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import logging
import platform
import queue
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from statistics import median
from time import perf_counter
from typing import Any

import torch
from torch import nn

from async_trainer import CallbacksHandler, background

clock = perf_counter  # the same in all processes, on Linux

STEPS = {"0.2 ms": (1, 64, 32), "1 ms": (16, 64, 32), "4 ms": (8, 320, 64), "20 ms": (8, 512, 128)}
"""By about what a step takes: linear layers, their width, samples in a batch."""

WARM_UP = 0.15  # s
BUSY = 0.85  # of the measured time, at least, in hooks: the rest is the way from one to the next
LEAST = 5  # steps to measure
TRIES = 4  # on a machine whose cores others want too, an event may be late


class Busy:
    """Works for some 100 ms on each event; keeps when."""

    def __init__(self) -> None:
        self.spans: list[tuple[float, float]] = []

    def on_batch_end(self, *, step: int) -> None:
        began = clock()
        self.work()
        self.spans.append((began, clock()))

    def work(self) -> None:
        raise NotImplementedError

    def share(self, began: float, ended: float) -> float:
        """Of the time between, in hooks."""
        return sum(max(0.0, min(end, ended) - max(start, began)) for start, end in self.spans) / (ended - began)


class Python(Busy):
    def work(self) -> None:
        total = 0
        for n in range(1_500_000):
            total += n


class Matplotlib(Busy):
    def work(self) -> None:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        figure = Figure()
        canvas = FigureCanvasAgg(figure)
        figure.subplots().plot(range(1000))
        canvas.print_png(io.BytesIO())


class Alone:
    """Nothing in the background."""

    name = "alone"

    def fire(self, step: int) -> None:
        pass

    def rest(self) -> None:
        pass

    close = rest

    def share(self, began: float, ended: float) -> float:
        return 1.0


class OtherProcess(Alone):
    """It wants a core, and nothing else."""

    name = "other process"

    def __init__(self) -> None:
        self.process: subprocess.Popen[bytes] | None = None

    def fire(self, step: int) -> None:
        if self.process is None:
            self.process = subprocess.Popen([sys.executable, "-c", "while True: pass"])

    def rest(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None

    close = rest


class PlainThread(Alone):
    """What one would write: a thread, and a queue."""

    name = "plain thread"

    def __init__(self, callback: Busy) -> None:
        self.callback = callback
        self.share = callback.share  # type: ignore[method-assign]
        self.queue: queue.Queue[int | None] = queue.Queue(2)
        self.thread = threading.Thread(target=self._run)
        self.thread.start()

    def _run(self) -> None:
        while (step := self.queue.get()) is not None:
            self.callback.on_batch_end(step=step)
            self.queue.task_done()

    def fire(self, step: int) -> None:
        with contextlib.suppress(queue.Full):
            self.queue.put_nowait(step)

    def rest(self) -> None:
        self.queue.join()

    def close(self) -> None:
        self.queue.put(None)
        self.thread.join()


class Lane(Alone):
    """A lane of ours. In a process, the spans come back with the callback's attributes, at the flush."""

    def __init__(self, callback: Busy, placement: Any) -> None:
        self.callback = callback
        self.name = f"{placement} lane"
        self.handler = CallbacksHandler(
            [background(callback, placement=placement, queue_size=2, overflow="drop_newest")]
        )

    def fire(self, step: int) -> None:
        self.handler.call_event("on_batch_end", step=step)

    def rest(self) -> None:
        self.handler.flush()

    def close(self) -> None:
        self.handler.close()

    def share(self, began: float, ended: float) -> float:
        return self.callback.share(began, ended)


def make_step(layers: int, width: int, batch: int) -> Callable[[], None]:
    model = nn.Sequential(*(nn.Linear(width, width) for _ in range(layers)))
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-6)
    x = torch.randn(batch, width)

    def step() -> None:
        model(x).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def measure(step: Callable[[], None], variant: Alone, seconds: float) -> tuple[float, bool]:
    """A step's time, the event's included, in s; and whether the callback was busy all the time."""
    tries = []
    for _ in range(TRIES):
        tries.append(measure_once(step, variant, seconds))
        if tries[-1][1] >= BUSY:
            return tries[-1][0], True
    if torch.get_num_threads() == 1:
        shares = ", ".join(f"{share:.0%}" for _, share in tries)
        raise AssertionError(f"{variant.name}: the callback was busy for {shares} of the measured time only")
    return max(tries, key=lambda one: one[1])[0], False


def measure_once(step: Callable[[], None], variant: Alone, seconds: float) -> tuple[float, float]:
    number = 0
    warm = clock() + WARM_UP
    while clock() < warm:
        variant.fire(number := number + 1)
        step()
    steps = 0
    began = clock()
    while steps < LEAST or clock() - began < seconds:
        variant.fire(number := number + 1)
        step()
        steps += 1
    ended = clock()
    variant.rest()
    return (ended - began) / steps, variant.share(began, ended)


def table(
    kind: type[Busy], steps: Mapping[str, tuple[int, int, int]], threads: int, rounds: int, seconds: float
) -> None:
    torch.set_num_threads(threads)
    print(f"{kind.__name__}, torch threads: {threads}")
    variants = [Alone(), OtherProcess(), PlainThread(kind()), Lane(kind(), "thread"), Lane(kind(), "process")]
    print(f"{'':8}{'alone':>11}" + "".join(f"{one.name:>21} " for one in variants[1:]))
    for variant in variants:  # the process starts, libraries are loaded
        variant.fire(0)
        variant.rest()
    try:
        for name, shape in steps.items():
            step = make_step(*shape)
            times: list[list[float]] = [[] for _ in variants]
            marks = [" "] * len(variants)
            for _ in range(rounds):
                for place, variant in enumerate(variants):
                    mean, busy = measure(step, variant, seconds)
                    times[place].append(mean)
                    marks[place] = marks[place] if busy else "*"
            alone, *beside = (1e3 * median(one) for one in times)
            cells = (f"{one:9.2f} ms {one / alone:6.2f} x{mark}" for one, mark in zip(beside, marks[1:], strict=True))
            print(f"{name:8}{alone:8.2f} ms{''.join(cells)}", flush=True)
    finally:
        for variant in variants:
            variant.close()
    print()


def main() -> None:
    parser = argparse.ArgumentParser(description="What a callback that computes in Python does to a training step.")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=0.25, help="of each measurement")
    arguments = parser.parse_args()
    logging.getLogger("async_trainer").setLevel(logging.ERROR)  # it warns of the thread lanes, rightly
    default = torch.get_num_threads()
    torch.manual_seed(0)
    print(f"Python {platform.python_version()}, torch {torch.__version__}, {platform.machine()}\n")
    some = {name: STEPS[name] for name in ("1 ms", "20 ms")}
    for threads, steps, rounds in ((1, STEPS, arguments.rounds), (default, some, max(1, arguments.rounds - 1))):
        for kind in (Python, Matplotlib):
            table(kind, steps, threads, rounds, arguments.seconds)


if __name__ == "__main__":
    main()
