"""The options of a proxy: name, lane, overflow, retries, errors; and what they refuse."""

from __future__ import annotations

import logging
import threading
from typing import Any

import pytest
import torch

from async_trainer import CallbacksHandler, background
from async_trainer.errors import CaptureError, ConfigurationError, LaneError
from tests.proxy.kit import PATIENCE, Gate, Sink, shut

# -------------------------------------------------------------------------------------------------- names and lanes


class Listens:
    """A callback."""

    def on_batch_end(self) -> None: ...


class HTTPSink(Sink):
    pass


def save(state: Any) -> None:
    """A function."""


def test_a_lane_is_called_after_its_object_unless_named(handler: CallbacksHandler) -> None:
    for target in (HTTPSink(), Sink(), Sink(), save, logging, torch.optim, lambda: None):
        handler.proxy(target)
    handler.proxy(factory=HTTPSink)
    handler.proxy(Sink(), name="mine")
    assert list(handler.stats().lanes) == [
        "http_sink", "sink", "sink_1", "save", "logging", "optim", "proxy", "http_sink_1", "mine",
    ]  # fmt: skip


def test_an_object_that_has_any_attribute_is_called_after_its_class(handler: CallbacksHandler) -> None:
    class Anything:
        def __getattr__(self, name: str) -> Any:
            return Anything()

    handler.proxy(Anything())
    assert list(handler.stats().lanes) == ["anything"]


def test_a_name_that_is_taken_is_refused(handler: CallbacksHandler) -> None:
    handler.add_callbacks([background(Listens(), name="mine"), background(Listens(), lane="io")])
    handler.proxy(Sink(), name="yours")
    for name in ("mine", "io", "yours"):
        with pytest.raises(ConfigurationError, match=rf"proxy\(Sink\): there is .* {name!r} already"):
            handler.proxy(Sink(), name=name)


def test_a_callback_can_not_take_the_name_of_a_proxy(handler: CallbacksHandler) -> None:
    handler.proxy(Sink(), name="mine")
    with pytest.raises(ConfigurationError, match="'mine' already"):
        handler.add_callbacks([background(Listens(), name="mine")])
    handler.proxy(Sink(), name="listens")
    handler.add_callbacks([background(Listens())])
    assert list(handler.stats().lanes) == ["mine", "listens", "listens_1"]


def test_proxies_and_callbacks_of_one_lane_take_turns_in_order(handler: CallbacksHandler) -> None:
    seen: list[tuple[str, float]] = []

    class Callback:
        def on_batch_end(self, *, loss: float) -> None:
            seen.append(("hook", loss))

    handler.add_callbacks([background(Callback(), lane="io")])
    proxies = [handler.proxy(seen.append, lane="io") for _ in range(2)]
    for number in range(50):
        proxies[0](("first", number))
        handler.call_event("on_batch_end", loss=number)
        proxies[1](("second", number))
    handler.flush()
    assert seen == [(who, number) for number in range(50) for who in ("first", "hook", "second")]
    assert list(handler.stats().lanes) == ["io"]


@pytest.mark.parametrize("first", ["callback", "proxy"])
@pytest.mark.parametrize(
    "options",
    [{"queue_size": 7}, {"overflow": "latest"}, {"placement": "task"}],
    ids=lambda options: next(iter(options)),
)
def test_conflicting_options_in_one_lane_are_refused(
    handler: CallbacksHandler, options: dict[str, Any], first: str
) -> None:
    if first == "callback":
        handler.add_callbacks([background(Listens(), lane="io")])
    else:
        handler.proxy(Sink(), lane="io")
    option = next(iter(options))
    with pytest.raises(ConfigurationError, match=rf"proxy\(Sink\): {option}=.* conflicts with .* in lane 'io'"):
        handler.proxy(Sink(), lane="io", **options)
    with pytest.raises(ConfigurationError, match=rf"Listens: {option}=.* conflicts with .* in lane 'io'"):
        handler.add_callbacks([background(Listens(), lane="io", **options)])


# ------------------------------------------------------------------------------------------------------------ refused


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "give either the object, or factory="),
        ({"target": Sink(), "factory": Sink}, "give either the object, or factory="),
        ({"factory": Sink()}, "factory must be a function that returns the object, not <"),
        ({"target": Sink(), "every": {"on_batch_end": 2}}, r"proxy\(Sink\): every= is for events"),
        ({"target": Sink(), "when": bool}, "when= is for events"),
        ({"target": Sink(), "select": {"a": None}}, "select= is for events"),
        ({"target": Sink(), "queue_sise": 3}, r"proxy\(Sink\): .*no option 'queue_sise'; did you mean 'queue_size'"),
        ({"target": Sink(), "overflow": "newest"}, r"proxy\(Sink\): overflow must be one of"),
        ({"factory": Sink, "retries": -1}, r"proxy\(Sink\): retries must be"),
    ],
)
def test_what_can_not_work_is_refused_at_once(
    handler: CallbacksHandler, arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigurationError, match=message):
        handler.proxy(**arguments)
    assert dict(handler.stats().lanes) == {}


def test_an_async_factory_is_refused(handler: CallbacksHandler) -> None:
    async def make() -> Sink:
        return Sink()

    with pytest.raises(ConfigurationError, match="factory must be a function that returns the object"):
        handler.proxy(factory=make)


def test_a_proxy_of_a_proxy_or_of_a_handle_is_refused(handler: CallbacksHandler) -> None:
    proxy = handler.proxy(Sink())
    for target in (proxy, proxy.add, proxy.add(1)):
        with pytest.raises(ConfigurationError, match="stands for an object already"):
            handler.proxy(target)


def test_none_is_an_object_too(handler: CallbacksHandler) -> None:
    with pytest.raises(AttributeError, match="'NoneType' object has no attribute 'add'"):
        handler.proxy(None).add(1)


# ----------------------------------------------------------------------------------------------------------- overflow


def overflowed(handler: CallbacksHandler, overflow: Any, size: int, calls: Any) -> list[tuple[Any, ...]]:
    """What is left of ``calls(proxy)`` to a lane of ``size`` that is held up."""
    gate = Gate()
    proxy = handler.proxy(gate, overflow=overflow, queue_size=size)
    shut(proxy, gate)
    calls(proxy)
    gate.opened.set()
    handler.flush()
    return gate.calls


def test_latest_keeps_the_newest_call_of_each_method_and_first_argument(handler: CallbacksHandler) -> None:
    def calls(proxy: Any) -> None:
        for step in range(5):
            proxy.add("loss", step)
            proxy.add("accuracy", step)
            proxy.other("loss", step)

    left = overflowed(handler, "latest", 3, calls)
    assert sorted(left) == [("accuracy", 4), ("loss", 4), ("other", "loss", 4)]
    assert handler.stats().lanes["gate"].dropped == 12


def test_latest_takes_the_first_argument_by_name_too(handler: CallbacksHandler) -> None:
    def calls(proxy: Any) -> None:
        for step in range(5):
            proxy.add(tag="loss", step=step)
            proxy.add(tag="accuracy", step=step)

    left = overflowed(handler, "latest", 2, calls)
    assert left == [({"tag": "loss", "step": 4},), ({"tag": "accuracy", "step": 4},)]


@pytest.mark.parametrize("first", [{"loss": 1}, [1], torch.ones(2), None])
def test_latest_keeps_one_call_of_a_method_whose_first_argument_is_no_plain_value(
    handler: CallbacksHandler, first: Any
) -> None:
    def calls(proxy: Any) -> None:
        proxy.other("kept")
        for step in range(5):
            proxy.add(first, step)

    left = overflowed(handler, "latest", 2, calls)
    assert [call[-1] for call in left] == ["kept", 4]


def test_latest_keys_attributes_and_items_by_their_name(handler: CallbacksHandler) -> None:
    class Run(Gate):
        def __init__(self) -> None:
            super().__init__()
            self.__dict__["summary"] = {}
            self.__dict__["seen"] = []

        def __setattr__(self, name: str, value: Any) -> None:
            super().__setattr__(name, value)
            if "seen" in self.__dict__:
                self.seen.append((name, value))

    run = Run()
    proxy = handler.proxy(run, overflow="latest", queue_size=4)
    shut(proxy, run)
    for step in range(5):
        proxy.summary["best"] = step
        proxy.summary["last"] = step
        proxy.best = step
        proxy.last = step
    run.opened.set()
    handler.flush()
    assert run.summary == {"best": 4, "last": 4}
    assert run.seen == [("best", 4), ("last", 4)]


def test_drop_oldest_and_drop_newest_keep_what_they_say(handler: CallbacksHandler) -> None:
    def calls(proxy: Any) -> None:
        for number in range(5):
            proxy.add(number)

    assert overflowed(handler, "drop_oldest", 2, calls) == [(3,), (4,)]
    with CallbacksHandler() as other:
        assert overflowed(other, "drop_newest", 2, calls) == [(0,), (1,)]


# ------------------------------------------------------------------------------------------------------------- errors


class Flaky(Sink):
    """Fails, until its ``attempts`` are used up."""

    def __init__(self, attempts: int) -> None:
        super().__init__()
        self.left = attempts

    def send(self, rows: list[int]) -> str:
        rows.append(self.left)
        self.calls.append((list(rows),))
        self.left -= 1
        if self.left:
            raise ConnectionError("try again")
        return "sent"


def test_a_failed_call_is_tried_again_with_the_same_arguments(handler: CallbacksHandler) -> None:
    flaky = Flaky(3)
    assert handler.proxy(flaky, retries=2, backoff=0).send([0]).wait() == "sent"
    assert flaky.calls == [([0, 3],), ([0, 2],), ([0, 1],)]
    assert handler.stats().lanes["flaky"].failed == 0


def test_when_all_attempts_failed_the_call_has(handler: CallbacksHandler) -> None:
    flaky = Flaky(9)
    with pytest.raises(ConnectionError, match="try again"):
        handler.proxy(flaky, retries=1, backoff=0).send([0]).wait()
    assert len(flaky.calls) == 2
    assert handler.stats().errors[0].attempt == 2


def test_a_failure_is_logged_with_the_method(handler: CallbacksHandler, caplog: pytest.LogCaptureFixture) -> None:
    handler.proxy(Sink()).fail()
    handler.flush()
    assert caplog.messages[0].startswith("sink.fail failed (event 1, attempt 1):\nTraceback")
    assert "OSError: disk full" in caplog.messages[0]


def test_raise_raises_at_the_next_call_or_event(handler: CallbacksHandler) -> None:
    sink = Sink()
    proxy = handler.proxy(sink, on_error="raise")
    proxy.fail()
    handler.flush()
    with pytest.raises(LaneError, match=r"sink\.fail: OSError: disk full") as raised:
        proxy.add(1)
    assert isinstance(raised.value.__cause__, OSError)
    proxy.add(2)
    proxy.fail()
    handler.flush()
    handler.add_callbacks([Listens()])
    with pytest.raises(LaneError, match="disk full"):
        handler.call_event("on_batch_end")
    assert sink.calls == [("fail",), (2,), ("fail",)]


def test_raise_does_not_raise_within_a_hook(handler: CallbacksHandler) -> None:
    sink, called = Sink(), threading.Event()
    proxy = handler.proxy(sink, on_error="raise")

    class Callback:
        def on_batch_end(self) -> None:
            proxy.add("hook")
            called.set()

    handler.add_callbacks([background(Callback())])
    gate = Gate()
    shut(handler.proxy(gate, lane="callback"), gate)
    handler.call_event("on_batch_end")
    with pytest.raises(OSError, match="disk full"):
        proxy.fail().wait()
    gate.opened.set()
    assert called.wait(PATIENCE)
    with pytest.raises(LaneError, match="disk full"):
        proxy.add(1)
    assert handler.flush().failed == 1
    assert sink.calls == [("fail",), ("hook",)]


def test_raise_at_end_raises_at_close() -> None:
    handler = CallbacksHandler()
    handler.proxy(Sink(), on_error="raise_at_end").fail()
    with pytest.raises(LaneError, match=r"sink\.fail: OSError: disk full"):
        handler.close()


def test_disable_turns_the_proxy_off_after_three_failures(handler: CallbacksHandler) -> None:
    sink = Sink()
    proxy = handler.proxy(sink, on_error="disable")
    for _ in range(5):
        proxy.fail()
    handler.flush()
    assert len(sink.calls) == 3
    assert handler.stats().lanes["sink"].dropped == 2


def test_an_argument_that_can_not_be_copied_fails_the_call_by_its_name(
    handler: CallbacksHandler, tmp_path: Any
) -> None:
    sink = Sink()
    proxy = handler.proxy(sink, retries=5)
    with open(tmp_path / "a.txt", "w") as file:
        with pytest.raises(CaptureError, match=r"sink\.add: argument 2: .*TextIOWrapper can't be copied"):
            proxy.add(1, file).wait()
        with pytest.raises(CaptureError, match=r"sink\.add: argument to\['file'\]: .*TextIOWrapper can't be copied"):
            proxy.add(1, to={"file": file}).wait()
    assert sink.calls == []


def test_a_call_with_wrong_arguments_fails_on_its_lane(handler: CallbacksHandler) -> None:
    with pytest.raises(TypeError, match=r"save\(\) missing 1 required positional argument"):
        handler.proxy(save)().wait()


def test_the_remedies_for_what_can_not_be_copied_are_those_that_a_call_has(handler: CallbacksHandler) -> None:
    proxy = handler.proxy(Sink())
    lock = threading.Lock()
    for call, argument in ((proxy.add(lock), "argument 1"), (proxy.add(to=lock), "argument to")):
        with pytest.raises(CaptureError) as raised:
            call.wait()
        assert str(raised.value) == (
            f"sink.add: {argument}: a _thread.lock can't be copied. Give a function for its type to capture.register, "
            "or leave it out"
        )


# ----------------------------------------------------------------------------------------------------- what one sees


def test_stats_show_the_call_that_runs_and_count_the_others(handler: CallbacksHandler) -> None:
    gate = Gate()
    proxy = handler.proxy(gate, name="board")
    shut(proxy, gate)
    proxy.add(1)
    lane = handler.stats().lanes["board"]
    assert (lane.running, lane.queued) == ("wait", 1)
    gate.opened.set()
    handler.flush()
    assert handler.stats().lanes["board"].delivered == 2


def test_what_capturing_costs_is_counted(handler: CallbacksHandler) -> None:
    proxy = handler.proxy(Sink())
    proxy.add("loss", 0.5)  # types that are met for the first time are looked into
    before = handler.stats().captures
    proxy.add("loss", 0.25)
    assert handler.stats().captures == before
    proxy.add(torch.zeros(100_000))
    stats = handler.stats()
    assert stats.captures == before + 1
    assert stats.capture_seconds > 0
    assert "their arguments" in str(handler.explain())


def test_the_start_line_names_the_proxies(caplog: pytest.LogCaptureFixture) -> None:
    handler = CallbacksHandler()
    proxy = handler.proxy(Sink(), lane="io")
    with caplog.at_level(logging.INFO):
        proxy.add(1)
    handler.close()
    assert caplog.messages == ["callbacks: sink (thread, a proxy, lane io)"]
