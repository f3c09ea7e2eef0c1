"""Each mistake that can be seen: when it is seen, and what is said, the remedy included."""

from __future__ import annotations

import functools
import logging
import threading
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from async_trainer import Callback, CallbacksHandler, background, inline
from async_trainer.errors import CaptureError, ConfigurationError, InsideHookError


class Rows:
    """Keeps what it gets."""

    def __init__(self, **attributes: Any) -> None:
        self.rows: list[Any] = []
        self.__dict__.update(attributes)

    def on_batch_end(self, **kwargs: Any) -> None:
        self.rows.append(kwargs)


class Writer:
    """Not a callback: no hooks."""


@pytest.fixture
def handlers() -> Iterator[Callable[..., CallbacksHandler]]:
    """Makes handlers, and closes them, whatever became of the test."""
    made: list[CallbacksHandler] = []

    def make(*callbacks: Any, **settings: Any) -> CallbacksHandler:
        made.append(CallbacksHandler(callbacks, **settings))
        return made[-1]

    yield make
    for handler in made:
        handler._close(5.0)


Make = Callable[..., CallbacksHandler]


def message_of(function: Callable[[], Any], error: type[Exception] = ConfigurationError) -> str:
    with pytest.raises(error) as caught:
        function()
    return str(caught.value)


# -------------------------------------------------------------------------------------------------- hooks and callbacks


def test_a_misspelt_hook_is_refused_with_the_nearest_event_and_the_way_to_declare_one() -> None:
    class LossCurve(Callback):
        def on_bach_end(self) -> None: ...

    for callback in (LossCurve(), background(LossCurve()), inline(LossCurve())):
        assert message_of(lambda callback=callback: CallbacksHandler([callback])) == (
            "LossCurve.on_bach_end is the hook of no event; did you mean 'on_batch_end'? "
            "(an event of your own is declared with CallbacksHandler(..., events=['on_bach_end']))"
        )


def test_a_hook_far_from_every_event_gets_no_guess() -> None:
    class Odd:
        def on_zzz(self) -> None: ...

    assert message_of(lambda: CallbacksHandler([Odd()])) == (
        "Odd.on_zzz is the hook of no event (an event of your own is declared with CallbacksHandler(..., "
        "events=['on_zzz']))"
    )


def test_a_declared_event_is_no_misspelling_and_an_undeclared_one_is() -> None:
    class Agent:
        def on_rollout_end(self) -> None: ...

    CallbacksHandler([Agent()], events=["on_rollout_end"])
    assert "'on_rollout_end'" in message_of(lambda: CallbacksHandler([Agent()]))
    assert "events=['on_rollout_end']" in message_of(lambda: CallbacksHandler().add_callbacks([Agent()]))


def test_a_property_or_plain_attribute_that_starts_with_on_is_no_hook() -> None:
    class Gpu(Rows):
        on_gpu = True

        @property
        def on_disk(self) -> None:
            raise AssertionError("it must not be read")

    CallbacksHandler([Gpu()])


@pytest.mark.parametrize("wrap", [background, inline, lambda callback: callback])
def test_a_class_is_refused_and_an_instance_asked_for(wrap: Callable[[Any], Any]) -> None:
    assert message_of(lambda: CallbacksHandler([wrap(Rows)])) == "Rows is a class: pass an instance, Rows()"


@pytest.mark.parametrize("wrap", [background, inline, lambda callback: callback])
def test_a_function_is_refused_and_the_proxy_named(wrap: Callable[[Any], Any]) -> None:
    assert message_of(lambda: CallbacksHandler([wrap(torch.save)])) == (
        "save is a function: a callback is an object with hooks such as on_batch_end; to call functions in the "
        "background, use handler.proxy(function)"
    )
    assert "<lambda> is a function" in message_of(lambda: CallbacksHandler([wrap(lambda: None)]))


def test_an_object_without_hooks_warns_where_it_was_given() -> None:
    with pytest.warns(UserWarning, match="^Writer has no hook: no event will ever reach it$") as caught:
        CallbacksHandler([Writer()])
    assert caught[0].filename == __file__
    handler = CallbacksHandler()
    with pytest.warns(UserWarning, match="Writer has no hook") as caught:
        handler.add_callbacks([Writer()])
    assert caught[0].filename == __file__


@pytest.mark.parametrize("callbacks", [Rows(), "rows", 3])
def test_one_callback_in_place_of_a_list_is_refused(callbacks: Any) -> None:
    name = type(callbacks).__name__
    expected = f"callbacks must be a list, not {name}: [{name}(...)]"
    assert message_of(lambda: CallbacksHandler(callbacks)) == expected
    assert message_of(lambda: CallbacksHandler().add_callbacks(callbacks)) == expected


def test_a_positional_only_parameter_is_refused_with_the_signature_to_write() -> None:
    class Positional:
        def on_batch_end(self, state: Any, /, **kwargs: Any) -> None: ...

    assert message_of(lambda: CallbacksHandler([Positional()])) == (
        "Positional.on_batch_end: 'state' is positional-only; hooks are called with keywords: "
        "def on_batch_end(self, *, state, **kwargs)"
    )


def test_a_hook_whose_signature_cannot_be_read_is_refused() -> None:
    class InC:
        on_batch_end = staticmethod(max)

    assert message_of(lambda: CallbacksHandler([InC()])).startswith("InC.on_batch_end: its signature can't be read (")
    assert message_of(lambda: CallbacksHandler([InC()])).endswith("; write it as a def")


def test_a_hook_with_a_yield_is_refused_as_calling_it_would_run_nothing() -> None:
    class Generator:
        def on_batch_end(self, **kwargs: Any) -> Any:
            yield 1

    class AsyncGenerator:
        async def on_batch_end(self, **kwargs: Any) -> Any:
            yield 1

    for callback in (Generator(), AsyncGenerator()):
        assert message_of(lambda callback=callback: CallbacksHandler([background(callback)])) == (
            f"{type(callback).__name__}.on_batch_end contains a yield: calling it would run nothing; a hook is a plain "
            "function"
        )


class Webhook:
    async def on_batch_end(self, **kwargs: Any) -> None: ...


def test_an_async_hook_inline_is_refused() -> None:
    expected = "Webhook.on_batch_end is async, and nothing awaits it inline: use background(...)"
    assert message_of(lambda: CallbacksHandler([Webhook()])) == expected
    assert message_of(lambda: CallbacksHandler([inline(Webhook())])) == expected


def test_an_async_hook_on_a_thread_is_refused() -> None:
    assert message_of(lambda: CallbacksHandler([background(Webhook(), placement="thread")])) == (
        "Webhook.on_batch_end is async: it needs placement='task' (the default for such callbacks), not 'thread'"
    )


def test_a_coroutine_from_a_hook_that_does_not_look_async_fails_the_event(handlers: Make) -> None:
    class Disguised:
        def __init__(self) -> None:
            self.on_batch_end = lambda **kwargs: Webhook().on_batch_end()

    handler = handlers(background(Disguised()))
    handler.call_event("on_batch_end")
    report = handler.close()
    assert (report.delivered, report.failed) == (0, 1)
    assert str(report.errors[0].error) == (
        "disguised.on_batch_end returned a coroutine, and nothing awaits it in a thread: use placement='task'"
    )


def test_a_callback_wrapped_both_ways_is_refused() -> None:
    expected = "a callback is one or the other"
    assert message_of(lambda: background(inline(Rows()))) == f"background(inline(Rows)): {expected}"
    assert message_of(lambda: inline(background(Rows()))) == f"inline(background(Rows)): {expected}"
    assert message_of(lambda: inline([Rows(), background(Rows())])) == f"inline(background(Rows)): {expected}"


# ------------------------------------------------------------------------------------------------------------ options


def test_an_unknown_option_is_refused_with_the_nearest_one() -> None:
    options: dict[str, Any] = {"placment": "task"}
    assert message_of(lambda: background(Rows(), **options)) == (
        "Rows: background() has no option 'placment'; did you mean 'placement'?"
    )
    assert message_of(lambda: background(Rows(), zzz=1)) == "Rows: background() has no option 'zzz'"  # type: ignore[call-overload]


POLICIES = "must be one of 'block', 'drop_oldest', 'drop_newest', 'latest', not"
ERRORS = "must be one of 'log', 'raise_at_end', 'raise', 'disable', not"
WRONG_VALUES: list[tuple[str, Any, str]] = [
    ("placement", "proces", "must be one of 'thread', 'task', not 'proces'"),
    ("placement", "threads", "must be one of 'thread', 'task', not 'threads'; did you mean 'thread'?"),
    ("placement", 1, "must be one of 'thread', 'task', not 1"),
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
    ("every", 50, "must be {event: whole number, 1 or more}, not 50"),
    ("every", {"on_batch_end": 0}, "must be {event: whole number, 1 or more}, not {'on_batch_end': 0}"),
    ("every", {"on_batch_end": 0.5}, "must be {event: whole number, 1 or more}, not {'on_batch_end': 0.5}"),
    ("every", {"on_batch_end": True}, "must be {event: whole number, 1 or more}, not {'on_batch_end': True}"),
    ("every", {3: 3}, "must be {event: whole number, 1 or more}, not {3: 3}"),
    ("when", True, "must be callable (it is called with the event's arguments), not True"),
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
    CallbacksHandler([background(Named(), select={"output": len, "model": None})])
    CallbacksHandler([background(Rows(), select={"outputs": len})])  # it may come by **kwargs


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


# --------------------------------------------------------------------------------------------- models that nobody reads


def reads(model: Any) -> Any:
    return model


class Unread:
    def on_epoch_end(self, *, model: Any, state: Any) -> None:
        self.state = state


class UnreadOptimizers:
    async def on_epoch_end(self, *, optimizers: Any, **kwargs: Any) -> None: ...


class Rebound:
    def on_epoch_end(self, *, model: Any) -> None:
        model = 3  # noqa: F841


class UnreadAndDecorated:
    @functools.lru_cache  # noqa: B019
    def on_epoch_end(self, *, model: Any) -> None: ...


@pytest.mark.parametrize(
    ("callback", "name"),
    [(Unread, "model"), (UnreadOptimizers, "optimizers"), (Rebound, "model"), (UnreadAndDecorated, "model")],
)
def test_a_background_hook_that_names_a_model_and_never_reads_it_warns(callback: Any, name: str) -> None:
    with pytest.warns(UserWarning, match="never reads it") as caught:
        CallbacksHandler([background(callback())])
    assert [str(one.message) for one in caught] == [
        f"{callback.__name__}.on_epoch_end names {name!r} and never reads it: it would be copied each time; leave it "
        f"out of the signature, or pass select={{{name!r}: None}}"
    ]
    assert caught[0].filename == __file__


def decorated(hook: Any) -> Any:
    @functools.wraps(hook)
    def wrapper(self: Any, **kwargs: Any) -> Any:
        return hook(self, **kwargs)

    return wrapper


def reading_decorator(hook: Any) -> Any:
    @functools.wraps(hook)
    def wrapper(self: Any, *, model: Any, **kwargs: Any) -> Any:
        reads(model)
        return hook(self, model=model, **kwargs)

    return wrapper


class ReadsDirectly:
    def on_epoch_end(self, *, model: Any) -> None:
        reads(model)


class ReadsInClosure:
    def on_epoch_end(self, *, model: Any) -> None:
        self.later = lambda: reads(model)


class ReadsInNestedFunction:
    def on_epoch_end(self, *, model: Any) -> None:
        def outer() -> Any:
            def inner() -> Any:
                return model

            return inner()

        outer()


class ReadsInComprehension:
    def on_epoch_end(self, *, model: Any) -> None:
        self.names = [name for name in reads(1) if name in model]


class ReadsInGenerator:
    def on_epoch_end(self, *, model: Any) -> None:
        self.names = tuple(model for _ in range(3))


class ReadsByLocals:
    def on_epoch_end(self, *, model: Any) -> None:
        reads(locals()["model"])


class ReadsByEval:
    def on_epoch_end(self, *, model: Any) -> None:
        eval("reads(model)")


class ReadsAnAttribute:
    def on_epoch_end(self, *, model: Any) -> None:
        self.weight = model.weight


class ReadsAfterAssignment:
    def on_epoch_end(self, *, model: Any) -> None:
        model = model.eval()
        self.model = model


class ReadsInATry:
    def on_epoch_end(self, *, model: Any) -> None:
        try:
            raise KeyError
        except KeyError:
            reads(model)


class ReadsInAMatch:
    def on_epoch_end(self, *, model: Any) -> None:
        match model:
            case _:
                pass


class ReadsDecorated:
    @decorated
    def on_epoch_end(self, *, model: Any) -> None:
        reads(model)


class ReadsInTheDecorator:
    @reading_decorator
    def on_epoch_end(self, *, model: Any) -> None: ...


class ReadsAsync:
    async def on_epoch_end(self, *, model: Any) -> None:
        reads(model)


class ReadsInAClass:
    def on_epoch_end(self, *, model: Any) -> None:
        class Local:
            net = model


class ByPartial:
    def __init__(self) -> None:
        self.on_epoch_end = functools.partial(self.write, path="x")

    def write(self, *, model: Any, path: str) -> None: ...


class ByPartialMethod:
    def write(self, path: str, *, model: Any) -> None: ...

    on_epoch_end = functools.partialmethod(write, "x")


class ByCallableObject:
    class Hook:
        def __call__(self, *, model: Any) -> None: ...

    on_epoch_end = Hook()


class ByC:
    on_epoch_end = functools.lru_cache(reads)


class NamesNothing:
    def on_epoch_end(self, **kwargs: Any) -> None: ...


@pytest.mark.parametrize(
    "callback",
    [
        ReadsDirectly, ReadsInClosure, ReadsInNestedFunction, ReadsInComprehension, ReadsInGenerator, ReadsByLocals,
        ReadsByEval, ReadsAnAttribute, ReadsAfterAssignment, ReadsInATry, ReadsInAMatch, ReadsDecorated,
        ReadsInTheDecorator, ReadsAsync, ReadsInAClass, ByPartial, ByPartialMethod, ByCallableObject, ByC, NamesNothing,
    ],
)  # fmt: skip
def test_a_hook_that_reads_the_model_somehow_does_not_warn(callback: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        CallbacksHandler([background(callback())])


def test_an_unread_model_is_no_matter_inline_or_where_it_is_left_out() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        CallbacksHandler([Unread(), background(Unread(), select={"model": None})])


# ------------------------------------------------------------------------------------------------ the run's own weights


@pytest.fixture
def run() -> dict[str, Any]:
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.ReLU())
    return {"model": model, "optimizers": {"sgd": torch.optim.SGD(model.parameters(), 0.1)}, "state": {"epoch": 1}}


HOLDING: list[tuple[Callable[[Any, Any], dict[str, Any]], str]] = [
    (lambda model, optimizer: {"model": model}, "self.model"),
    (lambda model, optimizer: {"optimizer": optimizer}, "self.optimizer"),
    (lambda model, optimizer: {"weight": model[0].weight}, "self.weight"),
    (lambda model, optimizer: {"nets": {"a": [model[0]]}}, "self.nets['a'][0]"),
]


@pytest.mark.parametrize(("make", "path"), HOLDING, ids=[path for _, path in HOLDING])
@pytest.mark.parametrize("event", ["on_train_start", "on_batch_end"])
def test_a_background_callback_that_holds_the_runs_weights_is_refused(
    make: Any, path: str, event: str, run: dict[str, Any], handlers: Make
) -> None:
    holder = Rows(**make(run["model"], run["optimizers"]["sgd"]))
    handler = handlers(background(holder, name="plots"))
    for _ in range(2):  # at each event, not only once
        assert message_of(lambda: handler.call_event(event, **run)) == (
            f"plots runs in the background, and holds the run's own weights or optimizer as {path}: it would see them "
            "while they change. Let its hooks name `model` or `optimizers` and use what they get, or make it "
            "inline(...)"
        )
    assert handler.close().delivered == 0


def test_the_first_event_that_shows_the_weights_is_the_one_that_raises(run: dict[str, Any], handlers: Make) -> None:
    handler = handlers(background(Rows(model=run["model"])))
    handler.call_event("on_batch_end", state=run["state"])
    handler.call_event("on_epoch_end", **run)  # which no hook of it hears
    assert "as self.model" in message_of(lambda: handler.call_event("on_batch_end", **run))


def test_a_callback_that_is_added_later_is_looked_into_as_well(run: dict[str, Any], handlers: Make) -> None:
    handler = handlers(background(Rows()))
    handler.call_event("on_train_start", **run)
    handler.call_event("on_batch_end", state=run["state"])
    handler.add_callbacks([background(Rows(model=run["model"]))])
    assert "as self.model" in message_of(lambda: handler.call_event("on_batch_end", state=run["state"]))


def test_a_module_of_its_own_is_fine_and_so_is_an_inline_holder(run: dict[str, Any], handlers: Make) -> None:
    own = Rows(net=torch.nn.Linear(2, 2), saved=[p.detach().clone() for p in run["model"].parameters()])
    handler = handlers(background(own), Rows(model=run["model"]), inline(Rows(optimizer=run["optimizers"]["sgd"])))
    handler.call_event("on_train_start", **run)
    handler.call_event("on_batch_end", **run)
    assert handler.close().ok
    assert len(own.rows) == 1


def test_what_is_no_weight_may_be_held_though_the_run_shows_it(run: dict[str, Any], handlers: Make) -> None:
    shown = {"state": run["state"], "stage": "training", "step": 1, "flag": True, "nothing": None, "loader": [1, 2]}
    handler = handlers(background(Rows(**{f"my_{name}": value for name, value in shown.items()})))
    handler.call_event("on_train_start", **shown)
    handler.call_event("on_batch_end", **shown)
    assert handler.close().ok


def test_a_callback_may_hold_its_handler_and_its_proxies(run: dict[str, Any], handlers: Make) -> None:
    rows = Rows()
    handler = handlers(background(rows), inline(Rows(optimizer=run["optimizers"]["sgd"])))
    rows.handler, rows.emit = handler, handler.call_event  # type: ignore[attr-defined]
    rows.writer = handler.proxy(Writer())  # type: ignore[attr-defined]
    handler.call_event("on_train_start", **run)
    handler.call_event("on_batch_end", **run)
    assert handler.close().ok


# ------------------------------------------------------------------------------------------------------------- events

DECLARE = "(an event of your own is declared with CallbacksHandler(..., events=[...]))"


def test_an_unknown_event_is_refused_with_the_nearest_one(handlers: Make) -> None:
    handler = handlers(background(Rows()))
    assert message_of(lambda: handler.call_event("on_bach_end")) == (
        f"there is no event 'on_bach_end'; did you mean 'on_batch_end'? {DECLARE}"
    )
    assert message_of(lambda: handler.call_event("batch_end")) == (
        f"there is no event 'batch_end'; did you mean 'on_batch_end'? {DECLARE}"
    )
    assert message_of(lambda: handler.call_event("on_zzz")) == f"there is no event 'on_zzz' {DECLARE}"


@pytest.mark.parametrize("event", [3, None, ["on_batch_end"]])
def test_what_is_no_name_is_no_event(event: Any) -> None:
    assert message_of(lambda: CallbacksHandler().call_event(event)) == f"there is no event {event!r} {DECLARE}"


def test_an_argument_called_event_is_refused_by_each_way_that_hooks_run(handlers: Make) -> None:
    expected = "on_batch_end: an argument can't be called 'event': hooks get the event's name and number by that name"
    for callback in (background(Rows()), inline(Rows())):
        handler = handlers(callback)
        assert message_of(lambda handler=handler: handler.call_event("on_batch_end", event="mine")) == expected
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


SECONDS = ("stall_timeout", "shutdown_timeout", "switch_interval")


@pytest.mark.parametrize(
    ("setting", "value", "problem"),
    [
        *[(one, value, f"1 or more, not {value}") for one in ("max_workers", "max_snapshot_bytes") for value in (0, -1)],
        *[(one, value, f"a whole number, not {value!r}") for one in ("max_workers", "max_snapshot_bytes")
          for value in (1.5, "3", None, True)],
        *[(one, value, f"above 0 s, and finite, not {value}") for one in SECONDS
          for value in (0, -1.0, float("inf"), float("nan"))],
        *[(one, value, f"a number, not {value!r}") for one in SECONDS for value in ("1 s", True)],
        *[(one, None, "a number, not None") for one in SECONDS[:2]],
        *[("synchronous", value, f"True or False, not {value!r}") for value in ("yes", None, 1)],
    ],
)  # fmt: skip
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


# ------------------------------------------------------------------------------------------------------ missing names


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
    handler = handlers(background(typo, retries=3, backoff=10.0), background(rows))
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
        "typo.on_batch_end names 'los', which neither this event nor the start of the run brings; did you mean 'loss'?;"
        " there are: state, loss, metrics. Give the parameter a default to make it optional"
    )
    assert str(failure.error) == expected
    assert expected in caplog.text


def test_several_missing_names_are_all_told(handlers: Make) -> None:
    class Demanding:
        def on_epoch_end(self, *, a: Any, b: Any) -> None: ...

    handler = handlers(background(Demanding()))
    handler.call_event("on_epoch_end")
    [failure] = handler.close().errors
    assert "names 'a', 'b', which neither" in str(failure.error)
    assert "there are: no arguments." in str(failure.error)


def test_a_missing_name_is_raised_on_the_spot_in_synchronous_mode(handlers: Make) -> None:
    handler = handlers(background(Typo()), synchronous=True)
    assert "names 'los'" in message_of(lambda: handler.call_event("on_batch_end", state=1))


# ----------------------------------------------------------------------------------------------- captures, and states


def test_an_argument_that_cannot_be_copied_fails_the_hooks_that_name_it_by_its_path(handlers: Make) -> None:
    class NamesBatch:
        def on_batch_end(self, *, batch: Any) -> None:
            raise AssertionError("it must not be called")

    class NamesState:
        def on_batch_end(self, *, state: Any) -> None: ...

    handler = handlers(background(NamesBatch(), retries=2), background(NamesState()))
    handler.call_event("on_batch_end", batch={"images": [1, threading.Lock()]}, state=1)
    report = handler.close()
    assert (report.delivered, report.failed) == (1, 1)
    [failure] = report.errors
    assert isinstance(failure.error, CaptureError)
    assert failure.attempt == 1
    assert str(failure.error) == (
        "names_batch.on_batch_end: batch['images'][1]: a _thread.lock can't be copied. Give a function for its type to "
        "capture.register, or leave it out: select={'batch': ...}"
    )


class Counted(Rows):
    """Has a state."""

    def __init__(self) -> None:
        super().__init__()
        self.loaded: list[Any] = []

    def state_dict(self) -> dict[str, Any]:
        return {"rows": len(self.rows)}

    def load_state_dict(self, state_dict: Any) -> None:
        self.loaded.append(state_dict)


def test_states_of_unknown_callbacks_are_refused_and_nothing_is_loaded(handlers: Make) -> None:
    one, two = Counted(), Counted()
    handler = handlers(background(one, name="one"), inline(two))
    states = {"one": {"rows": 1}, "counted": {"rows": 2}, "gone": {}, "won": {}}
    assert message_of(lambda: handler.load_state_dict(states)) == (
        "load_state_dict: there is no callback 'gone', 'won'; there are 'one', 'counted'. A callback's name= is its "
        "key; leave out what is not to be loaded"
    )
    assert one.loaded == two.loaded == []
    handler.load_state_dict({"one": {"rows": 1}, "counted": {"rows": 2}})
    assert (one.loaded, two.loaded) == ([{"rows": 1}], [{"rows": 2}])


def test_a_state_for_a_callback_that_cannot_load_one_is_refused(handlers: Make) -> None:
    handler = handlers(background(Rows(), name="rows"))
    assert message_of(lambda: handler.load_state_dict({"rows": {}})) == (
        "load_state_dict: rows has a state, but no load_state_dict method"
    )


def test_a_callback_that_gets_no_state_is_warned_of(handlers: Make, caplog: pytest.LogCaptureFixture) -> None:
    handler = handlers(background(Counted(), name="one"), background(Counted(), name="two"))
    handler.load_state_dict({"one": {}})
    assert "load_state_dict: no state for two: it stays as it is" in caplog.text


@pytest.mark.parametrize("wrap", [background, inline])
def test_a_state_that_cannot_be_captured_names_the_callback_and_the_key(wrap: Any, handlers: Make) -> None:
    class Locked(Rows):
        def state_dict(self) -> dict[str, Any]:
            return {"file": {"lock": threading.Lock()}}

    handler = handlers(wrap(Locked()))
    message = message_of(handler.state_dict, CaptureError)
    assert message.startswith("locked.state_dict()['file']['lock']: a _thread.lock can't be copied")
    assert "select=" not in message  # which is for arguments


def test_an_error_of_a_callbacks_own_state_dict_reaches_the_caller(handlers: Make) -> None:
    class Broken(Rows):
        def state_dict(self) -> dict[str, Any]:
            raise RuntimeError("the disk is gone")

    handler = handlers(background(Broken()), background(Counted()))
    with pytest.raises(RuntimeError, match="the disk is gone"):
        handler.state_dict()
    handler.call_event("on_batch_end")
    assert handler.close().delivered == 2  # the lane goes on
