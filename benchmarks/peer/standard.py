"""What hands over to a function: the standard library, loguru, Keras."""

from __future__ import annotations

import logging
import logging.handlers
import os
import queue
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from peer.base import FunctionPeer, Sink


class Executor(FunctionPeer):
    name = "ThreadPoolExecutor.submit, one worker"

    def open(self) -> None:
        self.executor = ThreadPoolExecutor(1)

    def log(self, step: int, value: Any) -> None:
        self.executor.submit(self.sink.write, step, value)

    def close(self) -> None:
        self.executor.shutdown()


class SinkHandler(logging.Handler):
    """Writes each record's message to the sink."""

    def __init__(self, sink: Sink) -> None:
        super().__init__()
        self.sink = sink

    def emit(self, record: logging.LogRecord) -> None:
        step, value = record.getMessage().split()
        self.sink.write(int(step), value)


class QueueHandler(FunctionPeer):
    name = "logging.QueueHandler"

    def open(self) -> None:
        records: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self.logger = logging.getLogger("peer")
        self.logger.propagate = False
        self.logger.setLevel(logging.INFO)
        self.logger.addHandler(logging.handlers.QueueHandler(records))
        self.listener = logging.handlers.QueueListener(records, SinkHandler(self.sink))
        self.listener.start()

    def log(self, step: int, value: Any) -> None:
        self.logger.info("%d %f", step, value)

    def close(self) -> None:
        self.listener.stop()


class Loguru(FunctionPeer):
    name = "loguru, enqueue=True"
    needs = ("loguru",)

    def open(self) -> None:
        from loguru import logger

        self.logger = logger
        logger.remove()
        logger.add(self._emit, enqueue=True, format="{message}")

    def _emit(self, message: Any) -> None:
        step, value = message.split()
        self.sink.write(int(step), value)

    def log(self, step: int, value: Any) -> None:
        self.logger.info("{} {:f}", step, float(value))

    def close(self) -> None:
        self.logger.complete()
        self.logger.remove()


class Keras(FunctionPeer):
    name = "Keras 3, an async_safe callback"
    needs = ("keras",)

    def open(self) -> None:
        os.environ["KERAS_BACKEND"] = "torch"
        import keras

        sink = self.sink

        class Log(keras.callbacks.Callback):
            async_safe = True

            def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
                sink.write(batch, logs["loss"])

        self.callbacks = keras.callbacks.CallbackList([Log()], add_history=False)
        self.callbacks.on_train_begin()

    def log(self, step: int, value: Any) -> None:
        self.callbacks.on_train_batch_end(step, {"loss": value})

    def close(self) -> None:
        self.callbacks.on_epoch_end(0)
        self.callbacks.on_train_end()


PEERS = (Executor, QueueHandler, Loguru, Keras)
