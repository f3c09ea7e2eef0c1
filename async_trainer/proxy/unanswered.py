"""What a stand-in for a later answer can't do now, and says so by name."""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from pathlib import PurePath
from typing import Any, NoReturn

from async_trainer.errors import StandInError

PLAIN = (str, bytes, int, float, complex, bool, type(None), Enum, PurePath)
"""Values that never change: they can be handed out as they are."""

NEED_THE_ANSWER = (
    "len", "iter", "next", "reversed", "contains", "getitem", "int", "float", "complex", "index", "round", "trunc",
    "add", "radd", "sub", "rsub", "mul", "rmul", "matmul", "rmatmul", "truediv", "rtruediv", "floordiv", "rfloordiv",
    "mod", "rmod", "divmod", "rdivmod", "pow", "rpow", "and", "rand", "or", "ror", "xor", "rxor", "lshift", "rlshift",
    "rshift", "rrshift", "neg", "pos", "abs", "invert", "lt", "le", "gt", "ge",
)  # fmt: skip


class Unanswered:
    """Base of ``Handle`` and ``Proxy``: what would need the object's answer at once raises.

    They compare by identity, so that lists of them (a logger's handlers) work; compared with a plain value, which is
    what code for the real object would do with its answer, they raise. ``await`` is left to Python, which refuses it
    too: with an ``__await__`` that raises, a hook that returns a handle would look like one that returns an awaitable.
    """

    __slots__ = ()

    __hash__ = object.__hash__

    def __eq__(self, other: object) -> bool:
        if isinstance(other, PLAIN) and other is not None:
            refuse(self, "comparing")
        return NotImplemented

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        raise StandInError(f"{self!r} can't be copied or pickled: it belongs to its handler")


def refuse(stand_in: object, operation: str) -> NoReturn:
    """Raise for an operation that can't work."""
    raise StandInError(
        f"{stand_in!r}: {operation} needs the answer at once, but calls are made later, on their lane: wait() for what "
        "a call returns, or use the object itself"
    )


def _refusing(operation: str) -> Callable[..., NoReturn]:
    def method(self: object, *args: Any, **kwargs: Any) -> NoReturn:
        refuse(self, operation)

    return method


for _name in NEED_THE_ANSWER:
    setattr(Unanswered, f"__{_name}__", _refusing(f"__{_name}__"))
