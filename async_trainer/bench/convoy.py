"""What a callback that computes in Python does to a training step, by where it runs.

A step alone; beside a process that has nothing to do with it, and computes; beside a plain background thread with a
queue; beside a thread lane; beside a process lane; 1 torch thread. The callback is busy all the time: an event is fired
at each step, and what doesn't fit is dropped. A measurement in which it was in its hook for less than 85 % is repeated,
and at last marked. Times are means (some steps wait for the interpreter, others don't).

What the other process costs, no placement can save: it shows whether a core was free. So the process lane is also set
beside it.
"""

from __future__ import annotations

import contextlib
import logging
import queue
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from statistics import median

import torch
from torch import nn

from async_trainer.bench.row import Row
from async_trainer.bench.timing import Effort, by_turns, clock
from async_trainer.callback import Placement, background
from async_trainer.handler import CallbacksHandler

STEPS = {"1 ms": (16, 64, 32), "20 ms": (8, 512, 128)}
"""By about what a step takes: linear layers, their width, samples in a batch."""

GATED = "20 ms"
"""The step whose ratio beside a thread lane is gated. In a step of 1 ms each of 100 calls of torch has to have the
interpreter back, and what that takes is up to the system's scheduler: 2.4 to 5.8 were measured, so it is only shown."""

SECONDS, QUICK_SECONDS = 0.5, 0.15  # of each measurement, in full and with --quick
WARM_UP = 0.1  # s
BUSY = 0.85  # of the measured time, at least, in hooks: the rest is the way from one to the next
LEAST = 5  # steps to measure
TRIES = 3  # on a machine whose cores others want too, an event may be late


class Busy:
    """Computes for some 100 ms on each event, in plain Python; keeps when."""

    def __init__(self) -> None:
        self.spans: list[tuple[float, float]] = []

    def on_batch_end(self, *, step: int) -> None:
        began = clock()
        self.work()
        self.spans.append((began, clock()))

    def work(self) -> None:
        """What it computes."""
        total = 0
        for n in range(1_500_000):
            total += n

    def share(self, began: float, ended: float) -> float:
        """Of the time between, in hooks."""
        return sum(max(0.0, min(end, ended) - max(start, began)) for start, end in self.spans) / (ended - began)


class Alone:
    """Nothing in the background."""

    name = "alone"

    def fire(self, step: int) -> None:
        """What the loop does at a step."""

    def rest(self) -> None:
        """Wait until nothing runs in the background."""

    def close(self) -> None:
        """End it."""
        self.rest()

    def share(self, began: float, ended: float) -> float:
        """How much of the time it computed."""
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


class PlainThread(Alone):
    """What one would write: a thread, and a queue."""

    name = "plain thread"

    def __init__(self, callback: Busy) -> None:
        self.callback = callback
        self.queue: queue.Queue[int | None] = queue.Queue(2)
        self.thread = threading.Thread(target=self._run, daemon=True)
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

    def share(self, began: float, ended: float) -> float:
        return self.callback.share(began, ended)


class OurLane(Alone):
    """A lane of ours. In a process, the spans come back with the callback's attributes, at the flush."""

    def __init__(self, placement: Placement, callback: Busy) -> None:
        self.callback = callback
        self.name = f"{placement} lane"
        self.handler = CallbacksHandler(
            [background(self.callback, placement=placement, queue_size=2, overflow="drop_newest")]
        )

    def fire(self, step: int) -> None:
        self.handler.call_event("on_batch_end", step=step)

    def rest(self) -> None:
        self.handler.flush()

    def close(self) -> None:
        self.handler.close()

    def share(self, began: float, ended: float) -> float:
        return self.callback.share(began, ended)


def measure(effort: Effort) -> list[Row]:
    """The rows of ``convoy``."""
    torch.set_num_threads(1)
    logging.getLogger("async_trainer").setLevel(logging.ERROR)  # it warns of the thread lane, rightly
    names = STEPS if effort.full else [GATED]
    return beside(Busy, {name: STEPS[name] for name in names}, effort)


def beside(callback: Callable[[], Busy], steps: Mapping[str, tuple[int, int, int]], effort: Effort) -> list[Row]:
    """The rows of ``steps``, shapes by name, beside such a callback."""
    variants = [
        Alone(), OtherProcess(), PlainThread(callback()), OurLane("thread", callback()), OurLane("process", callback()),
    ]  # fmt: skip
    try:
        for variant in variants:  # the process starts, libraries are loaded
            variant.fire(0)
            variant.rest()
        return [row for name, shape in steps.items() for row in _rows(name, make_step(*shape), variants, effort)]
    finally:
        for variant in variants:
            variant.close()


def _rows(name: str, step: Callable[[], None], variants: list[Alone], effort: Effort) -> list[Row]:
    named = {one.name: one for one in variants}
    times: dict[str, list[float]] = {name: [] for name in named}
    idle: set[str] = set()
    for which, _ in by_turns(named, effort.times(9, 2), warm_up=0):
        mean, busy = _measure(step, named[which], SECONDS if effort.full else QUICK_SECONDS)
        times[which].append(mean)
        if not busy:
            idle.add(which)

    def row(which: str, beside: str = "alone", budget: float | None = None, *, gated: bool = False) -> Row:
        pairs = zip(times[which], times[beside], strict=True)
        return Row(
            f"a step of {name}, beside a busy {which}",
            median(times[which]) * 1e3,
            "ms",
            beside="the step alone" if beside == "alone" else f"the step beside an {beside}",
            other=median(times[beside]) * 1e3,
            ratio=median(one / other for one, other in pairs),
            budget=budget,
            of="ratio" if budget else "value",
            gated=gated,
            note="its callback was not busy all the time" if which in idle else "",
        )

    return [
        row("process lane", budget=1.05),
        row("process lane", "other process", budget=1.05),
        row("thread lane", budget=3.0, gated=name == GATED),
        row("plain thread"),
        row("other process"),
    ]


def make_step(layers: int, width: int, batch: int) -> Callable[[], None]:
    """A training step of linear layers."""
    model = nn.Sequential(*(nn.Linear(width, width) for _ in range(layers)))
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-6)
    x = torch.randn(batch, width)

    def step() -> None:
        model(x).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def _measure(step: Callable[[], None], variant: Alone, seconds: float) -> tuple[float, bool]:
    """A step's time, the event's included, in s; and whether the callback was busy all the time."""
    tries: list[tuple[float, float]] = []
    while len(tries) < TRIES and not (tries and tries[-1][1] >= BUSY):
        tries.append(_measure_once(step, variant, seconds))
    best = max(tries, key=lambda one: one[1])
    return best[0], best[1] >= BUSY


def _measure_once(step: Callable[[], None], variant: Alone, seconds: float) -> tuple[float, float]:
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
