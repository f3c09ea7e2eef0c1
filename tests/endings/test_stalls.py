"""A sink that hangs costs the run ``stall_timeout``, once."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import Any

import anyio
import pytest

from async_trainer import Callback, CallbacksHandler, background
from async_trainer.runtime import loop
from tests.endings.waiting import until


class Hangs(Callback):
    def __init__(self) -> None:
        self.entered = threading.Event()
        self.go = threading.Event()
        self.seen: list[int] = []

    def on_batch_end(self, *, step: int) -> None:
        self.entered.set()
        assert self.go.wait(60)
        self.seen.append(step)


class HangsAsync(Hangs):
    async def on_batch_end(self, *, step: int) -> None:  # type: ignore[override]
        self.entered.set()
        while not self.go.is_set():
            await anyio.sleep(0.001)
        self.seen.append(step)


class Quick(Callback):
    def __init__(self) -> None:
        self.seen: list[int] = []

    def on_batch_end(self, *, step: int) -> None:
        self.seen.append(step)


@pytest.fixture(params=["thread", "asyncio", "trio"])
def hangs(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hangs]:
    if request.param != "thread":
        monkeypatch.setattr(loop, "backend", request.param)
    callback = Hangs() if request.param == "thread" else HangsAsync()
    yield callback
    callback.go.set()


@pytest.mark.parametrize("overflow", ["block", "drop_oldest", "drop_newest", "latest"])
def test_a_sink_that_hangs_costs_the_whole_run_stall_timeout_once(hangs: Hangs, overflow: Any) -> None:
    quick = Quick()
    handler = CallbacksHandler(
        [background(hangs, name="hangs", queue_size=5, overflow=overflow), background(quick)], stall_timeout=0.5
    )
    began = time.monotonic()
    for step in range(2000):
        handler.call_event("on_batch_end", step=step)
    handler.flush()
    report = handler.close()
    took = time.monotonic() - began
    assert 0.4 < took < 4
    assert quick.seen == list(range(2000))
    assert report.stalled == ("hangs",)
    lane = handler.stats().lanes["hangs"]
    assert lane.pushed == 2000
    assert lane.lost <= 6  # one in the hook, five in the queue
    assert lane.dropped == 2000 - lane.lost
    waited = handler.stats().waits
    assert waited.queue + waited.flush < 1.5


def test_a_lane_that_moves_on_after_a_stall_takes_part_again(hangs: Hangs) -> None:
    handler = CallbacksHandler([background(hangs, name="hangs", queue_size=5)], stall_timeout=0.3)
    for step in range(20):
        handler.call_event("on_batch_end", step=step)
    assert handler.stats().lanes["hangs"].stalled
    hangs.go.set()
    until(lambda: len(hangs.seen) == 6, "it doesn't go on")
    assert not handler.stats().lanes["hangs"].stalled
    for step in range(20, 40):
        handler.call_event("on_batch_end", step=step)
    report = handler.close()
    assert hangs.seen == [*range(6), *range(20, 40)]
    assert (report.delivered, report.dropped, report.lost, report.stalled) == (26, 14, 0, ())


def test_stalled_lanes_free_their_slots(hangs: Hangs) -> None:
    others = [hangs, *(Hangs() for _ in range(3))]
    quick = Quick()
    handler = CallbacksHandler(
        [*(background(one, name=f"hangs_{n}") for n, one in enumerate(others)), background(quick)],
        max_workers=2,
        stall_timeout=0.3,
    )
    handler.call_event("on_batch_end", step=0)
    until(lambda: quick.seen == [0], "the lanes that hang have kept all slots")
    for one in others:
        one.go.set()
    until(lambda: all(one.seen == [0] for one in others), "they don't go on")
    assert handler.close().ok


def test_a_lane_that_waits_longer_than_stall_timeout_for_a_slot_is_not_forgotten() -> None:
    class Slow(Callback):
        def __init__(self) -> None:
            self.seen: list[int] = []

        def on_batch_end(self, *, step: int) -> None:
            time.sleep(0.2)
            self.seen.append(step)

    slow = [Slow() for _ in range(4)]
    handler = CallbacksHandler(
        [background(one, name=f"slow_{n}") for n, one in enumerate(slow)], max_workers=1, stall_timeout=0.3
    )
    for step in range(3):
        handler.call_event("on_batch_end", step=step)
    until(lambda: all(one.seen == [0, 1, 2] for one in slow), "a lane is dead")
    assert handler.close().ok


def test_a_timeout_on_a_thread_lane_makes_it_stalled_until_the_hook_returns() -> None:
    hangs = Hangs()
    handler = CallbacksHandler([background(hangs, name="hangs", timeout=0.2)], stall_timeout=60)
    for step in range(3):
        handler.call_event("on_batch_end", step=step)
    began = time.monotonic()
    assert handler.flush().stalled == ("hangs",)
    assert time.monotonic() - began < 5
    hangs.go.set()
    until(lambda: hangs.seen == [0, 1, 2], "it doesn't go on")
    assert handler.close().ok


def test_a_timeout_on_an_async_lane_cancels_the_hook(monkeypatch: pytest.MonkeyPatch) -> None:
    for backend in ("asyncio", "trio"):
        monkeypatch.setattr(loop, "backend", backend)
        attempts: list[int] = []

        class Slow(Callback):
            async def on_batch_end(self, *, step: int) -> None:
                attempts.append(step)  # noqa: B023
                if step == 1:
                    await anyio.sleep(1000)

        handler = CallbacksHandler([background(Slow(), timeout=0.1, retries=1, backoff=0.01)])
        for step in range(3):
            handler.call_event("on_batch_end", step=step)
        report = handler.close()
        assert attempts == [0, 1, 1, 2]
        assert (report.delivered, report.failed) == (2, 1)
        assert isinstance(report.errors[0].error, TimeoutError)


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_an_async_hook_that_is_cancelled_by_what_it_awaits_has_failed(
    backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import asyncio

    monkeypatch.setattr(loop, "backend", backend)
    seen: list[int] = []

    class Cancelled(Callback):
        async def on_batch_end(self, *, step: int) -> None:
            if step == 0:
                raise asyncio.CancelledError
            if step == 1 and backend == "asyncio":
                task = asyncio.ensure_future(asyncio.sleep(100))
                task.cancel()
                await task
            if step == 2:
                with anyio.CancelScope() as scope:
                    scope.cancel()
                    await anyio.sleep(100)
            if step == 3:
                raise KeyboardInterrupt
            if step == 4:
                raise BaseExceptionGroup("several", [KeyboardInterrupt(), SystemExit(3)])
            await anyio.sleep(0)
            seen.append(step)

    handler = CallbacksHandler([background(Cancelled())], stall_timeout=2)
    for step in range(7):
        handler.call_event("on_batch_end", step=step)
    report = handler.close()
    assert seen == ([2, 5, 6] if backend == "asyncio" else [1, 2, 5, 6])
    assert report.failed == 7 - len(seen)
    assert not report.stalled


def test_retries_with_backoff_are_cut_short_when_close_gives_up() -> None:
    for make in (False, True):

        class Fails(Callback):
            def on_batch_end(self) -> None:
                raise OSError

        class FailsAsync(Callback):
            async def on_batch_end(self) -> None:
                raise OSError

        handler = CallbacksHandler([background(FailsAsync() if make else Fails(), name="x", retries=5, backoff=1000)])
        handler.call_event("on_batch_end")
        began = time.monotonic()
        report = handler.close(timeout=0.1)
        assert time.monotonic() - began < 3
        assert report.failed + report.lost == 1
        until(lambda: not handler._pool.hung, "it waits on")  # noqa: B023
