"""OpenTelemetry: spans and metrics of what lanes do."""

from __future__ import annotations

import time
from typing import Any

from async_trainer.errors import ConfigurationError
from async_trainer.runtime.listening import LaneEvent

try:
    from opentelemetry import metrics, trace
    from opentelemetry.trace import Status, StatusCode
except ImportError as missing:
    raise ConfigurationError(
        "OpenTelemetry needs opentelemetry-api: pip install 'async_trainer[otel]', and an SDK that sends what it gets"
    ) from missing


class OpenTelemetry:
    """A listener that makes a span of each background hook, and counts and measures them.

    A span ``<callback>.<hook>`` has the times that the hook had, and the attributes ``async_trainer.lane``,
    ``.placement``, ``.event`` (its number), ``.outcome``, ``.waited`` (seconds since its event); of one that failed the
    status is an error, and the exception recorded. Metrics: the histograms ``async_trainer.hook.duration`` and
    ``async_trainer.hook.wait`` in seconds, and the counter ``async_trainer.lane.stalls``, by lane, hook and outcome.

    Args:
        tracer_provider: default: the global one.
        meter_provider: default: the global one.

    What sends them, and when, is for the SDK that the program sets up; its batch processors don't hold lanes up.

    Raises:
        ConfigurationError: opentelemetry-api isn't installed.
    """

    def __init__(self, *, tracer_provider: Any = None, meter_provider: Any = None) -> None:
        self._tracer = trace.get_tracer("async_trainer", tracer_provider=tracer_provider)
        meter = metrics.get_meter("async_trainer", meter_provider=meter_provider)
        self._duration = meter.create_histogram("async_trainer.hook.duration", "s", "how long hooks took")
        self._wait = meter.create_histogram("async_trainer.hook.wait", "s", "from an event to its hook")
        self._stalls = meter.create_counter("async_trainer.lane.stalls", "1", "lanes that moved no more")
        self._unix = time.time_ns() - time.perf_counter_ns()  # ns: what perf_counter counts from

    def __repr__(self) -> str:
        return "<OpenTelemetry>"

    def lane_event(self, event: LaneEvent) -> None:
        """Make a span of it. The lane's thread."""
        where = {"async_trainer.lane": event.lane, "async_trainer.placement": event.placement}
        if event.kind == "stalled":
            self._stalls.add(1, where)
            return
        name = f"{event.callback}.{event.hook}" if event.callback else event.hook
        waited = max(0.0, event.began - event.emitted)
        outcome: dict[str, Any] = {**where, "async_trainer.hook": name, "async_trainer.outcome": event.kind}
        if event.kind != "passed":
            self._duration.record(event.ended - event.began, outcome)
            self._wait.record(waited, outcome)
        attributes: dict[str, Any] = {**outcome, "async_trainer.event": event.seq, "async_trainer.waited": waited}
        span = self._tracer.start_span(name, start_time=self._at(event.began), attributes=attributes)
        if event.error is not None:
            span.record_exception(event.error, timestamp=self._at(event.ended))
            span.set_status(Status(StatusCode.ERROR, type(event.error).__name__))
        span.end(self._at(event.ended))

    def _at(self, seconds: float) -> int:
        """A time of ``perf_counter``, in ns since 1970."""
        return int(seconds * 1e9) + self._unix
