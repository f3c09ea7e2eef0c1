"""Proxies used from several threads and from within hooks; and how they end."""

from __future__ import annotations

import gc
import multiprocessing
import os
import subprocess
import sys
import textwrap
import threading
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch

from async_trainer import CallbacksHandler, background
from async_trainer.errors import InsideHookError
from tests.proxy.kit import PATIENCE, Gate, Sink, shut


def test_all_calls_run_on_one_thread_that_is_not_the_caller_s(handler: CallbacksHandler) -> None:
    sink = Sink()
    proxy = handler.proxy(sink)
    for number in range(200):
        proxy.add(number)
    handler.flush()
    assert len(sink.threads) == 1
    assert threading.get_ident() not in sink.threads


def test_the_first_call_starts_the_handler() -> None:
    handler = CallbacksHandler()
    sink = Sink()
    proxy = handler.proxy(sink)
    assert proxy.add(1).wait() == (1,)
    handler.close()


def test_a_proxy_made_while_the_handler_runs_works(handler: CallbacksHandler) -> None:
    handler.call_event("on_batch_end")
    first, second = handler.proxy(Sink()), handler.proxy(Sink())
    assert (first.add(1).wait(), second.add(2).wait()) == ((1,), (2,))


def test_calls_of_one_thread_keep_their_order_beside_those_of_others(handler: CallbacksHandler) -> None:
    sink = Sink()
    proxy = handler.proxy(sink, queue_size=16)
    start = threading.Barrier(8)

    def use(name: int) -> None:
        start.wait(PATIENCE)
        for number in range(500):
            proxy.add(name, number)
            proxy.add(name, number, values=[name, number]) if number % 10 == 0 else None

    threads = [threading.Thread(target=use, args=(name,)) for name in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    report = handler.flush()
    assert report.delivered == len(sink.calls) == 8 * 550
    for name in range(8):
        assert [call[1] for call in sink.calls if call[0] == name and len(call) == 2] == list(range(500))


def test_a_call_waits_for_room_and_that_is_counted(handler: CallbacksHandler) -> None:
    gate = Gate()
    proxy = handler.proxy(gate, queue_size=1)
    shut(proxy, gate)
    proxy.add(1)
    threading.Timer(0.05, gate.opened.set).start()
    proxy.add(2)
    assert handler.stats().waits.queue > 0
    handler.flush()
    assert gate.calls == [(1,), (2,)]


# ------------------------------------------------------------------------------------------------------ inside hooks


class Reports:
    """A callback that calls a proxy from its hook."""

    def __init__(self, proxy: Any, times: int, value: Any) -> None:
        self.proxy = proxy
        self.times = times
        self.value = value
        self.done = threading.Event()

    def on_batch_end(self) -> None:
        for number in range(self.times):
            self.proxy.add(number, self.value)
        self.done.set()


@pytest.mark.parametrize("own_lane", [True, False], ids=["its own lane", "another lane"])
def test_calls_from_a_hook_never_wait_for_room_and_are_counted(own_lane: bool) -> None:
    with CallbacksHandler(max_snapshot_bytes=1_000_000) as handler:
        gate, sink = Gate(), Sink()
        lane = "reports" if own_lane else "io"
        held = handler.proxy(gate, lane="io", queue_size=2)
        proxy = handler.proxy(sink, lane=lane, queue_size=2)
        callback = Reports(proxy, 10, torch.zeros(200_000))  # 800 kB each
        handler.add_callbacks([background(callback, lane="reports", queue_size=2 if own_lane else 1024)])
        held.wait()
        handler.call_event("on_batch_end")
        assert callback.done.wait(PATIENCE)
        gate.opened.set()
        report = handler.flush()
        handler.flush()
        assert len(sink.calls) == 10
        assert handler.stats().lanes[lane].over_limit >= 7
        assert (report.dropped, report.failed) == (0, 0)
    assert handler.stats().snapshot_bytes == 0


def test_a_callback_may_hold_a_proxy_whose_handler_sees_the_model(handler: CallbacksHandler) -> None:
    sink = Sink()
    callback = Reports(handler.proxy(sink), 1, "x")
    handler.add_callbacks([background(callback)])
    net = torch.nn.Linear(2, 2)
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    handler.call_event("on_train_start", model=net, optimizers=optimizer)
    handler.call_event("on_batch_end", model=net)
    handler.flush()
    handler.flush()
    assert sink.calls == [(0, "x")]


def test_a_proxy_given_to_an_event_stays_a_proxy(handler: CallbacksHandler) -> None:
    class Callback:
        def on_batch_end(self, *, writer: Any) -> None:
            writer.add("from the hook")

    sink = Sink()
    handler.add_callbacks([background(Callback())])
    handler.call_event("on_batch_end", writer=handler.proxy(sink))
    handler.flush()
    handler.flush()
    assert sink.calls == [("from the hook",)]


def test_an_async_hook_may_return_a_handle(handler: CallbacksHandler) -> None:
    proxy = handler.proxy(Sink())

    class Callback:
        async def on_batch_end(self) -> Any:
            return proxy.add(1)

        def on_epoch_end(self) -> Any:
            return proxy.add(2)

    handler.add_callbacks([background(Callback())])
    handler.call_event("on_batch_end")
    handler.call_event("on_epoch_end")
    report = handler.flush()
    assert report.failed == 0


# ----------------------------------------------------------------------------------------------------- synchronous


def test_in_synchronous_mode_a_call_is_made_and_raises_on_the_spot() -> None:
    sink = Sink()
    with CallbacksHandler(synchronous=True) as handler:
        proxy = handler.proxy(sink)
        assert proxy.add(1).wait() == (1,)
        with pytest.raises(OSError, match="disk full"):
            proxy.fail()
        proxy.add(2)
        assert sink.calls == [(1,), ("fail",), (2,)]
        assert sink.threads == {threading.get_ident()}


def test_in_synchronous_mode_raise_raises_once() -> None:
    with CallbacksHandler(synchronous=True) as handler:
        proxy = handler.proxy(Sink(), on_error="raise")
        with pytest.raises(OSError, match="disk full"):
            proxy.fail()
        assert proxy.add(1).wait() == (1,)


def test_in_synchronous_mode_arguments_are_captured_too() -> None:
    sink = Sink()
    with CallbacksHandler(synchronous=True) as handler:
        value = [1]
        handler.proxy(sink).add(value)
        assert sink.calls == [([1],)]
        assert sink.calls[0][0] is not value


def test_in_synchronous_mode_attributes_items_and_with_work(tmp_path: Path) -> None:
    with CallbacksHandler(synchronous=True) as handler:
        with handler.proxy(open(tmp_path / "a.txt", "w")) as file:
            file.write("a")
        assert file.closed
        store: Any = handler.proxy({})
        store["a"] = 1
        with pytest.raises(KeyError):
            del store["b"]
    assert (tmp_path / "a.txt").read_text() == "a"


# ------------------------------------------------------------------------------------------------------------- ends


def test_a_proxy_in_use_keeps_its_handler(tmp_path: Path) -> None:
    sink = Sink()
    handler = CallbacksHandler()
    add = handler.proxy(sink).add
    alive = weakref.ref(handler)
    del handler
    gc.collect()
    assert add(1).wait() == (1,)
    assert alive() is not None


def test_dropping_handler_and_proxy_drains_and_ends_the_threads() -> None:
    gate = Gate()
    handler = CallbacksHandler()
    proxy = handler.proxy(gate, name="dropped")
    shut(proxy, gate)
    handles = [proxy.add(number) for number in range(100)]
    alive = weakref.ref(handler)
    (thread,) = (thread for thread in threading.enumerate() if thread.name.endswith("-dropped"))
    del handler, proxy
    gc.collect()
    assert alive() is None
    gate.opened.set()
    thread.join(PATIENCE)
    assert not thread.is_alive()
    assert gate.calls == [(number,) for number in range(100)]
    assert handles[-1].wait() == (99,)


def test_dropping_an_idle_handler_and_its_proxy_ends_the_threads() -> None:
    handler = CallbacksHandler()
    proxy = handler.proxy(Sink(), name="idle")
    proxy.add(1).wait()
    handler.flush()
    (thread,) = (thread for thread in threading.enumerate() if thread.name.endswith("-idle"))
    del handler, proxy
    gc.collect()
    thread.join(PATIENCE)
    assert not thread.is_alive()


def test_dropping_a_handler_whose_callback_holds_its_proxy_ends_the_threads() -> None:
    handler = CallbacksHandler()
    handler.add_callbacks([background(Reports(handler.proxy(Sink(), name="cycle"), 1, "x"))])
    handler.call_event("on_batch_end")
    handler.flush()
    handler.flush()
    (thread,) = (thread for thread in threading.enumerate() if thread.name.endswith("-cycle"))
    alive = weakref.ref(handler)
    del handler
    gc.collect()
    assert alive() is None
    thread.join(PATIENCE)
    assert not thread.is_alive()


def test_the_process_ends_with_all_calls_made(tmp_path: Path) -> None:
    path = tmp_path / "rows.txt"
    script = f"""
        from async_trainer import CallbacksHandler

        handler = CallbacksHandler()
        file = handler.proxy(open({str(path)!r}, "w"))
        for number in range(10_000):
            file.write(f"{{number}}\\n")
        file.close()
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(script)], check=True, timeout=60)
    assert path.read_text().split() == [str(number) for number in range(10_000)]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_in_a_forked_child_calls_are_lost_and_nothing_blocks(handler: CallbacksHandler) -> None:
    gate = Gate()
    proxy = handler.proxy(gate)
    pending = shut(proxy, gate)

    def child(queue: Any) -> None:
        outcomes = []
        for handle in (pending, proxy.add(1)):
            try:
                outcomes.append(handle.wait(PATIENCE))
            except Exception as error:
                outcomes.append(type(error).__name__)
        queue.put(outcomes)

    context = multiprocessing.get_context("fork")
    queue = context.SimpleQueue()
    process = context.Process(target=child, args=(queue,))
    process.start()
    process.join(PATIENCE)
    assert process.exitcode == 0
    assert queue.get() == ["EventLostError", "EventLostError"]
    gate.opened.set()
    handler.flush()
    assert gate.calls == []


def test_a_call_may_flush_nothing(handler: CallbacksHandler) -> None:
    with pytest.raises(InsideHookError, match=r"flush\(\) inside a background hook"):
        handler.proxy(handler.flush)().wait()
