"""Callbacks and hooks that can't work, seen when they are attached."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch

from async_trainer import Callback, CallbacksHandler, background, inline
from tests.bad_input.doubles import Make, Rows, Writer, message_of


def test_a_misspelt_hook_is_refused_with_the_nearest_event_and_the_way_to_declare_one() -> None:
    class LossCurve(Callback):
        def on_bach_end(self) -> None: ...

    for callback in (LossCurve(), background(LossCurve()), inline(LossCurve())):
        assert message_of(partial(CallbacksHandler, [callback])) == (
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


def test_a_hook_set_on_the_instance_is_a_hook_also_of_a_subclass_of_the_base(handlers: Make) -> None:
    seen: list[int] = []

    class Late(Callback):
        def __init__(self) -> None:
            self.on_batch_end = lambda *, n: seen.append(n)

    handler = handlers(background(Late()))
    handler.call_event("on_batch_end", n=3)
    handler.close()
    assert seen == [3]


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
    with pytest.warns(UserWarning, match="Writer has no hook") as caught:
        CallbacksHandler([Writer()])
    assert str(caught[0].message) == (
        "Writer has no hook: no event will ever reach it; hooks are methods named on_..., such as on_batch_end"
    )
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
        assert message_of(partial(CallbacksHandler, [background(callback)])) == (
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
