"""How many events pass through one lane: fired in a burst, until all are handled."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from multiprocessing.connection import Connection
from statistics import median
from typing import Any

from async_trainer.bench.doubles import BareQueue, Quiet
from async_trainer.bench.row import Row
from async_trainer.bench.timing import Effort, clock, turns
from async_trainer.callback import Placement, background
from async_trainer.events import Event
from async_trainer.handler import CallbacksHandler
from async_trainer.train.state import TrainerState

BUDGETS: dict[Placement, float] = {"thread": 200_000.0, "process": 50_000.0}  # events per second
EVENTS = {"thread": 100_000, "process": 30_000}


def measure(effort: Effort) -> list[Row]:
    """The rows of ``throughput``."""
    return [
        _lane("thread", "SimpleQueue, a thread that takes", ByQueue, effort),
        _lane("process", "a pipe, pickled one by one", ByPipe, effort),
    ]


def _lane(placement: Placement, floor: str, make_floor: Callable[[int], Any], effort: Effort) -> Row:
    events = effort.times(EVENTS[placement], 2_000)
    state, quiet = TrainerState(), Quiet()
    with CallbacksHandler([background(quiet, placement=placement, queue_size=events)]) as handler:

        def by_lane() -> float:
            began = clock()
            for _ in range(events):
                handler.call_event(Event.BATCH_END, state=state)
            handler.flush()
            return clock() - began

        other = make_floor(events)
        took = turns({"lane": by_lane, "floor": other}, rounds=effort.times(7))
        delivered = handler.stats().lanes["quiet"].delivered
        other.close()
    if delivered != events * (effort.times(7) + 1):
        raise AssertionError(f"{delivered} events were delivered")
    lane, bare = took["lane"], took["floor"]
    return Row(
        f"events through one {placement} lane",
        events / lane.p50,
        "events/s",
        beside=floor,
        other=events / bare.p50,
        ratio=median(theirs / ours for ours, theirs in zip(lane.p50s, bare.p50s, strict=True)),
        budget=BUDGETS[placement],
        at_least=True,
    )


class ByQueue:
    """The floor of a thread lane: nothing captured, no books, no order to keep but the queue's."""

    def __init__(self, events: int) -> None:
        self.events = events
        self.bare = BareQueue()

    def __call__(self) -> float:
        began = clock()
        for _ in range(self.events):
            self.bare()
        self.bare.drain()
        return clock() - began

    def close(self) -> None:
        self.bare.close()


class ByPipe:
    """The same to another process with the standard library: each state pickled and sent, by itself."""

    def __init__(self, events: int) -> None:
        self.events = events
        self.ours, theirs = multiprocessing.Pipe()
        self.child = multiprocessing.get_context("spawn").Process(target=_receive, args=(theirs,), daemon=True)
        self.child.start()
        theirs.close()

    def __call__(self) -> float:
        state = TrainerState()
        began = clock()
        for _ in range(self.events):
            self.ours.send(state)
        self.ours.send("done?")
        self.ours.recv()
        return clock() - began

    def close(self) -> None:
        self.ours.send(None)
        self.child.join()


def _receive(end: Connection) -> None:
    """Another process: takes what comes."""
    while (item := end.recv()) is not None:
        if item == "done?":
            end.send(True)
