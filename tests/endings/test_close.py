"""close(), flush() and barrier.wait(): what they wait for, and when they give up."""

from __future__ import annotations

import contextlib
import copy
import logging
import pickle
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import anyio
import pytest

from async_trainer import Callback, CallbacksHandler, background
from async_trainer.errors import InsideHookError, LaneError
from async_trainer.runtime import exits, loop
from tests.endings.waiting import until


class Held(Callback):
    """Handles nothing until ``go`` is set."""

    def __init__(self) -> None:
        self.entered = threading.Event()
        self.go = threading.Event()
        self.seen: list[int] = []

    def on_batch_end(self, *, step: int) -> None:
        self.entered.set()
        assert self.go.wait(30)
        self.seen.append(step)


class HeldAsync(Held):
    async def on_batch_end(self, *, step: int) -> None:  # type: ignore[override]
        self.entered.set()
        while not self.go.is_set():
            await anyio.sleep(0.001)
        self.seen.append(step)


@pytest.fixture(params=["thread", "asyncio", "trio"])
def held(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Held]:
    if request.param != "thread":
        monkeypatch.setattr(loop, "backend", request.param)
    callback = Held() if request.param == "thread" else HeldAsync()
    yield callback
    callback.go.set()


def emit(handler: CallbacksHandler, steps: int, first: int = 0) -> None:
    for step in range(first, first + steps):
        handler.call_event("on_batch_end", step=step)


def test_close_waits_until_the_lanes_are_empty(held: Held) -> None:
    handler = CallbacksHandler([background(held, name="held")])
    emit(handler, 50)
    threading.Timer(0.1, held.go.set).start()
    report = handler.close()
    assert held.seen == list(range(50))
    assert (report.delivered, report.lost, report.ok) == (50, 0, True)


def test_close_is_idempotent(held: Held) -> None:
    held.go.set()
    handler = CallbacksHandler([background(held, name="held")])
    emit(handler, 3)
    report = handler.close()
    assert handler.close() is report
    with pytest.raises(ValueError, match="closed"), handler:
        pass


def test_closing_a_handler_that_never_started_does_nothing() -> None:
    before = threading.active_count()
    assert CallbacksHandler([background(Held())]).close().ok
    assert threading.active_count() == before


def test_close_with_a_timeout_loses_the_rest_and_counts_it(held: Held, caplog: pytest.LogCaptureFixture) -> None:
    handler = CallbacksHandler([background(held, name="held")])
    emit(handler, 50)
    held.entered.wait()
    began = time.monotonic()
    report = handler.close(timeout=0.1)
    assert time.monotonic() - began < 3
    assert (report.delivered, report.lost, report.ok) == (0, 50, False)
    assert "lost by lane: held 50" in caplog.text
    assert handler.stats().lanes["held"].pushed == 50


def test_what_ends_after_close_gave_up_is_counted_as_delivered_and_the_threads_go() -> None:
    before = set(threading.enumerate())
    held = Held()
    handler = CallbacksHandler([background(held, name="held")])
    emit(handler, 50)
    held.entered.wait()
    assert handler.close(timeout=0.05).lost == 50
    assert not handler._pool.loop.alive, "the loop has a grace of its own, whatever the hook has used up"
    assert handler._pool in exits.open_pools(), "the exit must know that somebody is inside a hook"
    held.go.set()
    until(lambda: set(threading.enumerate()) <= before, "threads are left")
    lane = handler.stats().lanes["held"]
    assert (held.seen, lane.delivered, lane.lost, lane.pushed) == ([0], 1, 49, 50)
    assert handler._pool not in exits.open_pools()


def test_an_async_hook_is_cancelled_when_close_gives_up(monkeypatch: pytest.MonkeyPatch) -> None:
    for backend in ("asyncio", "trio"):
        monkeypatch.setattr(loop, "backend", backend)
        before = set(threading.enumerate())
        held = HeldAsync()
        handler = CallbacksHandler([background(held, name="held")])
        emit(handler, 3)
        held.entered.wait()
        report = handler.close(timeout=0.05)
        assert (report.delivered, report.failed, report.lost) == (0, 0, 3)
        assert set(threading.enumerate()) <= before
        assert handler._pool not in exits.open_pools()


def test_close_returns_with_a_stalled_lane_named(held: Held) -> None:
    other = Held()
    other.go.set()
    handler = CallbacksHandler([background(held, name="held"), background(other, name="other")], stall_timeout=0.3)
    emit(handler, 10)
    began = time.monotonic()
    report = handler.close()
    assert 0.2 < time.monotonic() - began < 4
    assert report.stalled == ("held",)
    assert other.seen == list(range(10))
    assert (report.delivered, report.lost) == (10, 10)


def test_two_threads_may_close_and_both_wait(held: Held) -> None:
    handler = CallbacksHandler([background(held, name="held")])
    emit(handler, 50)
    held.entered.wait()
    reports: list[Any] = []
    threads = [threading.Thread(target=lambda: reports.append(handler.close())) for _ in range(3)]
    for thread in threads:
        thread.start()
    until(lambda: len(handler._pool._waiters._bells) == 3, "they don't wait")
    held.go.set()
    for thread in threads:
        thread.join()
    assert [(report.delivered, report.lost) for report in reports] == [(50, 0)] * 3


def test_events_after_close_are_lost_counted_and_logged_once(held: Held, caplog: pytest.LogCaptureFixture) -> None:
    held.go.set()
    handler = CallbacksHandler([background(held, name="held")])
    emit(handler, 5)
    handler.close()
    emit(handler, 1000, first=5)
    assert handler.stats().lanes["held"].lost == 1000
    assert handler.stats().lanes["held"].pushed == 1005
    assert caplog.text.count("came after close()") == 1


def test_what_other_threads_emit_while_close_waits_is_lost_and_what_hooks_emit_is_not() -> None:
    class Emits(Held):
        def on_batch_end(self, *, step: int) -> None:
            super().on_batch_end(step=step)
            handler.call_event("on_epoch_end", step=step)

    class Hears(Callback):
        seen: list[int] = []  # noqa: RUF012

        def on_epoch_end(self, *, step: int) -> None:
            self.seen.append(step)

    emits, hears = Emits(), Hears()
    handler = CallbacksHandler([background(emits), background(hears)])
    emit(handler, 5)
    emits.entered.wait()
    closing = threading.Thread(target=handler.close)
    closing.start()
    until(lambda: handler._pool.closed, "it doesn't close")
    emit(handler, 3, first=100)
    emits.go.set()
    closing.join()
    assert emits.seen == hears.seen == [0, 1, 2, 3, 4]
    stats = handler.stats()
    assert (stats.lanes["emits"].lost, stats.lanes["hears"].lost) == (3, 0)


def test_hooks_that_feed_each_other_for_ever_do_not_keep_close_from_returning() -> None:
    class Again(Callback):
        def on_batch_end(self, *, step: int) -> None:
            handler.call_event("on_batch_end", step=step + 1)

    handler = CallbacksHandler([background(Again())])
    emit(handler, 1)
    report = handler.close()
    assert report.delivered
    assert report.lost


def test_flush_times_out_and_names_the_lanes(held: Held) -> None:
    other = Held()
    other.go.set()
    handler = CallbacksHandler([background(held, name="held"), background(other, name="other")])
    emit(handler, 3)
    with pytest.raises(TimeoutError, match=r"flush\(\): not done after 0.05 s; still at work: held$"):
        handler.flush(timeout=0.05)
    with pytest.raises(TimeoutError, match=r"barrier.wait\(\): not done after 0.05 s; still at work: held$"):
        handler.barrier().wait(timeout=0.05)
    held.go.set()
    assert handler.flush(timeout=10).delivered == 6
    handler.close()


def test_flush_returns_with_a_stalled_lane_named_and_costs_nothing_the_second_time(held: Held) -> None:
    handler = CallbacksHandler([background(held, name="held")], stall_timeout=0.3)
    emit(handler, 3)
    assert handler.flush().stalled == ("held",)
    began = time.monotonic()
    assert handler.flush().stalled == ("held",)
    barrier = handler.barrier()
    assert barrier.wait() == {}
    assert barrier.late == ("held",)
    assert time.monotonic() - began < 0.2
    held.go.set()
    until(lambda: barrier.done, "it doesn't go on")
    assert handler.flush().ok
    handler.close()


@pytest.mark.parametrize("wait", ["flush", "close", "barrier", "state_dict", "exit", "load"])
@pytest.mark.parametrize("define", ["thread", "asyncio", "trio"])
def test_waiting_inside_a_hook_raises(wait: str, define: str, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: dict[str, Callable[[], Any]] = {
        "flush": lambda: handler.flush(),
        "close": lambda: handler.close(),
        "barrier": lambda: handler.barrier().wait(),
        "state_dict": lambda: handler.state_dict(),
        "load": lambda: handler.load_state_dict({}),
        "exit": lambda: handler.__exit__(None, None, None),
    }
    raised: list[BaseException] = []

    def call() -> None:
        try:
            calls[wait]()
        except BaseException as error:
            raised.append(error)

    class Waits(Callback):
        def on_batch_end(self) -> None:
            call()

    class WaitsAsync(Callback):
        async def on_batch_end(self) -> None:
            call()
            await anyio.to_thread.run_sync(call)

    if define != "thread":
        monkeypatch.setattr(loop, "backend", define)
    handler = CallbacksHandler([background(Waits() if define == "thread" else WaitsAsync())])
    handler.call_event("on_batch_end")
    handler.close()
    assert [type(error) for error in raised] == [InsideHookError] * (1 if define == "thread" else 2)


class Fails(Callback):
    def on_batch_end(self, *, step: int) -> None:
        raise OSError(f"disk full at {step}")


def test_raise_at_end_raises_once_with_the_cause_and_the_report() -> None:
    handler = CallbacksHandler([background(Fails(), on_error="raise_at_end")])
    emit(handler, 3)
    with pytest.raises(LaneError, match="disk full at 0") as raised:
        handler.close()
    assert isinstance(raised.value.__cause__, OSError)
    assert raised.value.report is not None
    assert raised.value.report.failed == 3
    assert handler.close().failed == 3


def test_raise_after_the_last_event_raises_at_the_end() -> None:
    handler = CallbacksHandler([background(Fails(), on_error="raise")])
    emit(handler, 1)
    with pytest.raises(LaneError, match="disk full at 0"):
        handler.close()
    handler.close()


def test_an_earlier_exception_is_never_masked(caplog: pytest.LogCaptureFixture) -> None:
    for on_error in ("raise_at_end", "raise"):
        caplog.clear()
        with (  # noqa: PT012
            pytest.raises(ValueError, match="the loop's own") as raised,
            CallbacksHandler([background(Fails(), on_error=on_error)]) as handler,
        ):
            emit(handler, 1)
            raise ValueError("the loop's own")
        assert raised.value.__cause__ is None
        assert "disk full" in caplog.text


def test_a_signal_handler_may_emit_whatever_it_interrupts() -> None:
    seen: list[int] = []

    class Sees(Callback):
        def on_batch_end(self, *, step: int) -> None:
            seen.append(step)

    handler = CallbacksHandler([background(Sees(), queue_size=10**6)], stall_timeout=5)
    emitted = iter(range(-1, -(10**6), -1))
    last = 0
    over = False

    def interrupt(number: int, frame: Any) -> None:
        nonlocal last
        if over:  # it came just before the timer was stopped: armed again, it would come when nobody handles it
            return
        last = next(emitted)
        handler.call_event("on_batch_end", step=last)
        signal.setitimer(signal.ITIMER_REAL, 1e-4)

    before = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, 1e-4)
    try:
        emit(handler, 20_000)
    finally:
        over = True
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert last < -10, "no signal came: the test shows nothing"
    report = handler.close()
    assert [step for step in seen if step >= 0] == list(range(20_000))
    assert sorted(step for step in seen if step < 0) == list(range(last, 0))
    assert report.ok


class Odd(Callback):
    """For pickling: of a class that can be found."""

    def on_batch_end(self, **kwargs: Any) -> None: ...


@pytest.mark.parametrize("ended", [False, True])
def test_a_copy_of_a_handler_is_its_unstarted_list(ended: bool) -> None:
    handler = CallbacksHandler([background(Odd(), queue_size=7), Odd()], events=["on_rollout_end"], stall_timeout=5)
    handler.call_event("on_batch_end")
    if ended:
        handler.close()
    for make in (copy.copy, copy.deepcopy, lambda one: pickle.loads(pickle.dumps(one))):
        before = threading.active_count()
        other = make(handler)
        assert threading.active_count() == before
        assert other.stats().lanes["odd"].pushed == 0
        assert other.stats().lanes["odd"].size == 7
        with other:
            other.call_event("on_batch_end")
            other.call_event("on_rollout_end")
            assert other.flush().delivered == 1
        assert threading.active_count() == before
    assert handler.close().delivered == 1


class BadText(Exception):
    def __str__(self) -> str:
        raise RuntimeError("it has no text")

    __repr__ = __str__


@pytest.mark.parametrize("on_error", ["log", "raise", "raise_at_end", "disable"])
@pytest.mark.parametrize("define", ["thread", "asyncio", "trio"])
def test_an_error_without_a_text_is_one_events_failure(
    on_error: str, define: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []

    def handle(step: int) -> None:
        if step < 2:
            raise BadText
        seen.append(step)

    class Bad(Callback):
        def on_batch_end(self, *, step: int) -> None:
            handle(step)

    class BadAsync(Callback):
        async def on_batch_end(self, *, step: int) -> None:
            handle(step)

    if define != "thread":
        monkeypatch.setattr(loop, "backend", define)
    handler = CallbacksHandler(
        [background(Bad() if define == "thread" else BadAsync(), name="bad", on_error=on_error)], stall_timeout=2
    )
    came: list[int] = []  # the others had an error raised in their place
    for step in range(5):
        with contextlib.suppress(LaneError):
            handler.call_event("on_batch_end", step=step)
            came.append(step)
    raised = 5 - len(came)
    try:
        handler.close()
    except LaneError:
        raised += 1
    lane = handler.stats().lanes["bad"]
    assert (lane.failed, lane.lost, lane.queued) == (sum(step < 2 for step in came), 0, 0)
    assert seen == [step for step in came if step >= 2]
    assert raised == {"log": 0, "disable": 0, "raise_at_end": 1}.get(on_error, raised)


def test_a_log_handler_that_raises_is_no_end_of_a_lane() -> None:
    class Raises(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            raise RuntimeError("no log")

    raises = Raises()
    logging.getLogger("async_trainer").addHandler(raises)
    try:
        handler = CallbacksHandler([background(Fails()), background(Held(), name="held")], stall_timeout=0.2)
        emit(handler, 5)
        handler.flush()  # the lane stalls, and the watch, on the loop, logs that
        lane = handler.stats().lanes["fails"]
        assert lane.failed == 5
        assert handler._pool.loop.alive
    finally:
        logging.getLogger("async_trainer").removeHandler(raises)
    handler._attached["held"].callback.go.set()
    assert handler.close().failed == 5
