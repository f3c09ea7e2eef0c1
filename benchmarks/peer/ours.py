"""This library: a callback, a proxy, a process."""

from __future__ import annotations

import os
import signal
from typing import Any

from peer.base import FunctionPeer, Sink

STALL_TIMEOUT = 5.0  # s; 60 by default: the trial of a hanging sink would take so long


class Log:
    """The callback: one hook, that writes what it gets."""

    def __init__(self, sink: Sink) -> None:
        self.sink = sink
        self.pid = 0

    def on_train_start(self) -> None:
        self.pid = os.getpid()

    def on_batch_end(self, *, step: int, loss: Any) -> None:
        self.sink.write(step, loss)


class Ours(FunctionPeer):
    name = "async_trainer, a callback in a thread"
    placement: Any = "thread"

    def open(self) -> None:
        from async_trainer import CallbacksHandler, background

        self.callback = Log(self.sink)
        self.handler = CallbacksHandler(
            [background(self.callback, placement=self.placement)], stall_timeout=STALL_TIMEOUT
        )
        self.handler.call_event("on_train_start")
        self.handler.flush()

    def log(self, step: int, value: Any) -> None:
        self.handler.call_event("on_batch_end", step=step, loss=value)

    def before_change(self) -> None:
        self.handler.fence()

    def close(self) -> None:
        self.handler.close()


class OursInProcess(Ours):
    name = "async_trainer, a callback in a process"
    placement = "process"

    def hang(self) -> None:
        os.kill(self.callback.pid, signal.SIGSTOP)


class OursProxied(FunctionPeer):
    name = "async_trainer, a proxied object"

    def open(self) -> None:
        from async_trainer import CallbacksHandler

        self.handler = CallbacksHandler(stall_timeout=STALL_TIMEOUT)
        self.writer = self.handler.proxy(self.sink)

    def log(self, step: int, value: Any) -> None:
        self.writer.write(step, value)

    def close(self) -> None:
        self.handler.close()


PEERS = (Ours, OursProxied, OursInProcess)
