"""An interrupt while the handler closes ends the drain, and what is lost is told."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator

import pytest

from async_trainer import CallbacksHandler, background
from async_trainer.runtime import exits
from tests.endings.waiting import until


class Waits:
    def __init__(self) -> None:
        self.go_on = threading.Event()

    def on_batch_end(self) -> None:
        self.go_on.wait(20)


@pytest.fixture(autouse=True)
def ctrl_c() -> Iterator[None]:
    """It interrupts: where the tests run in the background of a shell, it is ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_ctrl_c_while_closing_ends_the_drain_and_tells_what_is_lost(caplog: pytest.LogCaptureFixture) -> None:
    threads, pools = threading.active_count(), set(exits.open_pools())
    waits = Waits()
    handler = CallbacksHandler([background(waits)])
    for _ in range(3):
        handler.call_event("on_batch_end")

    def interrupt() -> None:
        until(lambda: handler.stats().lanes["waits"].running and handler._pool.closed, "it doesn't close")
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    try:
        with pytest.raises(KeyboardInterrupt):
            handler.close()
    finally:
        thread.join()
        waits.go_on.set()
    assert "closing was interrupted: 0 delivered, 0 failed, 0 dropped, 3 lost" in caplog.text
    report = handler.close()  # again: it waits for what is still to end
    assert (report.delivered, report.lost) == (1, 2)
    assert set(exits.open_pools()) <= pools
    assert threading.active_count() == threads
    assert "closed: " not in caplog.text, "it was told"
