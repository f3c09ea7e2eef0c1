"""A thread lane that may hold the interpreter is told of, once; one that waits is not."""

from __future__ import annotations

import logging
import os
import pickle
import queue
import time
from typing import Any

import anyio
import pytest

from async_trainer import background
from async_trainer.process.child import Child
from async_trainer.runtime import burden
from async_trainer.runtime.burden import Burden
from async_trainer.runtime.lane import Lane
from async_trainer.runtime.placement import thread
from tests.options.doubles import PATIENCE, Make


class Clocks:
    """A wall clock and a CPU clock that only hooks move."""

    def __init__(self) -> None:
        self.wall = self.cpu = 0.0


class Works:
    """Takes ``wall`` seconds for each event, ``cpu`` of them on a core."""

    def __init__(self, clocks: Clocks, *, wall: float, cpu: float) -> None:
        self.clocks, self.took = clocks, (wall, cpu)

    def on_batch_end(self, *, n: int) -> None:
        self.clocks.wall += self.took[0]
        self.clocks.cpu += self.took[1]

    def on_train_start(self) -> None:
        self.on_batch_end(n=0)


@pytest.fixture
def clocks(monkeypatch: pytest.MonkeyPatch) -> Clocks:
    made = Clocks()
    monkeypatch.setattr(thread, "clock", lambda: made.wall)
    monkeypatch.setattr(thread, "cpu_clock", lambda: made.cpu)
    return made


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


def run(handlers: Make, callback: Any, events: int, **options: Any) -> Any:
    """Fire ``events`` while nobody waits, and return the handler when all are handled."""
    handler = handlers(background(callback, name="figures", **options))
    for n in range(events):
        handler.call_event("on_batch_end", n=n)
    until = time.monotonic() + PATIENCE
    while handler.stats().lanes["figures"].delivered < events and time.monotonic() < until:
        time.sleep(0.001)  # not a flush: in one the loop waits, and loses nothing
    handler.flush()  # the last batch is added up, too
    return handler


def test_a_lane_that_uses_much_cpu_is_told_of_once_with_the_figures_and_the_remedy(
    handlers: Make, clocks: Clocks, caplog: pytest.LogCaptureFixture
) -> None:
    handler = run(handlers, Works(clocks, wall=0.5, cpu=0.4), 30, overflow="drop_newest")  # a batch is one event
    (told,) = warnings(caplog)
    assert told.startswith("lane figures may hold the interpreter: its hooks have used 2.0 s of CPU in 2.5 s (80 %)")
    assert 'placement="process"' in told
    lane = handler.stats().lanes["figures"]
    assert lane.cpu_seconds == pytest.approx(12.0)
    assert lane.hook_seconds == pytest.approx(15.0)
    assert " 12.0/15.0 s " in str(handler.stats())


@pytest.mark.parametrize(
    ("wall", "cpu"), [(1.0, 0.01), (1.0, 0.2)], ids=["it sleeps or waits for a network", "it waits for a disk"]
)
def test_a_lane_that_waits_is_not_told_of(
    wall: float, cpu: float, handlers: Make, clocks: Clocks, caplog: pytest.LogCaptureFixture
) -> None:
    run(handlers, Works(clocks, wall=wall, cpu=cpu), 300, overflow="drop_newest")
    assert not warnings(caplog)


def test_what_comes_once_per_run_is_not_told_of(
    handlers: Make, clocks: Clocks, caplog: pytest.LogCaptureFixture
) -> None:
    handler = handlers(background(Works(clocks, wall=10.0, cpu=10.0)))
    handler.call_event("on_train_start")
    handler.flush()
    assert not warnings(caplog)
    assert handler.stats().lanes["works"].cpu_seconds == 10.0


def test_what_is_handled_while_the_loop_waits_for_it_is_not_told_of(
    handlers: Make, clocks: Clocks, caplog: pytest.LogCaptureFixture
) -> None:
    handler = handlers(background(Works(clocks, wall=1.0, cpu=1.0)))
    with handler._pool.hold():
        for n in range(30):
            handler.call_event("on_batch_end", n=n)
    handler.close()
    assert not warnings(caplog)
    assert handler.stats().lanes["works"].cpu_seconds == 30.0


def test_the_books_of_a_real_hook_are_of_its_thread(handlers: Make) -> None:
    class Spins:
        def on_batch_end(self, *, n: int) -> None:
            until = time.thread_time() + 0.05
            while time.thread_time() < until:
                pass

    class Sleeps:
        def on_batch_end(self, *, n: int) -> None:
            time.sleep(0.05)

    handler = handlers(background(Spins()), background(Sleeps()))
    handler.call_event("on_batch_end", n=1)
    handler.flush()
    handler.close()
    lanes = handler.stats().lanes
    assert 0.05 <= lanes["spins"].cpu_seconds <= lanes["spins"].hook_seconds
    assert lanes["sleeps"].cpu_seconds < 0.05 <= lanes["sleeps"].hook_seconds


def test_a_process_lane_is_not_told_of_though_its_hooks_run_on_a_thread_there(
    handlers: Make, caplog: pytest.LogCaptureFixture
) -> None:
    class Spins:
        def __init__(self, seconds: float) -> None:
            self.seconds = seconds

        def on_batch_end(self, *, n: int) -> None:
            until = time.thread_time() + self.seconds
            while time.thread_time() < until:
                pass

    handler = handlers(background(Spins(burden.SECONDS / 2), placement="process"))
    for n in range(3):
        handler.call_event("on_batch_end", n=n)
    handler.flush()
    assert handler.close().delivered == 3
    assert not warnings(caplog)


def test_the_table_leaves_out_what_is_not_measured(handlers: Make) -> None:
    class Posts:
        async def on_batch_end(self, *, n: int) -> None:
            await anyio.sleep(0.05)

        async def on_epoch_end(self, *, n: int) -> None:
            await anyio.sleep(0.05)
            raise ValueError

    handler = handlers(background(Posts(), name="posts"))
    assert "/" not in str(handler.stats()).splitlines()[2]
    handler.call_event("on_batch_end", n=1)
    handler.call_event("on_epoch_end", n=1)  # what fails has taken its time, too
    handler.flush()
    lane = handler.stats().lanes["posts"]
    assert 0.1 <= lane.hook_seconds < PATIENCE
    assert lane.cpu_seconds == 0.0
    assert " –/" in str(handler.stats()).splitlines()[2]


def spun(seconds: float) -> None:
    until = time.thread_time() + seconds
    while time.thread_time() < until:
        pass


def test_a_process_tells_what_its_hooks_took_with_what_it_has_handled(handlers: Make) -> None:
    class Works:
        def on_batch_end(self, *, n: int) -> None:
            spun(0.05)
            time.sleep(0.05)

    handler = handlers(background(Works(), placement="process", name="works"))
    for n in range(3):
        handler.call_event("on_batch_end", n=n)
    handler.flush()
    lane = handler.stats().lanes["works"]
    assert 0.15 <= lane.cpu_seconds < lane.hook_seconds
    assert lane.hook_seconds >= 0.3
    assert f"{lane.cpu_seconds:.1f}/{lane.hook_seconds:.1f} s" in str(handler.stats())
    before = lane.hook_seconds
    handler.call_event("on_batch_end", n=4)
    until = time.monotonic() + PATIENCE  # nobody flushes: a process that rests has told all the same
    while handler.stats().lanes["works"].hook_seconds < before + 0.1 and time.monotonic() < until:
        time.sleep(0.01)
    handler.call_event("on_batch_end", n=5)
    handler.close()  # nor when it ends
    assert handler.stats().lanes["works"].hook_seconds >= before + 0.2


def test_what_is_added_up_after_the_answer_has_gone_is_told_a_moment_later() -> None:
    sent: queue.SimpleQueue[Any] = queue.SimpleQueue()

    class Wire:
        def send(self, frame: bytes) -> None:
            sent.put(pickle.loads(frame))
            if sent.qsize() == 1:
                child.lane.burden.add(0.0, 1.5, 0.5, beside_loop=False)

        def __getattr__(self, name: str) -> Any:
            return lambda: None

    child = Child(Wire())  # type: ignore[arg-type]
    child.lane = Lane("works")
    child._answering.start()
    child.settled(None, None)
    first = sent.get(timeout=PATIENCE)
    assert [kind for kind, *_ in first] == ["settled"]
    assert sent.get(timeout=PATIENCE) == [("took", 1.5, 0.5)]
    child._ending = True  # not _leave(): that ends the process, if it has to
    child._ring()
    child._answering.join(PATIENCE)


def test_what_a_killed_process_took_is_not_counted_twice(handlers: Make) -> None:
    class Dies:
        def on_batch_end(self, *, n: int) -> None:
            spun(0.1)
            if n == 1:
                os._exit(1)

        def state_dict(self) -> dict[str, int]:
            return {}

    handler = handlers(background(Dies(), placement="process", name="dies", on_error="log"))
    handler.call_event("on_batch_end", n=0)
    handler.flush()
    first = handler.stats().lanes["dies"].cpu_seconds
    handler.call_event("on_batch_end", n=1)
    handler.flush()
    lane = handler.stats().lanes["dies"]
    assert lane.restarts >= 1
    assert 0.1 <= first == lane.cpu_seconds  # the process that died in its hook has not told


def add(one: Burden, *, began: float, wall: float, cpu: float) -> bool:
    return one.add(began, wall, cpu, beside_loop=True)


def test_little_cpu_or_little_of_the_run_is_not_much() -> None:
    one = Burden()
    assert not add(one, began=0.0, wall=1.9, cpu=1.9)
    assert add(one, began=1.9, wall=0.1, cpu=0.1)
    assert not add(one, began=2.0, wall=9.0, cpu=9.0)  # once
    rare = Burden()
    assert not any(add(rare, began=20.0 * n, wall=1.5, cpu=1.5) for n in range(100))
