"""Ctrl-C at any moment, thousands of times: the books add up, the order is kept, no lane is dead, no lock is held."""

from __future__ import annotations

import random
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest

from async_trainer import Callback, CallbacksHandler, background
from async_trainer.runtime import exits, loop
from tests.endings.waiting import until

# One that comes into a weak reference's callback (threading keeps such of its threads) is only told, and goes.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")

BIG = np.zeros(20_000)  # 160 kB: it takes room in the byte budget


class Interrupts:
    """SIGALRM raises KeyboardInterrupt in the main thread at random moments, within ``with interrupts:``."""

    def __init__(self, seed: int, mean: float) -> None:
        self.count = 0
        self._random = random.Random(seed)
        self._mean = mean
        self._armed = False

    @contextmanager
    def handled(self) -> Iterator[None]:
        before = signal.signal(signal.SIGALRM, self._interrupt)
        try:
            yield
        finally:
            self.stop()
            signal.signal(signal.SIGALRM, before)

    def _interrupt(self, number: int, frame: Any) -> None:
        if self._armed:
            self._armed = False
            self.count += 1
            raise KeyboardInterrupt

    def start(self) -> None:
        self._armed = True
        signal.setitimer(signal.ITIMER_REAL, self._random.expovariate(1 / self._mean) + 1e-6)

    def stop(self) -> None:
        self._armed = False
        signal.setitimer(signal.ITIMER_REAL, 0)

    def whole(self, function: Any, *args: Any, **kwargs: Any) -> bool:
        """Call ``function`` under interrupts; whether none came."""
        try:
            self.start()
            function(*args, **kwargs)
            self.stop()
        except KeyboardInterrupt:  # once: from then on it is not armed
            return False
        return True


class Sees(Callback):
    def __init__(self) -> None:
        self.seen: list[int] = []

    def on_batch_end(self, *, step: int) -> None:
        self.seen.append(step)


class SeesBig(Sees):
    def on_batch_end(self, *, step: int, big: Any) -> None:  # type: ignore[override]
        assert big.shape == BIG.shape
        self.seen.append(step)


class SeesAsync(Sees):
    async def on_batch_end(self, *, step: int) -> None:  # type: ignore[override]
        self.seen.append(step)


def make() -> tuple[dict[str, Sees], CallbacksHandler]:
    callbacks: dict[str, Sees] = {
        "block": Sees(),
        "tight": Sees(),
        "newest": SeesAsync(),
        "oldest": SeesBig(),
        "big": SeesBig(),
    }
    records = [
        background(callbacks["block"], name="block"),
        background(callbacks["tight"], name="tight", queue_size=2),
        background(callbacks["newest"], name="newest", queue_size=2, overflow="drop_newest"),
        background(callbacks["oldest"], name="oldest", queue_size=2, overflow="drop_oldest"),
        background(callbacks["big"], name="big", queue_size=3),
    ]
    return callbacks, CallbacksHandler(records, max_snapshot_bytes=1_000_000, max_workers=3, stall_timeout=5)


def check(callbacks: dict[str, Sees], handler: CallbacksHandler, least: int, most: int, *, lost: bool) -> None:
    stats = handler.stats()
    for name, callback in callbacks.items():
        lane = stats.lanes[name]
        assert callback.seen == sorted(set(callback.seen)), f"{name}: inverted or doubled"
        assert len(callback.seen) == lane.delivered, f"{name}: the books are wrong"
        assert least <= lane.pushed <= most, f"{name}: {least} <= {lane.pushed} <= {most}"
        assert not lane.failed
        assert lost or not lane.lost, f"{name} has lost {lane.lost}"
        assert lane.queued == 0
        assert lane.running is None
    assert stats.waits.queue + stats.waits.budget < 2, "a lane slept, with work to do, until it counted as stalled"
    free: list[bool] = []

    def take_and_release() -> None:
        lock = handler._pool._lock
        free.append(lock.acquire(timeout=2))
        lock.release()

    thread = threading.Thread(target=take_and_release)
    thread.start()
    thread.join()
    assert free == [True], "the lock of the pool was left held"


def alive() -> set[threading.Thread]:
    # One whose start() was interrupted is listed, and may hang in it: nothing that anybody but threading could help.
    return {thread for thread in threading.enumerate() if thread.is_alive()}


@pytest.mark.parametrize("seed", [1, pytest.param(2, marks=pytest.mark.slow), pytest.param(3, marks=pytest.mark.slow)])
def test_interrupts_while_events_are_emitted(seed: int) -> None:
    interrupts = Interrupts(seed, mean=5e-5)
    callbacks, handler = make()
    handler.call_event("on_batch_end", step=0, big=BIG)
    whole = 1
    with interrupts.handled():
        for step in range(1, 20_000):
            whole += interrupts.whole(handler.call_event, "on_batch_end", step=step, big=BIG)
            if step % 1000 == 0:
                assert not handler.flush(5).stalled
    assert interrupts.count > 1000, "too few interrupts: the test shows nothing"
    report = handler.close()
    assert not report.stalled
    check(callbacks, handler, whole, whole + interrupts.count, lost=False)
    assert handler.stats().snapshot_bytes == 0, "an interrupted event has kept its part of the budget"


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_interrupts_from_the_start_to_the_end(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "backend", backend)
    interrupts = Interrupts(4, mean=4e-4)
    with make()[1] as warm:  # Ctrl-C in an import can leave the interpreter's import lock taken: not ours to help
        warm.call_event("on_batch_end", step=0, big=BIG)
    before, pools = alive(), set(exits.open_pools())
    interrupted_closes = 0
    with interrupts.handled():
        for _ in range(150):
            callbacks, handler = make()
            whole = 0
            first = interrupts.count
            for step in range(30):
                whole += interrupts.whole(handler.call_event, "on_batch_end", step=step, big=BIG)
            # An interrupted start is made up for by the next event; so all lanes live now, and none is there twice.
            assert not handler.flush(5).stalled
            names = [thread.name for thread in alive() - before if thread.name != "async_trainer-start"]
            assert len(names) == len(set(names)) <= 5 + 1, names
            closed = interrupts.whole(handler.close)
            interrupted_closes += not closed
            handler.close()
            check(callbacks, handler, whole, whole + interrupts.count - first, lost=not closed)
            assert handler.stats().snapshot_bytes == 0
            until(lambda: alive() <= before, f"threads are left of {alive() - before}")
            assert set(exits.open_pools()) <= pools
    assert interrupted_closes > 10, "the end was never interrupted: the test shows nothing"
