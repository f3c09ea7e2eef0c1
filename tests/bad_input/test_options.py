"""Options that can't work, alone or beside those of others."""

from __future__ import annotations

import inspect
from typing import Any

import pytest

from async_trainer import CallbacksHandler, background, inline
from async_trainer.errors import ConfigurationError
from tests.bad_input.doubles import Make, Rows, message_of


def test_an_unknown_option_is_refused_with_the_nearest_one() -> None:
    options: dict[str, Any] = {"placment": "task"}
    assert message_of(lambda: background(Rows(), **options)) == (
        "Rows: background() has no option 'placment'; did you mean 'placement'?"
    )
    assert message_of(lambda: background(Rows(), zzz=1)) == "Rows: background() has no option 'zzz'"  # type: ignore[call-overload]


def test_an_unknown_option_of_the_handler_is_refused_with_the_nearest_one() -> None:
    class Ours(CallbacksHandler):
        pass

    options: dict[str, Any] = {"max_worker": 3}
    expected = "() has no option 'max_worker'; did you mean 'max_workers'?"
    assert message_of(lambda: CallbacksHandler([Rows()], **options)) == f"CallbacksHandler{expected}"
    assert message_of(lambda: Ours([Rows()], **options)) == f"Ours{expected}"
    assert message_of(lambda: CallbacksHandler(zzz=1)) == "CallbacksHandler() has no option 'zzz'"  # type: ignore[call-arg]
    assert list(inspect.signature(CallbacksHandler).parameters)[:3] == ["callbacks", "events", "max_workers"]


POLICIES = "must be one of 'block', 'drop_oldest', 'drop_newest', 'latest', not"
ERRORS = "must be one of 'log', 'raise_at_end', 'raise', 'disable', not"
WRONG_VALUES: list[tuple[str, Any, str]] = [
    ("placement", "proces", "must be one of 'thread', 'task', 'process', not 'proces'; did you mean 'process'?"),
    ("placement", "threads", "must be one of 'thread', 'task', 'process', not 'threads'; did you mean 'thread'?"),
    ("placement", 1, "must be one of 'thread', 'task', 'process', not 1"),
    ("name", "", "must be a non-empty str, not ''"),
    ("name", 3, "must be a non-empty str, not 3"),
    ("lane", "", "must be a non-empty str, not ''"),
    ("lane", b"x", "must be a non-empty str, not b'x'"),
    ("queue_size", 0, "must be a whole number of events, 1 or more, not 0"),
    ("queue_size", -1, "must be a whole number of events, 1 or more, not -1"),
    ("queue_size", 2.5, "must be a whole number of events, 1 or more, not 2.5"),
    ("queue_size", True, "must be a whole number of events, 1 or more, not True"),
    ("queue_size", None, "must be a whole number of events, 1 or more, not None"),
    ("overflow", "drop", f"{POLICIES} 'drop'"),
    ("overflow", "drop_newst", f"{POLICIES} 'drop_newst'; did you mean 'drop_newest'?"),
    ("overflow", None, f"{POLICIES} None"),
    ("on_error", "ignore", f"{ERRORS} 'ignore'"),
    ("on_error", "raise_at_the_end", f"{ERRORS} 'raise_at_the_end'; did you mean 'raise_at_end'?"),
    ("on_error", ["log"], f"{ERRORS} ['log']"),
    ("retries", -1, "must be a whole number, 0 or more, not -1"),
    ("retries", 1.5, "must be a whole number, 0 or more, not 1.5"),
    ("retries", True, "must be a whole number, 0 or more, not True"),
    ("backoff", -0.1, "must be a number of seconds, 0 or more, not -0.1"),
    ("backoff", "1", "must be a number of seconds, 0 or more, not '1'"),
    ("backoff", float("inf"), "must be a number of seconds, 0 or more, not inf"),
    ("backoff", float("nan"), "must be a number of seconds, 0 or more, not nan"),
    ("timeout", 0, "must be a number of seconds above 0, or None, not 0"),
    ("timeout", -1.0, "must be a number of seconds above 0, or None, not -1.0"),
    ("timeout", "1 s", "must be a number of seconds above 0, or None, not '1 s'"),
    ("timeout", float("nan"), "must be a number of seconds above 0, or None, not nan"),
    ("every", 50, "must say of which event: every={'on_batch_end': 50}, not every=50"),
    ("every", 0, "must be {event: whole number, 1 or more}, not 0"),
    ("every", "on_batch_end", "must be {event: whole number, 1 or more}, not 'on_batch_end'"),
    ("every", {"on_batch_end": 0}, "must be {event: whole number, 1 or more}, not {'on_batch_end': 0}"),
    ("every", {"on_batch_end": 0.5}, "must be {event: whole number, 1 or more}, not {'on_batch_end': 0.5}"),
    ("every", {"on_batch_end": True}, "must be {event: whole number, 1 or more}, not {'on_batch_end': True}"),
    ("every", {3: 3}, "must be {event: whole number, 1 or more}, not {3: 3}"),
    ("when", True, "must be callable (it is called with the event's arguments), not True"),
    ("when", abs, "must take keywords, such as lambda step, **_: step > 100, not <built-in function abs>"),
    ("select", ["model"], "must be {argument: function or None}, not ['model']"),
    ("select", {"model": 3}, "must be {argument: function or None}, not {'model': 3}"),
    ("select", {1: None}, "must be {argument: function or None}, not {1: None}"),
]


@pytest.mark.parametrize(("option", "value", "problem"), WRONG_VALUES, ids=[f"{o}-{v!r}" for o, v, _ in WRONG_VALUES])
def test_a_wrong_value_is_refused_wherever_it_is_given(option: str, value: Any, problem: str) -> None:
    given: dict[str, Any] = {option: value}

    class Wrong(Rows):
        background = given

    assert message_of(lambda: background(Rows(), **given)) == f"Rows: {option} {problem}"
    assert message_of(lambda: background([Rows()], **given)) == f"Rows: {option} {problem}"
    assert message_of(lambda: CallbacksHandler([Wrong()])) == f"Wrong.background: {option} {problem}"


def test_each_option_has_a_wrong_value_here() -> None:
    from dataclasses import fields

    from async_trainer.callback import BackgroundOptions, Options

    names = {field.name for field in fields(Options)}
    assert names == {option for option, _, _ in WRONG_VALUES} == set(BackgroundOptions.__annotations__)


def test_the_class_attribute_must_be_a_dict_of_options() -> None:
    class Wrong(Rows):
        background: Any = True

    class Misspelt(Rows):
        background: Any = {"queuesize": 3}  # noqa: RUF012

    assert message_of(lambda: CallbacksHandler([Wrong()])) == (
        "Wrong.background must be a dict of options for background(), not bool; an empty dict takes the defaults"
    )
    assert message_of(lambda: CallbacksHandler([Misspelt()])) == (
        "Misspelt.background: background() has no option 'queuesize'; did you mean 'queue_size'?"
    )


def test_one_name_for_a_list_is_refused() -> None:
    assert message_of(lambda: background([Rows(), Rows()], name="rows")) == (
        "background([...], name='rows'): 2 callbacks can't share one name; wrap each in background(callback, name=...)"
    )
    assert background([Rows()], name="rows")[0].options.name == "rows"


def test_two_callbacks_of_one_name_are_refused_also_when_added_later(handlers: Make) -> None:
    expected = "two callbacks are called 'rows': the name is the key of their states; give each its own name="
    assert message_of(lambda: handlers(background(Rows(), name="rows"), background(Rows(), name="rows"))) == expected
    assert message_of(lambda: handlers(Rows(), background(Rows(), name="rows"))) == expected
    handler = handlers(background(Rows(), name="rows"))
    assert message_of(lambda: handler.add_callbacks([background(Rows(), name="rows")])) == expected
    handler.add_callbacks([background(Rows())])  # an unnamed one takes the next free name
    assert list(handler.stats().lanes) == ["rows", "rows_1"]


def test_the_name_of_a_lane_that_others_share_is_not_free(handlers: Make) -> None:
    expected = "Rows: there is a lane 'files' already: give it another name=, or say lane='files' to share its FIFO"
    assert message_of(lambda: handlers(background(Rows(), lane="files"), background(Rows(), name="files"))) == expected
    handler = handlers()
    handler.proxy(Rows(), name="files")
    assert message_of(lambda: handler.add_callbacks([background(Rows(), name="files")])) == expected
    handlers(background(Rows(), lane="files"), background(Rows(), name="files", lane="files"))


@pytest.mark.parametrize("first", [background, inline])
@pytest.mark.parametrize("second", [background, inline])
def test_one_instance_attached_twice_is_refused(first: Any, second: Any, handlers: Make) -> None:
    rows = Rows()
    expected = (
        "Rows is attached twice (as 'rows'): it would handle each event twice; pass it once, or make a second instance"
    )
    assert message_of(lambda: handlers(first(rows), second(rows))) == expected
    assert message_of(lambda: handlers([first(rows)], Rows(), [[second(rows)]])) == expected
    handler = handlers(first(rows))
    assert message_of(lambda: handler.add_callbacks([second(rows)])) == expected
    handlers(first(Rows()), second(Rows()))


@pytest.mark.parametrize(
    ("one", "other", "conflict"),
    [
        ({"queue_size": 5}, {"queue_size": 6}, "queue_size=6 conflicts with queue_size=5"),
        ({"queue_size": 5}, {}, "queue_size=1024 conflicts with queue_size=5"),
        ({"overflow": "latest"}, {"overflow": "block"}, "overflow='block' conflicts with overflow='latest'"),
        ({"placement": "task"}, {"placement": "thread"}, "placement='thread' conflicts with placement='task'"),
        ({}, {"placement": "task"}, "placement='task' conflicts with placement='thread'"),
    ],
)
def test_conflicting_options_in_one_lane_are_refused(one: Any, other: Any, conflict: str, handlers: Make) -> None:
    option = conflict.split("=")[0]
    expected = (
        f"Rows: {conflict} of the others in lane 'files'; one lane has one {option}: give them all the same, or "
        "another lane="
    )
    first, second = background(Rows(), lane="files", **one), background(Rows(), lane="files", **other)
    assert message_of(lambda: handlers(first, second)) == expected
    assert message_of(lambda: handlers(first).add_callbacks([second])) == expected


def test_options_that_are_each_callbacks_own_may_differ_in_one_lane(handlers: Make) -> None:
    handlers(
        background(Rows(), lane="files", on_error="raise", retries=2, timeout=3.0),
        background(Rows(), lane="files", on_error="disable", every={"on_batch_end": 2}),
    )


def test_every_on_an_unknown_event_is_refused() -> None:
    assert message_of(lambda: CallbacksHandler([background(Rows(), every={"on_bach_end": 50})])) == (
        "Rows: every={'on_bach_end': ...}: there is no such event; did you mean 'on_batch_end'?"
    )


def test_select_on_a_name_that_no_hook_has_is_refused() -> None:
    class Named:
        def on_batch_end(self, *, output: Any) -> None: ...

    assert message_of(lambda: CallbacksHandler([background(Named(), select={"outputs": len})])) == (
        "Named: select={'outputs': ...}: no hook names it; did you mean 'output'?"
    )
    assert message_of(lambda: CallbacksHandler([background(Named(), select={"outptu": None})])) == (
        "Named: select={'outptu': ...}: no hook names it; did you mean 'output'?"
    )
    CallbacksHandler([background(Named(), select={"output": len})])


def test_select_says_truly_of_a_name_that_events_bring_that_it_is_not_captured() -> None:
    class Named:
        def on_batch_end(self, *, output: Any) -> None: ...

    CallbacksHandler(background([Named(), Rows()], select={"model": None}))  # the same for a list of callbacks


def test_select_on_a_name_that_may_come_by_kwargs_is_taken() -> None:
    class Greedy:
        def on_batch_end(self, *, output: Any, **kwargs: Any) -> None: ...

    CallbacksHandler([background(Greedy(), select={"outputs": len, "images": None})])


def test_select_on_the_event_itself_is_refused() -> None:
    assert message_of(lambda: CallbacksHandler([background(Rows(), select={"event": str})])) == (
        "Rows: select={'event': ...}: it is the event's name and number, which is not captured"
    )


def test_a_when_that_nothing_awaits_is_refused_as_it_would_always_be_true() -> None:
    async def when(**_: Any) -> bool:
        return False

    assert message_of(lambda: background(Rows(), when=when)).startswith(  # type: ignore[call-overload]
        "Rows: when must be a plain function, as nothing awaits it, not <function "
    )


def test_a_refused_callback_leaves_the_handler_as_it_was(handlers: Make) -> None:
    rows = Rows()
    handler = handlers(background(rows, name="rows"))
    handler.call_event("on_batch_end", n=1)
    with pytest.raises(ConfigurationError):
        handler.add_callbacks([background(Rows(), name="more"), background(Rows(), name="rows")])
    assert list(handler.stats().lanes) == ["rows"]
    handler.call_event("on_batch_end", n=2)
    handler.close()
    assert [row["n"] for row in rows.rows] == [1, 2]
