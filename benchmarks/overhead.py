"""What an event costs the training thread, beside what one would use instead; all in one run.

    python benchmarks/overhead.py

Medians over bursts of 500 calls, the queue drained in between; microseconds. Ratios are what to compare: absolute times
vary from machine to machine. The design's budgets: an event nobody listens to costs at most 6 empty method calls; one
with a hook that names the state, in a burst, at most 0.3 of logging.QueueHandler.
"""

from __future__ import annotations

import gc
import logging
import logging.handlers
import platform
import queue
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from statistics import median
from typing import Any

from async_trainer import Callback, CallbacksHandler, Event, TrainerState, background

BURSTS, CALLS = 40, 500
EVENTS = 200_000


class Quiet(Callback):
    def on_batch_end(self, *, state: TrainerState) -> None:
        pass


class Target:
    def add_scalar(self, tag: str, value: float, step: int) -> None:
        pass


def per_call(call: Callable[[], Any], drain: Callable[[], Any] = lambda: None) -> tuple[float, float]:
    """The median and the 99th percentile of one call, in µs, over all bursts."""
    clock = time.perf_counter
    medians, tails = [], []
    for _ in range(BURSTS):
        times = []
        gc.collect()
        for _ in range(CALLS):
            began = clock()
            call()
            times.append(clock() - began)
        drain()
        times.sort()
        medians.append(times[CALLS // 2])
        tails.append(times[CALLS * 99 // 100])
    return median(medians) * 1e6, median(tails) * 1e6


def main() -> None:
    state = TrainerState()
    handler = CallbacksHandler([background(Quiet(), queue_size=EVENTS)])
    nobody = CallbacksHandler()
    target = Target()
    proxy = handler.proxy(target, queue_size=EVENTS)
    simple: queue.SimpleQueue[Any] = queue.SimpleQueue()
    executor = ThreadPoolExecutor(1)
    logger = logging.getLogger("overhead")
    logger.propagate = False
    logger.setLevel(logging.INFO)
    listener = logging.handlers.QueueListener(simple, logging.NullHandler())
    logger.addHandler(logging.handlers.QueueHandler(simple))
    listener.start()

    rows = {
        "an empty method call": per_call(lambda: target.add_scalar("loss", 0.5, 1)),
        "an event nobody listens to": per_call(lambda: nobody.call_event(Event.BATCH_END, state=state)),
        "an event, one hook naming state": per_call(
            lambda: handler.call_event(Event.BATCH_END, state=state), handler.flush
        ),
        "a proxied call, three scalars": per_call(lambda: proxy.add_scalar("loss", 0.5, 1), handler.flush),
        "SimpleQueue.put and get": per_call(lambda: simple.put(None) or simple.get()),
        "ThreadPoolExecutor.submit": per_call(lambda: executor.submit(target.add_scalar, "loss", 0.5, 1)),
        "logging.QueueHandler": per_call(lambda: logger.info("loss %f", 0.5)),
    }
    began = time.perf_counter()
    for _ in range(EVENTS):
        handler.call_event(Event.BATCH_END, state=state)
    handler.flush()
    seconds = time.perf_counter() - began
    handler.close()
    listener.stop()
    executor.shutdown()

    print(f"Python {platform.python_version()}, {platform.machine()}, {platform.processor() or 'unknown processor'}")
    for name, (middle, tail) in rows.items():
        print(f"{name:36} p50 {middle:7.2f} µs   p99 {tail:8.2f} µs")
    event, logged = rows["an event, one hook naming state"][0], rows["logging.QueueHandler"][0]
    unheard, empty = rows["an event nobody listens to"][0], rows["an empty method call"][0]
    print(f"{'through one thread lane':36} {EVENTS / seconds:10,.0f} events/s")
    print(f"event / QueueHandler {event / logged:.2f} (budget 0.3);  unheard / empty {unheard / empty:.1f} (budget 6)")


if __name__ == "__main__":
    main()
