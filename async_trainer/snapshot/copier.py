"""The thread that makes copies while the training goes on."""

from __future__ import annotations

import _thread
from collections.abc import Callable
from queue import SimpleQueue

from async_trainer.gate import Gate
from async_trainer.snapshot.transfer import Transfer


class Copier:
    """The thread that makes copies. It starts with the first one.

    Args:
        tidy: what it does besides, when there is something to tidy up.
    """

    def __init__(self, tidy: Callable[[], None]) -> None:
        self._tidy = tidy
        self._queue: SimpleQueue[Transfer | Callable[[], None] | None] = SimpleQueue()
        self._running = False
        self._ended = Gate()

    def submit(self, transfer: Transfer) -> None:
        """Make the copies of ``transfer``, after those that were submitted before. TRAINING THREAD."""
        if not self._running:
            try:
                _thread.start_new_thread(self._run, ())  # threading.Thread.start() could be interrupted half way
            except RuntimeError:  # the system gives no more threads
                transfer.make()
                return
            self._running = True
        self._queue.put(transfer)

    def tidy(self) -> None:
        """Do what else there is to do, soon. Any thread, possibly under a lock."""
        self._queue.put(self._tidy)

    def stop(self, timeout: float) -> None:
        """End the thread when its copies are made, and wait at most ``timeout`` seconds for that. Any thread."""
        self._queue.put(None)
        if self._running:
            self._ended.wait(timeout)

    def _run(self) -> None:
        while (job := self._queue.get()) is not None:
            if isinstance(job, Transfer):
                job.make()
            else:
                job()
            del job  # it holds no tensor any more, but whoever waits holds it
        self._queue.put(None)  # Ctrl-C between a start and its note: there may be another
        self._ended.open()
