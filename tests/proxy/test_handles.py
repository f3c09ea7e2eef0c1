"""What a call returns: to be waited for, or ignored."""

from __future__ import annotations

import gc
import threading
import traceback
import weakref
from typing import Any

import pytest

from async_trainer import CallbacksHandler, background
from async_trainer.errors import EventLostError, InsideHookError, StandInError
from async_trainer.proxy.call import CallTask
from tests.proxy.kit import PATIENCE, Gate, Sink, shut


class Thing:
    """Can be referred to weakly, and doesn't reduce to a plain value."""


def test_wait_returns_what_the_call_returned(handler: CallbacksHandler) -> None:
    assert handler.proxy(Sink()).add("loss", 0.5, step=3).wait() == ("loss", 0.5, {"step": 3})


def test_waiting_again_returns_the_same(handler: CallbacksHandler) -> None:
    handle = handler.proxy(Sink()).add(1)
    assert handle.wait() == handle.wait() == (1,)


def test_wait_raises_what_the_call_raised(handler: CallbacksHandler) -> None:
    with pytest.raises(OSError, match="disk full"):
        handler.proxy(Sink()).fail().wait()


def test_waiting_again_for_a_failure_does_not_lengthen_its_traceback(handler: CallbacksHandler) -> None:
    handle = handler.proxy(Sink()).fail()
    lengths = []
    for _ in range(3):
        with pytest.raises(OSError, match="disk full") as raised:
            handle.wait()
        lengths.append(len(traceback.extract_tb(raised.value.__traceback__)))
    assert len(set(lengths)) == 1


def test_a_call_that_is_done_is_in_the_books(handler: CallbacksHandler, monkeypatch: pytest.MonkeyPatch) -> None:
    books: list[tuple[int, int]] = []
    settled = CallTask.settled

    def look(task: CallTask, *how: Any) -> None:
        books.append((task.lane.delivered, task.lane.failed))
        settled(task, *how)

    monkeypatch.setattr(CallTask, "settled", look)
    proxy = handler.proxy(Sink())
    proxy.add(1)
    proxy.fail()
    handler.flush()
    assert books == [(1, 0), (1, 1)]


def test_a_handle_tells_how_its_call_stands_and_never_waits(handler: CallbacksHandler) -> None:
    gate = Gate()
    proxy = handler.proxy(gate, name="writer")
    waits = shut(proxy, gate)
    add, fail = proxy.add(1), proxy.fail()
    assert str(add) == repr(add) == "<handle of writer.add: pending>"
    assert str(waits) == "<handle of writer.wait: pending>"
    gate.opened.set()
    handler.flush()
    assert str(add) == "<handle of writer.add: done>"
    assert str(fail) == "<handle of writer.fail: failed, OSError>"


def test_handles_may_be_ignored_and_the_calls_are_made_in_order(handler: CallbacksHandler) -> None:
    sink = Sink()
    proxy = handler.proxy(sink)
    for number in range(100):
        proxy.add(number)
    handler.flush()
    assert sink.calls == [(number,) for number in range(100)]


def test_a_wait_that_times_out_names_the_lane_and_the_call(handler: CallbacksHandler) -> None:
    gate = Gate()
    proxy = handler.proxy(gate, name="board")
    shut(proxy, gate)
    handle = proxy.add(1)
    with pytest.raises(TimeoutError, match=r"board\.add: wait\(\): not done after 0.01 s; still at work: board"):
        handle.wait(timeout=0.01)
    assert not handle.done
    gate.opened.set()
    assert handle.wait() == (1,)
    assert handle.done


def test_waiting_for_a_stalled_lane_ends_and_names_it() -> None:
    gate = Gate()
    with CallbacksHandler(stall_timeout=0.05) as handler:
        handle = shut(handler.proxy(gate, name="board"), gate)
        with pytest.raises(TimeoutError, match="lane board has stalled"):
            handle.wait()
        gate.opened.set()


def test_a_dropped_call_says_so(handler: CallbacksHandler) -> None:
    gate = Gate()
    proxy = handler.proxy(gate, queue_size=1, overflow="drop_newest")
    shut(proxy, gate)
    kept, dropped = proxy.add(1), proxy.add(2)
    assert dropped.done
    with pytest.raises(EventLostError, match=r"gate\.add was dropped"):
        dropped.wait()
    gate.opened.set()
    assert kept.wait() == (1,)
    assert handler.stats().lanes["gate"].dropped == 1


def test_a_call_that_gave_way_to_a_newer_one_says_so(handler: CallbacksHandler) -> None:
    gate = Gate()
    proxy = handler.proxy(gate, queue_size=1, overflow="drop_oldest")
    shut(proxy, gate)
    older, newer = proxy.add(1), proxy.add(2)
    gate.opened.set()
    with pytest.raises(EventLostError, match=r"gate\.add was dropped"):
        older.wait()
    assert newer.wait() == (2,)


def test_a_call_after_close_is_lost_counted_and_says_so() -> None:
    sink = Sink()
    handler = CallbacksHandler()
    proxy = handler.proxy(sink)
    proxy.add(1)
    handler.close()
    with pytest.raises(EventLostError, match=r"sink\.add was lost"):
        proxy.add(2).wait()
    assert sink.calls == [(1,)]
    assert handler.stats().lanes["sink"].lost == 1


def test_what_a_close_with_a_deadline_left_behind_says_so() -> None:
    gate = Gate()
    handler = CallbacksHandler()
    proxy = handler.proxy(gate)
    running = shut(proxy, gate)
    queued = proxy.add(1)
    report = handler.close(timeout=0.01)
    for handle in (running, queued):
        with pytest.raises(EventLostError, match="was lost"):
            handle.wait()
    assert (report.delivered, report.lost) == (0, 2)
    gate.opened.set()


class Waits:
    """A callback whose hook waits for a proxied call."""

    def __init__(self, proxy: Any) -> None:
        self.proxy = proxy
        self.errors: list[BaseException] = []

    def on_batch_end(self) -> None:
        handle = self.proxy.add(1)
        try:
            handle.wait()
        except InsideHookError as error:
            self.errors.append(error)


@pytest.mark.parametrize("synchronous", [False, True])
def test_waiting_inside_a_hook_raises_also_where_the_call_is_done(synchronous: bool) -> None:
    with CallbacksHandler(synchronous=synchronous) as handler:
        callback = Waits(handler.proxy(Sink()))
        handler.add_callbacks([background(callback)])
        handler.call_event("on_batch_end")
        handler.flush()
    assert len(callback.errors) == 1
    assert "sink.add: wait() inside a background hook" in str(callback.errors[0])


def test_a_result_lives_as_long_as_its_handle(handler: CallbacksHandler) -> None:
    results: list[weakref.ref[Thing]] = []

    def make(handled: threading.Event) -> Thing:
        thing = Thing()
        results.append(weakref.ref(thing))
        return thing

    proxy = handler.proxy(lambda: make(threading.Event()))
    handle = proxy()
    proxy()
    handler.flush()
    gc.collect()
    assert [ref() is not None for ref in results] == [True, False]
    del handle
    gc.collect()
    assert results[0]() is None


def test_captured_arguments_are_let_go_when_their_call_is_made(handler: CallbacksHandler) -> None:
    seen: list[weakref.ref[Thing]] = []
    proxy = handler.proxy(lambda thing: seen.append(weakref.ref(thing)))
    handle = proxy(Thing())
    handle.wait()
    handler.flush()
    gc.collect()
    assert seen[0]() is None
    assert handle.args == ()


def test_a_handle_given_to_a_later_call_of_its_lane_stands_for_the_result(handler: CallbacksHandler) -> None:
    sink = Sink()
    proxy = handler.proxy(sink)
    proxy.add("second", {"nested": [proxy.add("first")]})
    handler.flush()
    assert sink.calls == [("first",), ("second", {"nested": [("first",)]})]


def test_a_handle_given_to_a_call_of_another_lane_fails_it_and_says_why(handler: CallbacksHandler) -> None:
    first, second = handler.proxy(Sink(), name="first"), handler.proxy(Sink(), name="second")
    with pytest.raises(StandInError, match=r"handle of first\.add.*known in its own lane only"):
        second.add(first.add(1)).wait()


def test_a_call_that_is_given_the_handle_of_a_failed_one_fails_as_that_did(handler: CallbacksHandler) -> None:
    sink = Sink()
    proxy = handler.proxy(sink)
    with pytest.raises(OSError, match="disk full"):
        proxy.add(proxy.fail()).wait()
    assert sink.calls == [("fail",)]


def test_any_thread_may_wait(handler: CallbacksHandler) -> None:
    gate = Gate()
    handle = shut(handler.proxy(gate), gate)
    waited: list[Any] = []
    threads = [threading.Thread(target=lambda: waited.append(handle.wait(PATIENCE))) for _ in range(3)]
    for thread in threads:
        thread.start()
    gate.opened.set()
    for thread in threads:
        thread.join(PATIENCE)
    assert waited == [None, None, None]
