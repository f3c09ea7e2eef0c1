"""Sixteen lanes, random delays, 100,000 events, Ctrl-C at random moments: no inversion, and the sums are exact."""

from __future__ import annotations

import random
import signal
import threading
import time
from typing import Any

import pytest

from async_trainer import Callback, CallbacksHandler, background

LANES = 16
EVENTS = 100_000


class Recorder(Callback):
    """Notes the number of each event that it is given; dawdles at random."""

    def __init__(self, seed: int, *, dawdle: float = 0.0) -> None:
        self.seen: list[int] = []
        self._random = random.Random(seed)
        self._dawdle = dawdle

    def on_batch_end(self, *, number: int) -> None:
        if self._dawdle and self._random.random() < self._dawdle:
            time.sleep(self._random.random() * 1e-4)
        self.seen.append(number)


class AsyncRecorder(Recorder):
    async def on_batch_end(self, *, number: int) -> None:  # type: ignore[override]
        self.seen.append(number)


def _in_hypothesis(frame: Any) -> bool:
    """Whether its callback of the garbage collector runs, which comes at any moment, and whose errors go nowhere."""
    while frame is not None and not str(frame.f_globals.get("__name__")).startswith("hypothesis."):
        frame = frame.f_back
    return frame is not None


class Interrupts:
    """KeyboardInterrupt in the main thread at random moments while ``armed``, ``every`` seconds on average."""

    def __init__(self, seed: int, every: float) -> None:
        self.armed = False
        self.count = 0
        self._random = random.Random(seed)
        self._every = every
        self._before: Any = None
        self._over = False

    def __enter__(self) -> Interrupts:
        self._before = signal.signal(signal.SIGALRM, self._interrupt)
        signal.setitimer(signal.ITIMER_REAL, self._every)
        return self

    def _interrupt(self, number: int, frame: Any) -> None:
        if self._over:  # armed again, it would come when nobody handles it
            return
        signal.setitimer(signal.ITIMER_REAL, self._random.expovariate(1 / self._every) + 1e-6)
        if self.armed and not _in_hypothesis(frame):
            self.count += 1
            raise KeyboardInterrupt

    def __exit__(self, *error: object) -> None:
        self._over = True
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, self._before)


@pytest.mark.slow
@pytest.mark.soak
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_sixteen_lanes_keep_order_and_books_under_interrupts(seed: int) -> None:
    stress(EVENTS, seed)


@pytest.mark.slow
def test_lanes_keep_order_and_books_under_interrupts() -> None:
    stress(EVENTS // 10, 0)


def stress(events: int, seed: int) -> None:
    rng = random.Random(seed)
    recorders = [Recorder(n, dawdle=0.05 if n % 3 == 0 else 0.0) for n in range(LANES - 2)]
    recorders += [AsyncRecorder(n) for n in range(2)]
    policies: list[Any] = ["block", "drop_oldest", "drop_newest", "latest"]
    records = [
        background(recorder, name=f"lane-{n}", queue_size=rng.choice([1, 7, 64, 1024]), overflow=policies[n % 4])
        for n, recorder in enumerate(recorders)
    ]
    handler = CallbacksHandler(records, max_workers=6)
    handler.call_event("on_batch_end", number=-1)  # started, so that no interrupt comes into that
    whole = 1
    number = 0
    with Interrupts(seed, every=2e-3) as interrupts:
        while number < events:
            try:
                interrupts.armed = True
                while number < events:
                    number += 1
                    handler.call_event("on_batch_end", number=number)
                    whole += 1
            except KeyboardInterrupt:
                pass
            finally:
                interrupts.armed = False
    report = handler.close(timeout=60)
    stats = handler.stats()
    assert interrupts.count > 3, "no interrupt came: the test shows nothing"
    assert not report.failed
    assert not report.lost
    for n, recorder in enumerate(recorders):
        lane = stats.lanes[f"lane-{n}"]
        assert recorder.seen == sorted(set(recorder.seen)), f"lane-{n} ({policies[n % 4]}): inverted or doubled"
        assert len(recorder.seen) == lane.delivered
        assert lane.queued == 0
        assert lane.running is None
        # An interrupted call has reached a lane or has not; each whole one has.
        assert whole <= lane.pushed <= whole + interrupts.count
        if policies[n % 4] == "block":
            assert lane.dropped == 0
            assert lane.delivered == lane.pushed
        else:
            # The last calls may be those that were interrupted.
            assert max(recorder.seen) >= events - 1 - (1024 if policies[n % 4] == "drop_newest" else 10)


def test_the_sums_add_up_at_all_times() -> None:
    recorder = Recorder(0, dawdle=0.02)
    handler = CallbacksHandler([background(recorder, queue_size=3, overflow="drop_oldest")])
    emitted = 0
    stop = threading.Event()
    wrong: list[str] = []

    def watch() -> None:
        before = 0
        while not stop.is_set():
            low = emitted
            lane = handler.stats().lanes["recorder"]
            high = emitted + 1
            if not (low <= lane.pushed <= high) or lane.delivered < before:
                wrong.append(f"{low} <= {lane.pushed} <= {high}: {lane}")
            before = lane.delivered

    watcher = threading.Thread(target=watch)
    watcher.start()
    with handler:
        for number in range(20_000):
            handler.call_event("on_batch_end", number=number)
            emitted += 1
    stop.set()
    watcher.join()
    assert not wrong, wrong[:3]
    assert handler.stats().lanes["recorder"].pushed == 20_000
