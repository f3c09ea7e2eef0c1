"""The warning of a model that is copied each time, and that nobody reads."""

from __future__ import annotations

import functools
import warnings
from typing import Any

import pytest

from async_trainer import CallbacksHandler, background


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
