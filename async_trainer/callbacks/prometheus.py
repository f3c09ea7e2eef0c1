"""Prometheus: where a run is, and what its callbacks are doing, for a Prometheus to scrape."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import threading
import time
import weakref
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from async_trainer.callbacks.rows import as_text
from async_trainer.callbacks.scalars import ScalarLog
from async_trainer.errors import ConfigurationError
from async_trainer.snapshot import capture
from async_trainer.suggest import refuse_unknown_options
from async_trainer.train.state import TrainerState

if TYPE_CHECKING:
    from async_trainer.routes import EventInfo

OUTCOMES = ("delivered", "failed", "dropped", "lost")
WAITS = ("queue", "budget", "fence", "flush")
AGAIN = 10.0
"""Seconds until a port that was taken is tried again."""

logger = logging.getLogger("async_trainer")

_listening: list[socket.socket] = []


def _leave_to_parent() -> None:
    """A forked child (a worker of a DataLoader) would keep the port when it is closed here, and answer nobody."""
    while _listening:
        _listening.pop().close()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_leave_to_parent)


class StatsSource:
    """Tells the books of a handler, and doesn't keep it alive. Any thread."""

    def __init__(self, handler: Any) -> None:
        self._handler = weakref.ref(handler)

    def stats(self) -> Any:
        """A ``Stats``; None: the handler is gone."""
        handler = self._handler()
        return None if handler is None else handler.stats()


class Prometheus(ScalarLog):
    """Serves the run's and the handler's metrics over HTTP, in the format of Prometheus, from the start to the end of a
    training.

    ::

        async_trainer_value{name="loss"} 0.693            the last of each loss, learning rate and validation metric
        async_trainer_epoch 3.0
        async_trainer_step 1200.0                         optimization steps made
        async_trainer_events_total{lane="metrics_log",outcome="delivered"} 1203.0
        async_trainer_queued{lane="metrics_log"} 2.0      events that wait
        async_trainer_capture_seconds_total 0.31          what the loop has paid
        async_trainer_wait_seconds_total{wait="queue"} 0.0

    The handler's are read when they are scraped: a lane that hangs is seen to. They need a run that brings
    ``callbacks``, as a Trainer's does. It runs on its lane's thread unless wrapped in ``inline()``, and in no process
    of its own; scrapes are answered on threads of the server.

    Args:
        port: 0: any that is free; ``callback.port`` tells which.
        host: who may ask. Default: this machine only.
        every: take only each ``every``-th training batch.

    Raises:
        ConfigurationError: an argument that can't work; prometheus_client is not installed.
    """

    stays_here = True  # it reads this process's books

    @refuse_unknown_options
    def __init__(self, port: int = 9464, *, host: str = "127.0.0.1", every: int = 1) -> None:
        super().__init__(every)
        if find_spec("prometheus_client") is None:
            raise ConfigurationError("Prometheus needs prometheus_client: pip install 'async_trainer[prometheus]'")
        if not isinstance(port, int) or isinstance(port, bool) or not 0 <= port < 65_536:
            raise ConfigurationError(f"Prometheus: port must be a port, 0 to 65535, not {port!r}")
        if not isinstance(host, str) or not host:
            raise ConfigurationError(f"Prometheus: host must be an address, not {host!r}")
        self.host = host
        self._wanted_port = port
        self._server: Any = None
        self._is_begun = False
        self._due = 0.0  # when the port is tried again
        self._source: Any = None
        self._lock = threading.Lock()
        self._values: dict[str, float] = {}
        self._place = (0, 0)

    def __repr__(self) -> str:
        return f"Prometheus({self.port}, host={self.host!r})"

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_server": None, "_source": None, "_lock": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, _lock=threading.Lock())

    @property
    def background(self) -> Mapping[str, Any]:  # type: ignore[override]  # each instance has its own ``when``
        """In the background by default."""
        options = dict(super().background)
        return {**options, "on_error": "log", "select": {**options["select"], "callbacks": source_of}}

    @property
    def port(self) -> int:
        """Where it answers; while it does not, what it was given."""
        server = self._server
        return self._wanted_port if server is None else int(server[0].server_port)

    def on_train_start(self, *, state: TrainerState | None = None, callbacks: Any = None, **kwargs: Any) -> None:
        """Begin to answer."""
        self._start(state, callbacks)

    def on_resume(self, *, state: TrainerState | None = None, callbacks: Any = None, **kwargs: Any) -> None:
        """Begin to answer."""
        self._start(state, callbacks)

    def _start(self, state: TrainerState | None, callbacks: Any) -> None:
        self._stop()
        self._source = source_of(callbacks)
        self._values = {}
        self._see(state, {})
        self._is_begun = True
        self._serve()

    def _serve(self) -> None:
        from prometheus_client import CollectorRegistry, start_http_server

        self._due = time.monotonic() + AGAIN
        registry = CollectorRegistry()
        registry.register(_Collector(self))
        try:
            self._server = start_http_server(self._wanted_port, addr=self.host, registry=registry)
        except OSError as error:
            raise OSError(
                error.errno, f"Prometheus: {self.host}:{self._wanted_port} can't be served: {error}"
            ) from error
        _listening.append(self._server[0].socket)

    def _begin(self, maps: Any, state: TrainerState, event: EventInfo | None) -> None:
        """What is shown is the last, however often it comes. A port that was taken may be free by now."""
        if self._server is None and self._is_begun and time.monotonic() >= self._due:
            with contextlib.suppress(OSError):  # it was told
                self._serve()
                logger.info("Prometheus: %s:%d is served now", self.host, self.port)

    def _log(self, state: TrainerState, values: Mapping[str, float], *, batch: bool) -> None:
        self._see(state, values)

    def _see(self, state: TrainerState | None, values: Mapping[str, float]) -> None:
        with self._lock:
            self._values.update(values)
            if state is not None:
                self._place = (state.current_epoch, state.optim_step)

    def _settle(self) -> None:
        """There is nothing to settle."""

    def on_train_end(self, **kwargs: Any) -> None:
        """Answer no more."""
        self._stop()

    def on_exception(self, **kwargs: Any) -> None:
        """Answer no more."""
        self._stop()

    def _stop(self) -> None:
        server, self._server, self._is_begun = self._server, None, False
        if server is not None:
            with contextlib.suppress(ValueError):  # in a child
                _listening.remove(server[0].socket)
            server[0].shutdown()
            server[0].server_close()
            server[1].join()

    def families(self) -> Iterator[Any]:
        """What is shown, now. Any thread."""
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

        with self._lock:
            values, (epoch, step) = dict(self._values), self._place
        shown = GaugeMetricFamily("async_trainer_value", "The last value of a loss or metric.", labels=["name"])
        for name, value in values.items():
            shown.add_metric([as_text(name)], value)
        yield shown
        yield GaugeMetricFamily("async_trainer_epoch", "The epoch of the training, from 1.", value=epoch)
        yield GaugeMetricFamily("async_trainer_step", "Optimization steps made.", value=step)
        stats = None if self._source is None else self._source.stats()
        if stats is None:
            return
        events = CounterMetricFamily("async_trainer_events", "What became of events.", labels=["lane", "outcome"])
        queued = GaugeMetricFamily("async_trainer_queued", "Events that wait in a lane.", labels=["lane"])
        for name, lane in stats.lanes.items():
            for outcome in OUTCOMES:
                events.add_metric([name, outcome], getattr(lane, outcome))
            queued.add_metric([name], lane.queued)
        yield events
        yield queued
        captured = stats.capture_seconds
        yield CounterMetricFamily("async_trainer_capture_seconds", "Seconds of captures, in the loop.", value=captured)
        waits = CounterMetricFamily("async_trainer_wait_seconds", "Seconds that the loop waited.", labels=["wait"])
        for name in WAITS:
            waits.add_metric([name], getattr(stats.waits, name))
        yield waits


class _Collector:
    """For a registry, which would else keep the callback."""

    def __init__(self, callback: Prometheus) -> None:
        self._callback = weakref.ref(callback)

    def collect(self) -> Iterator[Any]:
        callback = self._callback()
        if callback is not None:
            yield from callback.families()


def source_of(callbacks: Any) -> StatsSource | None:
    """Where the books of a handler are read. The training thread."""
    if isinstance(callbacks, StatsSource):
        return callbacks
    return StatsSource(callbacks) if hasattr(callbacks, "stats") else None


capture.register(StatsSource)(lambda source: source)
