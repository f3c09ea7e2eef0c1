"""An event as a training fires it: 5 ms of torch between two. The caches are cold then, and the worker asleep."""

from __future__ import annotations

import gc
from collections.abc import Callable
from statistics import median
from typing import Any

import torch

from async_trainer.bench.doubles import BareQueue, QueuedLog, Quiet
from async_trainer.bench.row import Row
from async_trainer.bench.timing import Effort, by_turns, clock, percentile
from async_trainer.callback import background
from async_trainer.events import Event
from async_trainer.handler import CallbacksHandler
from async_trainer.train.state import TrainerState

PAUSE = 5e-3  # s of torch between two calls
PUT, EVENT = "SimpleQueue.put, so paced", "an event, one hook naming state, 5 ms of torch between"


def measure(effort: Effort) -> list[Row]:
    """The rows of ``paced``: the calls take turns, one after each pause."""
    torch.set_num_threads(1)
    state = TrainerState()
    bare, log = BareQueue(), QueuedLog("paced")
    with CallbacksHandler([background(Quiet())]) as handler:
        ways: dict[str, Callable[[], Any]] = {
            PUT: bare,
            EVENT: lambda: handler.call_event(Event.BATCH_END, state=state),
            "logging.QueueHandler, so paced": log,
        }
        times: dict[str, list[float]] = {name: [] for name in ways}
        work = make_work()
        gc.collect()
        for name, counts in by_turns(ways, effort.times(400, 100), warm_up=10):
            work()
            began = clock()
            ways[name]()
            if counts:
                times[name].append(clock() - began)
    bare.close()
    log.close()
    p50 = {name: median(one) * 1e6 for name, one in times.items()}
    p99 = {name: percentile(one, 99) * 1e6 for name, one in times.items()}
    return [
        Row(
            EVENT,
            p50[EVENT],
            "µs",
            p99[EVENT],
            beside=PUT,
            other=p50[PUT],
            ratio=p50[EVENT] / p50[PUT],
            budget=3.0,
            of="ratio",
            gated=True,
        ),
        *(Row(f"({name})", p50[name], "µs", p99[name]) for name in ways if name != EVENT),
    ]


def make_work() -> Callable[[], None]:
    """Something that takes torch about ``PAUSE`` on this machine."""
    x = torch.randn(192, 192)
    began = clock()
    for _ in range(50):
        x @ x
    products = max(1, round(50 * PAUSE / (clock() - began)))

    def work() -> None:
        for _ in range(products):
            x @ x

    return work
