"""Stats, explain, Report; the handler itself."""

from __future__ import annotations

import copy
import logging
import pickle
import re
import time
from typing import Any

import pytest
import torch

from async_trainer import Callback, CallbacksHandler, TrainerState, background, capture
from async_trainer.callback import Placement
from async_trainer.errors import ConfigurationError, LaneError
from tests.options.doubles import PATIENCE, Counts, Fails, Gate, Make, Output, Rows, fire


class Webhook:
    async def on_train_end(self) -> None: ...


# ----------------------------------------------------------------------------------------------- stats, explain, report


def test_stats_are_immutable_and_print_as_a_table(placement: Placement, handlers: Make) -> None:
    handler = handlers(
        background(Rows(), name="curve", placement=placement),
        background(Fails(), name="<bad>", placement=placement, queue_size=1, overflow="drop_newest"),
        Rows(),
    )
    with handler._pool.hold():
        fire(handler, 3)
        held = handler.stats()
    handler.flush()
    stats = handler.stats()
    lane = held.lanes["curve"]
    assert (lane.queued, lane.delivered, lane.pushed, lane.running) == (3, 0, 3, None)
    assert lane.age > 0
    assert stats.lanes["curve"].delivered == stats.lanes["curve"].pushed == 3
    assert (stats.lanes["<bad>"].failed, stats.lanes["<bad>"].dropped) == (1, 2)
    assert (stats.captures, stats.errors[0].count) == (3, 1)
    assert 0 < stats.capture_seconds < 1
    with pytest.raises(AttributeError):
        stats.captures = 3  # type: ignore[misc]
    with pytest.raises(TypeError):
        stats.lanes["curve"] = None  # type: ignore[index]
    head, rule, *rows = str(stats).splitlines()
    assert head.split() == ["lane", "where", "delivered", "failed", "dropped", "lost", "queued", "cpu/hooks", "now"]
    assert set(rule) == {"-", " "}
    took = rf"{'–' if placement == 'task' else r'[0-9.]+'}/[0-9.]+ s"
    assert re.fullmatch(rf"curve +{placement} +3 +0 +0 +0 +0 +{took} +idle", rows[0])
    assert re.fullmatch(rf"<bad> +{placement} +0 +1 +2 +0 +0 +{took} +idle", rows[1])
    assert re.match(r"the loop paid \d\.\d{3} s for 3 captures, and waited 0\.000 s for full queues,$", rows[2])
    assert max(map(len, rows)) < 100
    html = stats._repr_html_()
    assert html.startswith("<table><tr><th>lane</th>")
    assert "<td>&lt;bad&gt;</td>" in html
    assert "<bad>" not in html
    assert handler._repr_html_().startswith("<table>")


def test_stats_tell_what_a_hook_is_doing_and_for_how_long(handlers: Make) -> None:
    gate = Gate()
    handler = handlers(background(gate))
    handler.call_event("on_batch_end", n=1)
    assert gate.entered.wait(PATIENCE)
    stats = handler.stats()
    assert stats.lanes["gate"].running == "on_batch_end"
    assert 0 < stats.lanes["gate"].seconds < PATIENCE
    assert stats.lanes["gate"].pushed == 1
    assert "on_batch_end for 0." in str(stats)
    gate.go_on.set()


def test_explain_tells_who_gets_what_captured_how_and_what_it_costs(handlers: Make) -> None:
    class Plots:
        def on_epoch_end(self, *, model: Any, state: Any, loss: Any = None, **kwargs: Any) -> Any:
            return model

    class Stops:
        def on_epoch_end(self, *, model: Any, **kwargs: Any) -> None: ...

    handler = handlers(
        background(Plots(), lane="plots_lane", select={"loss": None, "output": len}),
        Stops(),
        background(Webhook()),
    )
    before = [row for row in str(handler.explain()).splitlines() if row.startswith("plots")]
    assert before[0].split("  ")[0] == "plots"
    assert before[0].endswith("not captured yet")
    model = torch.nn.Linear(200, 200)
    handler.call_event("on_epoch_end", model=model, state=TrainerState(), loss=1)
    handler.call_event("on_train_end")
    handler.flush()
    head, _, plots, stops, webhook = str(handler.explain()).splitlines()
    assert re.split(r"\s{2,}", head) == ["callback", "event", "where", "gets", "loop time per event"]
    columns = re.split(r"\s{2,}", plots)
    assert columns[:3] == ["plots", "on_epoch_end", "thread, lane plots_lane"]
    assert columns[3] == (
        "model: replica of the module, 0.2 MB; state: copied, frozen; loss: None (select); plain values"
    )
    assert re.fullmatch(r"\d+ µs to capture, the first time", columns[4])
    assert re.split(r"\s{2,}", stops) == [
        "stops", "on_epoch_end", "inline", "model, plain values (live)", "all of the hook",
    ]  # fmt: skip
    assert re.split(r"\s{2,}", webhook)[2:4] == ["task, for its async hooks", "nothing"]
    assert handler.explain()._repr_html_().startswith("<table>")


def test_captures_are_counted_and_events_that_every_or_when_turn_away_are_not(
    placement: Placement, handlers: Make
) -> None:
    some, late = Rows(), Rows()
    handler = handlers(
        background(some, name="some", placement=placement, every={"on_batch_end": 5}),
        background(late, name="late", placement=placement, when=lambda n, **_: n > 6),
    )
    fire(handler, 4)
    stats = handler.stats()
    assert (stats.captures, str(handler.explain()).count("not captured yet")) == (0, 6)
    assert stats.capture_seconds > 0  # asking is paid for too
    fire(handler, 7)
    handler.flush()
    assert (some.ns, late.ns, handler.stats().captures) == ([1, 6], [7], 3)


def test_what_explain_says_of_the_cost_leaves_out_the_first_capture_and_what_was_not_captured(handlers: Make) -> None:
    class Slow:
        pass

    @capture.register(Slow)
    def _(live: Slow) -> str:
        time.sleep(0.2 if not taken else 0.0)
        taken.append(live)
        return "copied"

    def when(n: int, **_: Any) -> bool:
        time.sleep(0.2 if n == 2 else 0.0)
        return n != 2

    taken: list[Slow] = []
    handler = handlers(background(Output(), when=when))

    def cost() -> float:
        row = next(row for row in str(handler.explain()).splitlines() if row.startswith("output"))
        found = re.search(r"(\d+) µs to capture", row)
        assert found
        return int(found[1]) / 1e6

    handler.call_event("on_batch_end", n=1, output=Slow())
    assert cost() >= 0.2
    for n in (2, 3, 4):
        handler.call_event("on_batch_end", n=n, output=Slow())
    assert cost() < 0.1
    assert handler.stats().capture_seconds >= 0.4


def test_a_report_raises_for_errors_with_all_of_them_in_its_text(handlers: Make) -> None:
    class TwoWays:
        def on_batch_end(self, *, n: int) -> None:
            raise (ValueError if n % 2 else KeyError)(n)

    handler = handlers(background(TwoWays()))
    fire(handler, 4)
    report = handler.close()
    with pytest.raises(LaneError) as caught:
        report.raise_for_errors()
    assert str(caught.value) == (
        "two_ways.on_batch_end: ValueError: 1 (2 times)\ntwo_ways.on_batch_end: KeyError: 2 (2 times)"
    )
    assert caught.value.report is report
    assert isinstance(caught.value.__cause__, ValueError)
    assert str(report).splitlines()[0] == "0 delivered, 4 failed, 0 dropped, 0 lost"
    assert not report.ok


def test_a_clean_report_is_ok_and_raises_nothing(handlers: Make) -> None:
    handler = handlers(background(Rows()))
    fire(handler, 2)
    assert handler.flush().delivered == 2
    report = handler.close()
    assert report.ok
    report.raise_for_errors()
    assert str(report) == "2 delivered, 0 failed, 0 dropped, 0 lost"
    assert handler.close() is report


# --------------------------------------------------------------------------------------------------- the handler itself


def test_a_copied_or_pickled_handler_is_its_unstarted_list_of_callbacks(handlers: Make) -> None:
    handler = handlers(background(Counts(), name="curve", queue_size=5), Counts(), events=["on_x"], max_workers=3)
    fire(handler, 2)
    for again in (copy.copy(handler), pickle.loads(pickle.dumps(handler))):
        assert repr(again) == "<CallbacksHandler: 1 inline, 1 background, <Pool of 1 lanes, not started>>"
        assert again.stats().lanes["curve"].size == 5
        assert again.stats().lanes["curve"].pushed == 0
        again.call_event("on_x")
        again._close(5.0)
    handler.close()


def test_an_event_after_close_is_lost_counted_and_logged_once_and_inline_hooks_still_run(
    placement: Placement, handlers: Make, caplog: pytest.LogCaptureFixture
) -> None:
    rows, live = Rows(), Rows()
    handler = handlers(background(rows, placement=placement), live)
    fire(handler, 1)
    handler.close()
    with caplog.at_level(logging.WARNING, "async_trainer"):
        fire(handler, 3)
    assert (rows.ns, live.ns) == ([1], [1, 1, 2, 3])
    assert handler.stats().lanes["rows"].lost == 3
    assert [record.getMessage() for record in caplog.records] == [
        "on_batch_end for rows came after close(): it and what follows is lost, and counted"
    ]


def test_a_configuration_error_of_the_first_event_leaves_nothing_half_pushed(handlers: Make) -> None:
    class Holds(Rows):
        def __init__(self, model: Any) -> None:
            super().__init__()
            self.model = model

    model, rows = torch.nn.Linear(1, 1), Rows()
    handler = handlers(background(rows), background(Holds(model)))
    with pytest.raises(ConfigurationError):
        handler.call_event("on_batch_end", n=1, model=model)
    assert handler.close().delivered == 0
    assert rows.ns == []


def test_a_dear_capture_that_comes_often_is_told_once_with_its_remedy(caplog: pytest.LogCaptureFixture) -> None:
    class Slow:
        pass

    @capture.register(Slow)
    def _(value: Slow) -> int:
        time.sleep(0.02)
        return 1

    class Names(Callback):
        def on_batch_end(self, *, slow: Any) -> None: ...

    with CallbacksHandler([background(Names())]) as handler:
        route = handler._routes["on_batch_end"]
        assert route is not None
        route.tell_at = 0.1
        for _ in range(20):
            handler.call_event("on_batch_end", slow=Slow())
    told = [record.getMessage() for record in caplog.records if "has cost the loop" in record.getMessage()]
    assert len(told) == 1
    assert "for names.on_batch_end. Capture it less often (every=, when=)" in told[0]
