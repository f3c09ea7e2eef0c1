"""Nobody keeps the handler: it drains, and goes."""

from __future__ import annotations

import gc
import threading
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from async_trainer import Callback, CallbacksHandler, background
from async_trainer.runtime import exits, loop
from tests.endings.waiting import until


class Held(Callback):
    """Handles nothing until ``go`` is set."""

    def __init__(self) -> None:
        self.go = threading.Event()
        self.seen: list[int] = []

    def on_batch_end(self, *, step: int) -> None:
        self.go.wait(10)
        self.seen.append(step)


class HeldAsync(Held):
    async def on_batch_end(self, *, step: int) -> None:  # type: ignore[override]
        import anyio

        while not self.go.is_set():
            await anyio.sleep(0.001)
        self.seen.append(step)


@pytest.fixture(params=["thread", "asyncio", "trio"])
def make(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Callable[[], Held]:
    if request.param != "thread":
        monkeypatch.setattr(loop, "backend", request.param)
    return Held if request.param == "thread" else HeldAsync


@pytest.fixture(autouse=True)
def _nothing_left() -> Iterator[None]:
    before, pools = set(threading.enumerate()), set(exits.open_pools())  # an earlier test's may be there
    yield
    until(lambda: set(threading.enumerate()) <= before, "threads are left")
    until(lambda: set(exits.open_pools()) <= pools, "a pool is left")


def drop(callback: Held, how: str) -> weakref.ref[Any]:
    handler = CallbacksHandler([background(callback)])
    for step in range(100):
        handler.call_event("on_batch_end", step=step)
    ref = weakref.ref(handler)
    if how == "cycle":
        handler.me = [handler]  # type: ignore[attr-defined]
    elif how == "callback":
        callback.handler = handler  # type: ignore[attr-defined]
    return ref


def test_a_dropped_handler_drains_and_its_threads_end(make: Callable[[], Held]) -> None:
    callback = make()
    ref = drop(callback, "del")
    assert ref() is None, "something holds on to the handler"
    callback.go.set()
    until(lambda: callback.seen == list(range(100)), "it didn't drain")


def test_a_handler_dropped_in_a_cycle_drains_and_its_threads_end(make: Callable[[], Held]) -> None:
    callback = make()
    ref = drop(callback, "cycle")
    gc.collect()
    assert ref() is None
    callback.go.set()
    until(lambda: callback.seen == list(range(100)), "it didn't drain")


def test_a_handler_that_its_callback_knows_drains_and_goes(make: Callable[[], Held]) -> None:
    callback = make()
    seen = callback.seen
    ref = drop(callback, "callback")
    callback.go.set()
    del callback
    until(lambda: gc.collect() is not None and ref() is None, "something holds on to the handler")
    until(lambda: len(seen) == 100, "it didn't drain")


def test_a_cell_that_is_run_again_leaves_no_thread_of_the_first_run(make: Callable[[], Held]) -> None:
    first, second = make(), make()
    before = threading.active_count()
    handler = CallbacksHandler([background(first)])
    handler.call_event("on_batch_end", step=1)
    handler = CallbacksHandler([background(second)])
    handler.call_event("on_batch_end", step=2)
    first.go.set()
    second.go.set()
    until(lambda: first.seen == [1], "the first didn't drain")
    until(lambda: threading.active_count() <= before + 2, "threads of the first are left")
    handler.flush()
    assert second.seen == [2]
    handler.close()


def test_a_handler_whose_run_ended_in_an_error_goes_when_the_error_does() -> None:
    callback = Held()
    callback.go.set()
    refs = []

    def cell() -> None:
        handler = CallbacksHandler([background(callback)])
        refs.append(weakref.ref(handler))
        handler.call_event("on_batch_end", step=1)
        raise ValueError

    with pytest.raises(ValueError):  # noqa: PT011  (as a notebook does, without keeping it)
        cell()
    assert refs[0]() is None
    until(lambda: callback.seen == [1], "it didn't drain")


def test_an_idle_handler_goes_when_it_is_dropped(make: Callable[[], Held]) -> None:
    handler = CallbacksHandler([background(make())])
    with handler:
        pass
    handler = CallbacksHandler([background(make())])
    handler.__enter__()
    ref = weakref.ref(handler)
    del handler
    assert ref() is None


def test_a_proxy_in_use_keeps_its_handler_and_lets_it_go(make: Callable[[], Held]) -> None:
    seen: list[int] = []
    handler = CallbacksHandler()
    proxy = handler.proxy(seen)
    ref = weakref.ref(handler)
    del handler
    for step in range(100):
        proxy.append(step)
    assert ref() is not None
    del proxy
    until(lambda: gc.collect() is not None and ref() is None, "something holds on to the handler")
    until(lambda: seen == list(range(100)), "it didn't drain")


def test_a_handler_may_be_collected_while_its_thread_holds_the_lock_of_the_pool() -> None:
    callback = Held()
    handler = CallbacksHandler([background(callback)])
    handler.call_event("on_batch_end", step=1)
    pool = handler._pool
    ref = weakref.ref(handler)
    with pool._lock:
        del handler  # as the garbage collector does, whatever its thread is about
    assert ref() is None
    callback.go.set()
    until(lambda: callback.seen == [1], "it didn't drain")
