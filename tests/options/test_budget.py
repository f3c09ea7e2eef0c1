"""The byte budget of the snapshots."""

from __future__ import annotations

import random
import threading
import time
from typing import Any

from async_trainer import background
from async_trainer.callback import Placement
from tests.options.doubles import PATIENCE, Gate, Make, Output, array, in_thread, until


def test_small_values_are_outside_the_budget(handlers: Make) -> None:
    handler = handlers(background(Output()), max_snapshot_bytes=1)
    with handler._pool.hold():
        for _ in range(10):
            handler.call_event("on_batch_end", output=array(64 * 1024))
        assert handler.stats().snapshot_bytes == 0
    assert handler.close().ok


def test_the_loop_waits_for_room_in_the_budget_and_nothing_is_dropped(placement: Placement, handlers: Make) -> None:
    big = Gate()
    handler = handlers(background(big, placement=placement), max_snapshot_bytes=250_000)
    handler.call_event("on_batch_end", n=0, output=array(100_000))
    handler.call_event("on_batch_end", n=1, output=array(100_000))
    assert big.entered.wait(PATIENCE)
    assert handler.stats().snapshot_bytes == 200_000
    emitted = threading.Event()

    def emit() -> None:
        handler.call_event("on_batch_end", n=2, output=array(100_000))
        emitted.set()

    thread = in_thread(emit)
    until(lambda: handler._pool._waiters._bells)
    assert not emitted.is_set()
    assert handler.stats().snapshot_bytes == 200_000
    big.go_on.set()
    assert emitted.wait(PATIENCE)
    thread.join()
    assert handler.close().ok
    assert big.rows == [0, 1, 2]
    assert handler.stats().waits.budget > 0
    assert handler.stats().snapshot_bytes == 0


def test_the_budget_is_never_exceeded_save_by_one_snapshot_that_is_larger(within: Placement, handlers: Make) -> None:
    sizes: list[tuple[int, int]] = []

    class Looks:
        def on_batch_end(self, *, output: Any) -> None:
            sizes.append((handler.stats().snapshot_bytes, output.nbytes))

    limit = 400_000
    handler = handlers(background([Looks(), Looks()], placement=within), max_snapshot_bytes=limit)
    generator = random.Random(1)
    for _ in range(300):
        handler.call_event("on_batch_end", output=array(generator.choice([70_000, 100_000, 150_000, 350_000, 900_000])))
        sizes.append((handler.stats().snapshot_bytes, 0))
    assert handler.close().delivered == 600
    assert {used for used, _ in sizes if used > limit} == {900_000}  # which went alone
    assert handler.stats().snapshot_bytes == 0


def test_where_the_holders_have_stalled_what_finds_no_room_is_dropped_and_counted(
    placement: Placement, handlers: Make
) -> None:
    big, rows = Gate(), Output()
    handler = handlers(
        background(big, placement="thread"), background(rows, placement=placement),
        max_snapshot_bytes=150_000, stall_timeout=0.2,
    )  # fmt: skip
    handler.state_dict()  # a process has started
    began = time.perf_counter()
    for n in range(20):
        handler.call_event("on_batch_end", n=n, output=array(100_000))
    assert 0.1 < time.perf_counter() - began < 1.0  # its stall_timeout, once
    handler.flush()
    lanes = handler.stats().lanes
    assert (lanes["gate"].dropped, lanes["output"].dropped) == (19, 19)  # all or nothing
    handler.call_event("on_batch_end", n=20, output=array(100))  # small ones go on
    big.go_on.set()
    until(lambda: big.rows == [0, 20])
    report = handler.close()
    assert len(rows.rows) == 2
    assert (report.delivered, report.dropped) == (4, 38)


def test_a_lane_that_moves_but_holds_nothing_of_the_budget_is_not_waited_for(handlers: Make) -> None:
    class Busy:
        def on_epoch_end(self) -> None:
            threading.Event().wait(0.02)  # slow, not stalled

    big = Gate()
    handler = handlers(background(big, timeout=0.1), background(Busy()), max_snapshot_bytes=150_000)
    handler.call_event("on_batch_end", n=0, output=array(100_000))
    for _ in range(250):
        handler.call_event("on_epoch_end")
    began = time.perf_counter()
    handler.call_event("on_batch_end", n=1, output=array(100_000))
    assert time.perf_counter() - began < 1.0  # not the 5 s that the other lane has to do
    assert handler.stats().lanes["gate"].dropped == 1
    big.go_on.set()
    handler._close(0.0)


def test_an_event_that_comes_once_per_run_waits_for_room_and_is_never_dropped(handlers: Make) -> None:
    class Ends(Gate):
        def on_train_end(self, *, output: Any) -> None:
            self.rows.append("end")

    ends = Ends()
    handler = handlers(background(ends), max_snapshot_bytes=150_000)
    handler.call_event("on_batch_end", n=0, output=array(100_000))
    thread = in_thread(lambda: handler.call_event("on_train_end", output=array(100_000)))
    until(lambda: handler._pool._waiters._bells)
    assert handler.stats().snapshot_bytes == 100_000
    ends.go_on.set()
    thread.join()
    assert handler.close().ok
    assert ends.rows == [0, "end"]
    stalled = Ends()
    handler = handlers(background(stalled, timeout=0.05), max_snapshot_bytes=150_000)
    handler.call_event("on_batch_end", n=0, output=array(100_000))
    handler.call_event("on_train_end", output=array(100_000))  # there is no room, and none to come
    assert handler.stats().lanes["ends"].queued == 1
    stalled.go_on.set()
    until(lambda: stalled.rows == [0, "end"])


def test_hooks_are_admitted_over_the_budget_as_they_would_wait_for_themselves(
    within: Placement, handlers: Make
) -> None:
    class Fires:
        def on_batch_end(self, *, output: Any) -> None:
            for _ in range(3):
                handler.call_event("on_epoch_end", output=output)
            self.held = handler.stats().snapshot_bytes

        def on_epoch_end(self, *, output: Any) -> None:
            assert output.nbytes == 100_000

    fires = Fires()
    handler = handlers(background(fires, placement=within), max_snapshot_bytes=150_000)
    handler.call_event("on_batch_end", output=array(100_000))
    handler.flush()
    assert handler.close().delivered == 4
    assert fires.held == 400_000
