"""Listeners: told of each hook, off the training thread."""

from __future__ import annotations

import logging
import threading
import time
from typing import Any

import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode

from async_trainer import CallbacksHandler, background
from async_trainer.errors import ConfigurationError
from async_trainer.listeners import LaneEvent, LogHooks, OpenTelemetry

TOOK = 0.02  # s


class Log:
    def on_batch_end(self, *, step: int) -> None:
        time.sleep(TOOK)
        if step == 1:
            raise OSError("disk full")


class Async:
    async def on_batch_end(self, *, step: int) -> None:
        import anyio

        await anyio.sleep(TOOK)


class Told:
    def __init__(self) -> None:
        self.events: list[LaneEvent] = []
        self.threads: set[int] = set()

    def lane_event(self, event: LaneEvent) -> None:
        self.events.append(event)
        self.threads.add(threading.get_ident())

    def of(self, lane: str) -> list[LaneEvent]:
        return [event for event in self.events if event.lane == lane]


@pytest.mark.parametrize("error", [ValueError("no"), SystemExit(3), KeyboardInterrupt()])
@pytest.mark.parametrize("placement", ["thread", "task"])
def test_a_listener_that_raises_whatever_ends_no_lane(
    placement: Any, error: BaseException, caplog: pytest.LogCaptureFixture
) -> None:
    class Raises:
        def lane_event(self, event: LaneEvent) -> None:
            raise error

    callback = Async() if placement == "task" else Log()
    with CallbacksHandler([background(callback, placement=placement)]) as handler:
        handler.listen(Raises())
        for step in range(2, 5):
            handler.call_event("on_batch_end", step=step)
        assert handler.flush(60).delivered == 3
    assert "is told nothing more: its lane_event has failed" in caplog.text


@pytest.mark.parametrize("placement", ["thread", "task", "process"])
def test_each_hook_is_told_with_its_times_in_order_before_a_flush_returns(placement: Any) -> None:
    told = Told()
    began = time.perf_counter()
    callback = Async() if placement == "task" else Log()
    with CallbacksHandler([background(callback, placement=placement, name="it")]) as handler:
        handler.listen(told)
        for step in range(3):
            handler.call_event("on_batch_end", step=step)
        handler.flush()
        ended = time.perf_counter()
        events = told.of("it")
    kinds = ["delivered", "delivered" if placement == "task" else "failed", "delivered", "passed"]
    assert [event.kind for event in events] == kinds
    assert [event.seq for event in events] == [1, 2, 3, 0]
    assert {(event.callback, event.hook, event.placement) for event in events[:3]} == {
        ("it", "on_batch_end", placement)
    }
    assert threading.get_ident() not in told.threads
    times = [time for event in events[:3] for time in (event.began, event.ended)]
    assert times == sorted(times), "one after the other"
    assert began < times[0]
    assert times[-1] < ended
    for event in events[:3]:
        assert event.emitted <= event.began
        assert event.ended - event.began >= TOOK / 2, "where the hook ran, not where it was heard of"
    if placement != "task":
        assert str(events[1].error).endswith("disk full")


def test_a_process_that_runs_already_tells_from_then_on() -> None:
    told = Told()
    with CallbacksHandler([background(Log(), placement="process")]) as handler:
        handler.call_event("on_batch_end", step=0)
        handler.flush()
        handler.listen(told)
        handler.call_event("on_batch_end", step=2)
        handler.flush()
    assert [event.kind for event in told.of("log")][:2] == ["delivered", "passed"]
    assert told.events[0].ended - told.events[0].began >= TOOK / 2


def test_what_is_turned_off_is_told_as_dropped_and_a_stall_as_such() -> None:
    class Fails:
        def on_batch_end(self) -> None:
            raise ValueError

    class Hangs:
        def on_epoch_end(self) -> None:
            assert free.wait(60)

    free, told = threading.Event(), Told()
    records = [background(Fails(), on_error="disable"), background(Hangs())]
    with CallbacksHandler(records, stall_timeout=0.1) as handler:
        handler.listen(told)
        for _ in range(4):
            handler.call_event("on_batch_end")
        handler.call_event("on_epoch_end")
        assert handler.flush().stalled == ("hangs",)
        while not told.of("hangs"):
            time.sleep(0.01)
        free.set()
    assert [event.kind for event in told.of("fails")][:4] == ["failed", "failed", "failed", "dropped"]
    assert (told.of("hangs")[0].kind, told.of("hangs")[0].hook) == ("stalled", "on_epoch_end")


def test_a_proxied_call_is_told_too() -> None:
    told = Told()
    with CallbacksHandler() as handler:
        handler.listen(told)
        handler.proxy([], name="rows").append(1)
    first = told.of("rows")[0]
    assert (first.callback, first.hook, first.kind) == ("rows", "append", "delivered")


def test_one_that_raises_is_told_nothing_more_and_costs_nobody_anything(caplog: pytest.LogCaptureFixture) -> None:
    class Broken:
        calls = 0

        def lane_event(self, event: LaneEvent) -> None:
            self.calls += 1
            raise RuntimeError("mine")

    broken, told = Broken(), Told()
    with CallbacksHandler([background(Async())]) as handler:
        handler.listen(broken)
        handler.listen(told)
        for step in range(3):
            handler.call_event("on_batch_end", step=step)
        assert handler.flush().delivered == 3
    assert broken.calls == 1
    assert len([event for event in told.events if event.kind == "delivered"]) == 3
    assert "lane_event has failed: RuntimeError('mine')" in caplog.text


def test_what_cannot_listen_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="lane_event"):
        CallbacksHandler().listen(object())  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="slow"):
        LogHooks(slow=-1)


def test_log_hooks_writes_a_line_for_what_is_slow_or_failed(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "async_trainer.lanes")
    with CallbacksHandler([background(Log())]) as handler:
        handler.listen(LogHooks(slow=100.0))
        for step in range(3):
            handler.call_event("on_batch_end", step=step)
    lines = [record for record in caplog.records if record.name == "async_trainer.lanes"]
    assert [record.getMessage().partition(":")[0] for record in lines] == ["log.on_batch_end failed"]
    assert lines[0].getMessage().endswith(": OSError"), "not its text: that may hold what logs should not"
    assert (lines[0].lane, lines[0].kind, lines[0].seq, lines[0].levelno) == ("log", "failed", 2, logging.INFO)  # type: ignore[attr-defined]


@pytest.mark.parametrize("placement", ["thread", "process"])
def test_open_telemetry_has_a_span_for_each_hook_and_measures_them(placement: Any) -> None:
    spans, reader = InMemorySpanExporter(), InMemoryMetricReader()
    tracer = TracerProvider()
    tracer.add_span_processor(BatchSpanProcessor(spans))
    before = time.time_ns()
    with CallbacksHandler([background(Log(), placement=placement)]) as handler:
        handler.listen(OpenTelemetry(tracer_provider=tracer, meter_provider=MeterProvider([reader])))
        for step in range(3):
            handler.call_event("on_batch_end", step=step)
        handler.flush()
    after = time.time_ns()
    assert tracer.force_flush()
    made = [span for span in spans.get_finished_spans() if span.name == "log.on_batch_end"]
    assert [span.attributes["async_trainer.event"] for span in made] == [1, 2, 3]
    assert [span.status.status_code for span in made] == [StatusCode.UNSET, StatusCode.ERROR, StatusCode.UNSET]
    assert made[1].events[0].attributes["exception.message"] == "disk full"
    for span in made:
        assert span.attributes["async_trainer.placement"] == placement
        assert before - 10**9 < span.start_time < span.end_time < after + 10**9
        assert span.end_time - span.start_time >= TOOK / 2 * 1e9
    data = reader.get_metrics_data()
    assert data is not None
    found = {
        metric.name: metric.data.data_points
        for resource in data.resource_metrics
        for scope in resource.scope_metrics
        for metric in scope.metrics
    }
    counts = {point.attributes["async_trainer.outcome"]: point.count for point in found["async_trainer.hook.duration"]}
    assert counts == {"delivered": 2, "failed": 1}
    assert sum(point.count for point in found["async_trainer.hook.wait"]) == 3
