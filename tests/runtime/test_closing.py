"""An interrupt while the handler closes ends the drain, and what is lost is told."""

from __future__ import annotations

import signal
import threading

import pytest

from async_trainer import CallbacksHandler, background


class Waits:
    def __init__(self) -> None:
        self.go_on = threading.Event()

    def on_batch_end(self) -> None:
        self.go_on.wait(20)


def test_ctrl_c_while_closing_ends_the_drain_and_tells_what_is_lost(caplog: pytest.LogCaptureFixture) -> None:
    waits = Waits()
    handler = CallbacksHandler([background(waits)])
    for _ in range(3):
        handler.call_event("on_batch_end")

    def interrupt() -> None:
        while handler.stats().lanes["waits"].running is None or not handler._pool.closed:
            waits.go_on.wait(0.01)
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
    assert handler.close().lost == 3
