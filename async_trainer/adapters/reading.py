"""What a hook of another library reads of its arguments, and what it does to them: from its code, before it runs."""

from __future__ import annotations

import dis
from collections.abc import Callable, Iterator
from types import CodeType
from typing import Any, NamedTuple

SEES_ALL = frozenset({"locals", "vars", "eval", "exec"})


class Use(NamedTuple):
    """A parameter or variable, and its attribute: ``trainer.should_stop``."""

    variable: str
    attribute: str


def reads(function: Callable[..., Any], parameter: str) -> bool:
    """Whether ``function`` may read ``parameter``. True where its code can't be seen."""
    codes = list(codes_of(function))
    return not codes or any(_reads(code, parameter) for code in codes)


def stores(function: Callable[..., Any]) -> Iterator[Use]:
    """The attributes of variables that ``function`` sets or deletes."""
    for code in codes_of(function):
        yield from _uses(code, ("STORE_ATTR", "DELETE_ATTR"))


def loads(function: Callable[..., Any]) -> Iterator[Use]:
    """The attributes of variables that ``function`` reads, methods included."""
    for code in codes_of(function):
        yield from _uses(code, ("LOAD_ATTR", "LOAD_METHOD"))


def constants_of(function: Callable[..., Any]) -> frozenset[str]:
    """The strings in the code of ``function``: among them the keys that it looks up."""
    return frozenset(one for code in codes_of(function) for one in code.co_consts if isinstance(one, str))


def functions_of(cls: type, library: str) -> Iterator[Callable[..., Any]]:
    """The functions of a class and of its bases, but those of ``library`` (the root of a package) and Python's own."""
    for base in cls.__mro__:
        if base.__module__.partition(".")[0] not in (library, "builtins", "abc", "typing"):
            yield from (one for one in vars(base).values() if callable(getattr(one, "__func__", one)))


def codes_of(function: Any) -> Iterator[CodeType]:
    """The code of ``function``, of what it decorates, and of the functions in it; none if it isn't in Python."""
    while function is not None:
        function = getattr(function, "__func__", function)
        code = getattr(function, "__code__", None)
        stack = [code] if isinstance(code, CodeType) else []
        while stack:
            one = stack.pop()
            yield one
            stack.extend(part for part in one.co_consts if isinstance(part, CodeType))
        function = getattr(function, "__wrapped__", None)


def _reads(code: CodeType, name: str) -> bool:
    if not SEES_ALL.isdisjoint(code.co_names):
        return True
    for one in dis.get_instructions(code):
        named = one.argval if isinstance(one.argval, tuple) else (one.argval,)
        if name in named and one.opname.startswith(("LOAD_", "MAKE_CELL", "STORE_FAST_LOAD_FAST")):
            return True
    return False


def _uses(code: CodeType, operations: tuple[str, ...]) -> Iterator[Use]:
    """Of 3.11 to 3.14: an object is loaded right before its attribute is used, by an instruction that may load two."""
    before: Any = None
    for one in dis.get_instructions(code):
        if one.opname in operations:
            yield Use(before if isinstance(before, str) else "", str(one.argval))
        if one.opname != "CACHE":
            loaded = one.argval[-1] if isinstance(one.argval, tuple) and one.argval else one.argval
            before = loaded if one.opname.startswith(("LOAD_FAST", "LOAD_DEREF")) else None
