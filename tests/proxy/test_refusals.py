"""What can't work says so, by name, instead of doing something else."""

from __future__ import annotations

import asyncio
import copy
import operator
import pickle
from collections.abc import Callable
from typing import Any

import pytest

from async_trainer import CallbacksHandler
from async_trainer.errors import StandInError
from async_trainer.proxy.unanswered import NEED_THE_ANSWER
from tests.proxy.kit import Sink

OPERATIONS: dict[str, Callable[[Any], Any]] = {
    "len": len,
    "iter": iter,
    "next": next,
    "reversed": reversed,
    "in": lambda x: 1 in x,
    "item": lambda x: x[0],
    "int": int,
    "float": float,
    "complex": complex,
    "index": operator.index,
    "round": round,
    "add": lambda x: x + 1,
    "radd": lambda x: 1 + x,
    "iadd": lambda x: operator.iadd(x, 1),
    "sub": lambda x: 1 - x,
    "mul": lambda x: x * 2,
    "matmul": lambda x: x @ x,
    "truediv": lambda x: x / 2,
    "floordiv": lambda x: x // 2,
    "mod": lambda x: x % 2,
    "divmod": lambda x: divmod(x, 2),
    "pow": lambda x: x**2,
    "and": lambda x: x & 1,
    "or": lambda x: {} | x,
    "shift": lambda x: x << 1,
    "neg": operator.neg,
    "abs": abs,
    "invert": operator.invert,
    "less": lambda x: x < 1,
    "at least": lambda x: x >= 1,
    "equal": lambda x: x == 1,
    "unequal": lambda x: x != "done",
    "equal, the other way round": lambda x: operator.eq(1.0, x),
}
COPIES: dict[str, Callable[[Any], Any]] = {"copy": copy.copy, "deepcopy": copy.deepcopy, "pickle": pickle.dumps}


@pytest.mark.parametrize("operation", OPERATIONS.values(), ids=OPERATIONS)
@pytest.mark.parametrize("stand_in", ["proxy", "attribute", "handle"])
def test_operations_that_need_the_answer_raise(
    handler: CallbacksHandler, operation: Callable[[Any], Any], stand_in: str
) -> None:
    proxy = handler.proxy(Sink(), name="board")
    subject, name = {
        "proxy": (proxy, "proxy of Sink, lane board"),
        "attribute": (proxy.calls, r"proxy of Sink\.calls, lane board"),
        "handle": (proxy.add(1), r"handle of board\.add: \w+"),
    }[stand_in]
    with pytest.raises(StandInError, match=f"{name}.*needs the answer at once.*wait()"):
        operation(subject)


@pytest.mark.parametrize("operation", COPIES.values(), ids=COPIES)
def test_a_proxy_and_a_handle_can_not_be_copied_or_pickled(
    handler: CallbacksHandler, operation: Callable[[Any], Any]
) -> None:
    proxy = handler.proxy(Sink())
    for stand_in in (proxy, proxy.calls, proxy.add(1)):
        with pytest.raises(StandInError, match="can't be copied or pickled: it belongs to its handler"):
            operation(stand_in)


def test_each_refused_operation_is_a_special_method_of_python() -> None:
    known = {name for cls in (int, float, complex, list, dict, set) for name in dir(cls)}
    known |= {f"__{name}__" for name in ("next", "matmul", "rmatmul")}
    assert {f"__{name}__" for name in NEED_THE_ANSWER} <= known


def test_a_handle_has_none_of_the_attributes_of_the_result(handler: CallbacksHandler) -> None:
    with pytest.raises(StandInError, match=r"handle of sink\.add: .*\.fetchall needs the answer at once"):
        handler.proxy(Sink()).add(1).fetchall()


def test_the_truth_of_a_handle_is_not_known(handler: CallbacksHandler) -> None:
    with pytest.raises(StandInError, match="its truth needs the answer"):
        bool(handler.proxy(Sink()).add(1))


def test_a_handle_is_no_text_to_make_a_file_name_of(handler: CallbacksHandler) -> None:
    handle = handler.proxy(Sink()).add(1)
    for text in ("{}".format, lambda x: f"{x}.pt"):
        with pytest.raises(StandInError, match="its text needs the answer"):
            text(handle)
    assert f"{handle!r}".startswith("<handle of sink.add: ")


def test_an_attribute_of_a_result_is_no_text_either(handler: CallbacksHandler) -> None:
    with handler.proxy(lambda: open(__file__))() as file, pytest.raises(StandInError, match="its text"):
        str(file.name)


def test_a_proxy_is_true_and_has_a_text(handler: CallbacksHandler) -> None:
    proxy = handler.proxy(Sink())
    assert proxy
    assert str(proxy) == f"{proxy}" == repr(proxy) == "<proxy of Sink, lane sink>"
    assert repr(proxy.add) == "<proxy of Sink.add, lane sink>"


def test_proxies_and_handles_are_equal_to_themselves_only(handler: CallbacksHandler) -> None:
    sink = Sink()
    proxy, other = handler.proxy(sink), handler.proxy(sink)
    handle = proxy.add(1)
    for one in (proxy, handle):
        assert one == one
        assert one != other
        assert one is not None
        assert one != None  # noqa: E711
        assert one in [sink, one]
        assert one not in [sink, other]
        assert {one: 1}[one] == 1


def test_awaiting_is_refused_by_name(handler: CallbacksHandler) -> None:
    proxy = handler.proxy(Sink())

    async def use(awaitable: Any) -> None:
        await awaitable

    async def enter() -> None:
        async with proxy:
            pass

    async def iterate() -> None:
        async for _ in proxy:
            pass

    with pytest.raises(TypeError, match="Handle"):
        asyncio.run(use(proxy.add(1)))
    with pytest.raises(TypeError, match="Proxy"):
        asyncio.run(use(proxy))
    with pytest.raises(TypeError, match="async"):
        asyncio.run(enter())
    with pytest.raises(TypeError, match="Proxy"):
        asyncio.run(iterate())
