"""After close(): no thread, no file descriptor, the interpreter as it was."""

from __future__ import annotations

import gc
import os
import sys
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from async_trainer import Callback, CallbacksHandler, background
from async_trainer.runtime import exits, loop
from async_trainer.runtime.interpreter import switch_interval
from tests.endings.waiting import until


class Plain(Callback):
    def on_batch_end(self, **kwargs: Any) -> None: ...


class Async(Callback):
    async def on_batch_end(self, **kwargs: Any) -> None: ...


class Waits(Callback):
    def __init__(self) -> None:
        self.entered = threading.Event()
        self.go = threading.Event()

    def on_batch_end(self, **kwargs: Any) -> None:
        self.entered.set()
        assert self.go.wait(20)


others: set[Any] = set()


@pytest.fixture(autouse=True)
def pools_of_other_tests() -> None:
    others.clear()
    others.update(exits.open_pools())


def ours() -> set[Any]:
    """The pools that this test has left open."""
    return set(exits.open_pools()) - others


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_threads_are_as_before(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "backend", backend)
    before = set(threading.enumerate())
    handler = CallbacksHandler([background([Plain(), Plain(), Async(), Async()])])
    handler.proxy(print, name="print")("", end="")
    handler.call_event("on_batch_end")
    assert set(threading.enumerate()) > before
    handler.close()
    assert set(threading.enumerate()) <= before
    assert not ours()


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
@pytest.mark.parametrize("end", ["close", "drop", "never started"])
def test_fifty_handlers_leave_no_file_descriptor_and_no_memory(
    backend: str, end: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "backend", backend)

    def once() -> None:
        handler = CallbacksHandler([background([Plain(), Async()])])
        if end != "never started":
            handler.call_event("on_batch_end", x=1)
        if end == "close":
            handler.close()
        del handler
        until(lambda: not ours(), "a pool is left")
        until(lambda: threading.active_count() <= threads, "threads are left")  # fewer: as below

    threads = threading.active_count()
    once()
    gc.collect()
    files = len(os.listdir("/proc/self/fd"))
    objects = count_ours()
    for _ in range(50):
        once()
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) <= files
    assert count_ours() <= objects  # fewer: an earlier test's pool has gone meanwhile


def count_ours() -> int:
    return sum(str(type(item).__module__).startswith("async_trainer.") for item in gc.get_objects())


@pytest.fixture
def interval() -> Iterator[float]:
    before = sys.getswitchinterval()
    sys.setswitchinterval(0.004)
    yield sys.getswitchinterval()
    sys.setswitchinterval(before)


def busy(seconds: float | None = 1e-4) -> tuple[CallbacksHandler, Waits]:
    callback = Waits()
    handler = CallbacksHandler([background(callback)], switch_interval=seconds)
    handler.call_event("on_batch_end")
    callback.entered.wait()
    return handler, callback


def finish(handler: CallbacksHandler, callback: Waits) -> None:
    callback.go.set()
    handler.close()


def test_the_switch_interval_is_set_while_a_thread_lane_is_busy_and_restored(interval: float) -> None:
    handler, callback = busy()
    assert sys.getswitchinterval() == pytest.approx(1e-4)
    callback.go.set()
    handler.flush()
    until(lambda: sys.getswitchinterval() == interval, "it isn't restored when the lane is idle")
    handler.close()
    assert sys.getswitchinterval() == interval


def test_handlers_that_overlap_set_the_switch_interval_once_and_the_last_restores_it(interval: float) -> None:
    first = busy()
    second = busy()
    finish(*first)
    assert sys.getswitchinterval() == pytest.approx(1e-4)
    finish(*second)
    assert sys.getswitchinterval() == interval


def test_a_switch_interval_that_someone_else_has_set_stays(interval: float) -> None:
    handler, callback = busy()
    sys.setswitchinterval(0.002)
    finish(handler, callback)
    assert sys.getswitchinterval() == pytest.approx(0.002)


def test_none_leaves_the_switch_interval_alone(interval: float) -> None:
    handler, callback = busy(None)
    assert sys.getswitchinterval() == interval
    finish(handler, callback)


def test_async_lanes_leave_the_switch_interval_alone(interval: float) -> None:
    handler = CallbacksHandler([background(Async())], switch_interval=1e-4)
    for _ in range(100):
        handler.call_event("on_batch_end")
        assert sys.getswitchinterval() == interval
    handler.close()


def test_a_lane_that_hangs_at_the_end_gives_the_switch_interval_back(interval: float) -> None:
    handler, callback = busy()
    handler.close(timeout=0.01)
    restored = sys.getswitchinterval()
    callback.go.set()
    assert restored == interval
    until(lambda: not ours(), "it doesn't end")
    assert sys.getswitchinterval() == interval
    assert not switch_interval._busy


def test_many_threads_may_fire_the_first_event() -> None:
    before = set(threading.enumerate())

    def lanes() -> int:
        return sum(t.name.startswith("async_trainer-") for t in threading.enumerate() if t not in before)

    for _ in range(30):
        seen: list[int] = []

        class Sees(Callback):
            def on_batch_end(self, *, n: int) -> None:
                seen.append(n)  # noqa: B023

        handler = CallbacksHandler([background(Sees()), background(Plain())])
        gate = threading.Barrier(8)

        def fire(n: int, handler: CallbacksHandler = handler, gate: threading.Barrier = gate) -> None:
            gate.wait()
            handler.call_event("on_batch_end", n=n)

        threads = [threading.Thread(target=fire, args=(n,)) for n in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert lanes() == 3
        handler.close()
        assert sorted(seen) == list(range(8))
        assert lanes() == 0
