"""What a full lane does."""

from __future__ import annotations

import threading
import time
from typing import Any

import numpy as np
import pytest

from async_trainer import background
from async_trainer.callback import Placement
from tests.options.doubles import PATIENCE, Gate, Make, Output, Rows, fire, in_thread, until


@pytest.mark.parametrize(
    ("overflow", "kept"),
    [("drop_newest", [1, 2, 3]), ("drop_oldest", [8, 9, 10]), ("latest", [1, 2, 10])],
)
def test_a_full_lane_drops_by_its_policy(overflow: Any, kept: list[int], placement: Placement, handlers: Make) -> None:
    rows = Rows()
    handler = handlers(background(rows, placement=placement, queue_size=3, overflow=overflow))
    with handler._pool.hold():
        fire(handler, 10)
        stats = handler.stats().lanes["rows"]
        assert (stats.queued, stats.dropped, stats.size) == (3, 7, 3)
    report = handler.close()
    assert rows.ns == kept
    assert (report.delivered, report.dropped, report.ok) == (3, 7, False)


def test_latest_keeps_the_newest_of_each_event(placement: Placement, handlers: Make) -> None:
    rows = Rows()
    handler = handlers(background(rows, placement=placement, queue_size=2, overflow="latest"))
    with handler._pool.hold():
        for n in range(5):
            handler.call_event("on_batch_end", n=n)
            handler.call_event("on_epoch_end", n=n)
    handler.close()
    assert rows.named == [("on_batch_end", 4), ("on_epoch_end", 4)]


def test_a_snapshot_that_is_dropped_leaves_the_budget(handlers: Make) -> None:
    handler = handlers(background(Output(), queue_size=1, overflow="drop_oldest"))
    with handler._pool.hold():
        for _ in range(5):
            handler.call_event("on_batch_end", output=np.zeros(100_000, np.uint8))
        assert handler.stats().snapshot_bytes == 100_000
    handler.flush()
    assert handler.stats().snapshot_bytes == 0


@pytest.mark.parametrize("overflow", ["block", "drop_newest", "drop_oldest", "latest"])
def test_events_that_come_once_per_run_are_never_dropped(overflow: Any, handlers: Make) -> None:
    rows = Rows()
    handler = handlers(background(rows, queue_size=1, overflow=overflow), stall_timeout=0.05)
    with handler._pool.hold():
        fire(handler, 3)
        fire(handler, 3, "on_train_end")
        stats = handler.stats().lanes["rows"]
        assert stats.over_limit >= 2
    handler.close()
    assert [name for name, _ in rows.named].count("on_train_end") == 3


def test_block_holds_up_the_loop_until_there_is_room_and_drops_nothing(placement: Placement, handlers: Make) -> None:
    gate = Gate()
    handler = handlers(background(gate, placement=placement, queue_size=2))
    handler.call_event("on_batch_end", n=0)
    assert gate.entered.wait(PATIENCE)  # one runs, two wait: full
    handler.call_event("on_batch_end", n=1)
    handler.call_event("on_batch_end", n=2)
    emitted = threading.Event()

    def emit() -> None:
        handler.call_event("on_batch_end", n=3)
        emitted.set()

    thread = in_thread(emit)
    until(lambda: handler._pool._waiters._bells)
    assert not emitted.is_set()
    assert handler.stats().lanes["gate"].queued == 2
    gate.go_on.set()
    assert emitted.wait(PATIENCE)
    thread.join()
    report = handler.close()
    assert gate.rows == [0, 1, 2, 3]
    assert report.ok
    assert handler.stats().waits.queue > 0


def test_a_stalled_lane_under_block_costs_the_loop_its_stall_timeout_once(placement: Placement, handlers: Make) -> None:
    gate = Gate()
    handler = handlers(background(gate, placement=placement, queue_size=2), stall_timeout=0.2)
    handler.state_dict()  # a process has started
    began = time.perf_counter()
    fire(handler, 100)
    assert 0.1 < time.perf_counter() - began < 1.0
    waited = handler.stats().waits.queue
    stats = handler.stats().lanes["gate"]
    assert stats.stalled
    assert (stats.queued, stats.running, stats.dropped) == (2, "on_batch_end", 97)
    fire(handler, 100)
    assert handler.stats().waits.queue == waited
    gate.go_on.set()
    until(lambda: handler.stats().lanes["gate"].delivered == 3)
    report = handler.close()
    assert gate.rows == [1, 2, 3]
    assert (report.delivered, report.dropped, report.lost) == (3, 197, 0)
