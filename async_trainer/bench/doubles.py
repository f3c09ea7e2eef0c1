"""Callbacks that do next to nothing, so that what is measured is what is around them."""

from __future__ import annotations

import logging
import logging.handlers
import queue
import threading
import time
from multiprocessing.connection import Connection
from typing import Any

from async_trainer.callback import Callback
from async_trainer.train.state import TrainerState

clock = time.perf_counter  # the same in all processes, on Linux


class Quiet(Callback):
    """Names the state, and does nothing."""

    def on_batch_end(self, *, state: TrainerState) -> None: ...


class Writer:
    """Has a method as a writer of scalars has one."""

    def add_scalar(self, tag: str, value: float, step: int) -> None: ...


def receive(end: Connection) -> None:
    """Another process: says when each thing that it is sent was there; until None. Here, so that it loads no torch."""
    while end.recv() is not None:
        end.send(clock())


class QueuedLog:
    """What the standard library has: a logger with a ``QueueHandler``, a ``QueueListener`` behind it."""

    def __init__(self, name: str) -> None:
        self._logger = logging.getLogger(f"bench.{name}")
        self._logger.propagate = False
        self._logger.setLevel(logging.INFO)
        records: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._handler = logging.handlers.QueueHandler(records)
        self._logger.addHandler(self._handler)
        self._listener = logging.handlers.QueueListener(records, logging.NullHandler())
        self._listener.start()

    def __call__(self) -> None:
        self._logger.info("loss %f at %d", 0.5, 1)

    def close(self) -> None:
        self._listener.stop()
        self._logger.removeHandler(self._handler)


class BareQueue:
    """The floor of any hand-over: ``SimpleQueue.put``, a thread that takes, nothing else."""

    def __init__(self) -> None:
        self.queue: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._empty = threading.Event()
        self._thread = threading.Thread(target=self._take, daemon=True)
        self._thread.start()

    def _take(self) -> None:
        while (item := self.queue.get()) is not None:
            if item is self._empty:
                self._empty.set()

    def __call__(self) -> None:
        self.queue.put(1)

    def drain(self) -> None:
        """Wait until all is taken."""
        self._empty.clear()
        self.queue.put(self._empty)
        self._empty.wait()

    def close(self) -> None:
        self.queue.put(None)
        self._thread.join()
