"""Events, their arguments, and settings of the handler."""

from __future__ import annotations

import logging
import math
from functools import partial
from typing import Any

import pytest

from async_trainer import CallbacksHandler, background, inline
from async_trainer.errors import InsideHookError
from tests.bad_input.doubles import Make, Rows, message_of

# --------------------------------------------------------------------------------------------------------------- events


DECLARE = "(an event of your own is declared with CallbacksHandler(..., events=[...]))"


def test_an_unknown_event_is_refused_with_the_nearest_one(handlers: Make) -> None:
    handler = handlers(background(Rows()))
    assert message_of(lambda: handler.call_event("on_bach_end")) == (
        f"there is no event 'on_bach_end'; did you mean 'on_batch_end'? {DECLARE}"
    )
    assert message_of(lambda: handler.call_event("batch_end")) == (
        f"there is no event 'batch_end'; did you mean 'on_batch_end'? {DECLARE}"
    )
    positional: Any = handler.call_event
    assert message_of(lambda: positional("on_epoch_end", {"loss": 1})) == (
        "call_event takes an event's arguments by keyword: call_event('on_epoch_end', loss=loss); those in a dict as "
        "**arguments"
    )
    assert message_of(lambda: handler.call_event("on_zzz")) == f"there is no event 'on_zzz' {DECLARE}"


@pytest.mark.parametrize("event", [3, None, ["on_batch_end"]])
def test_what_is_no_name_is_no_event(event: Any) -> None:
    assert message_of(lambda: CallbacksHandler().call_event(event)) == f"there is no event {event!r} {DECLARE}"


def test_an_argument_called_event_is_refused_by_each_way_that_hooks_run(handlers: Make) -> None:
    expected = "on_batch_end: an argument can't be called 'event': hooks get the event's name and number by that name"
    for callback in (background(Rows()), inline(Rows())):
        handler = handlers(callback)
        assert message_of(partial(handler.call_event, "on_batch_end", event="mine")) == expected
    assert "on_train_start: an argument" in message_of(
        lambda: handlers(background(Rows())).call_event("on_train_start", event="mine")
    )


@pytest.mark.parametrize(
    ("events", "problem"),
    [
        ("on_rollout_end", "events must be a list of names, not the str 'on_rollout_end'"),
        (["rollout_end"], "events: 'rollout_end' must be the name of a hook, such as 'on_rollout_end'"),
        (["on_rollout end"], "events: 'on_rollout end' must be the name of a hook, such as 'on_rollout_end'"),
        ([3], "events: 3 must be the name of a hook, such as 'on_rollout_end'"),
        (3, "events must be a list of names, not 3"),
        (None, "events must be a list of names, not None"),
    ],
)
def test_bad_names_of_events_are_refused(events: Any, problem: str) -> None:
    assert message_of(lambda: CallbacksHandler(events=events)) == problem


WHOLE = ("max_workers", "max_snapshot_bytes")
SECONDS = ("stall_timeout", "shutdown_timeout", "switch_interval")
BAD_SETTINGS: list[tuple[str, Any, str]] = [
    *[(one, value, f"1 or more, not {value}") for one in WHOLE for value in (0, -1)],
    *[(one, value, f"a whole number, not {value!r}") for one in WHOLE for value in (1.5, "3", None, True)],
    *[
        (one, value, f"above 0 s, and finite, not {value}")
        for one in SECONDS
        for value in (0, -1.0, math.inf, math.nan)
    ],
    *[(one, value, f"a number, not {value!r}") for one in SECONDS for value in ("1 s", True)],
    *[(one, None, "a number, not None") for one in SECONDS[:2]],
    *[("synchronous", value, f"True or False, not {value!r}") for value in ("yes", None, 1)],
]


@pytest.mark.parametrize(("setting", "value", "problem"), BAD_SETTINGS)
def test_bad_settings_of_a_handler_are_refused(setting: str, value: Any, problem: str) -> None:
    settings = {setting: value}
    assert message_of(lambda: CallbacksHandler(**settings)) == f"{setting} must be {problem}"


def test_entering_a_closed_handler_is_refused_with_the_way_to_a_new_one(handlers: Make) -> None:
    handler = handlers(background(Rows()))
    with handler:
        handler.call_event("on_batch_end")
    expected = "this handler is closed; copy.copy(handler) is a new one with the same callbacks"
    assert message_of(handler.__enter__) == expected


@pytest.mark.parametrize("wait", ["flush", "close", "state_dict"])
def test_waiting_inside_a_background_hook_is_refused_by_name(wait: str, handlers: Make) -> None:
    class Waits:
        def on_batch_end(self) -> None:
            getattr(handler, wait)()

    handler = handlers(background(Waits()))
    handler.call_event("on_batch_end")
    report = handler.close()
    assert report.failed == 1
    assert isinstance(report.errors[0].error, InsideHookError)
    called = {"state_dict": "barrier.wait"}.get(wait, wait)
    assert str(report.errors[0].error) == (
        f"{called}() inside a background hook would wait for the hook itself; call it from the training loop"
    )


# -------------------------------------------------------------------------------------------------------- missing names


class Typo:
    """Names what nothing provides."""

    def __init__(self) -> None:
        self.calls = 0

    def on_batch_end(self, *, los: Any, state: Any) -> None:
        self.calls += 1


def test_a_name_that_nothing_provides_is_logged_with_the_names_there_are_and_counted(
    handlers: Make, caplog: pytest.LogCaptureFixture
) -> None:
    typo, rows = Typo(), Rows()
    handler = handlers(background(typo, retries=3, backoff=0.0), background(rows))
    handler.call_event("on_train_start", metrics={})
    with caplog.at_level(logging.ERROR, "async_trainer"):
        for n in range(3):
            handler.call_event("on_batch_end", state=n, loss=0.5)
        report = handler.close()
    lanes = handler.stats().lanes
    assert (lanes["typo"].delivered, lanes["typo"].failed) == (0, 3)
    assert lanes["rows"].delivered == 3  # the other callbacks are none the worse
    assert typo.calls == 0
    [failure] = report.errors
    assert (failure.count, failure.attempt) == (3, 1)  # not tried again: each attempt would say the same
    expected = (
        "typo.on_batch_end names 'los', which neither this event nor the start of the run brings; did you mean 'loss'? "
        "There are: state, loss, metrics. Give the parameter a default to make it optional"
    )
    assert str(failure.error) == expected
    assert caplog.messages == [  # once, and without a traceback, which would show no line of the user's
        f"typo.on_batch_end failed (event 1, attempt 1): ConfigurationError: {expected}"
    ]


def test_several_missing_names_are_all_told(handlers: Make) -> None:
    class Demanding:
        def on_epoch_end(self, *, a: Any, b: Any) -> None: ...

    handler = handlers(background(Demanding()))
    handler.call_event("on_epoch_end")
    [failure] = handler.close().errors
    assert "names 'a', 'b', which neither" in str(failure.error)
    assert "the start of the run brings. There are: no arguments. Give" in str(failure.error)


def test_a_missing_name_is_raised_on_the_spot_in_synchronous_mode(handlers: Make) -> None:
    handler = handlers(background(Typo()), synchronous=True)
    assert "names 'los'" in message_of(lambda: handler.call_event("on_batch_end", state=1))
