"""What a hook of another library reads of its arguments, and what it does to them: from its code, before it runs."""

from __future__ import annotations

import dis
from collections.abc import Callable, Iterator
from types import CodeType
from typing import Any, NamedTuple

SEES_ALL = frozenset({"locals", "vars", "eval", "exec"})


OPTIMIZERS = frozenset({"optimizer", "optimizers", "lr_scheduler", "lr_schedulers", "lr_scheduler_configs"})
STEPS = frozenset({"step", "zero_grad"})


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


def steps(function: Callable[..., Any]) -> Iterator[Use]:
    """Where ``function`` steps an optimizer or a scheduler that it is given, or clears its gradients; not one that it
    makes, or that ``self`` has."""
    for code in codes_of(function):
        yield from _steps(code)


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


def _steps(code: CodeType) -> Iterator[Use]:
    """An expression leads to an optimizer of the training if it names one: a parameter, an attribute, a key; or a
    variable to which such an expression was assigned."""
    given = {*code.co_varnames[: code.co_argcount + code.co_kwonlyargcount], *code.co_freevars} & OPTIMIZERS
    found, before = "", ""
    for one in dis.get_instructions(code):
        named = [str(name) for name in (one.argval if isinstance(one.argval, tuple) else (one.argval,))]
        if one.opname.startswith("STORE_FAST") or one.opname == "STORE_DEREF":
            given = given | {named[0]} if found else given - {named[0]}
            found = named[1] if len(named) > 1 and named[1] in given else ""
        elif one.opname.startswith(("STORE_", "POP_TOP", "RETURN_")):
            found = ""
        elif one.opname.startswith(("LOAD_FAST", "LOAD_DEREF")):
            found = next((name for name in named if name in given), found)
        elif one.opname in ("LOAD_ATTR", "LOAD_METHOD"):
            if found and named[0] in STEPS:
                yield Use(found, named[0])
            elif named[0] in OPTIMIZERS and before not in ("self", "optim"):  # torch.optim.lr_scheduler is a module
                found = named[0]
        elif one.opname == "LOAD_CONST" and isinstance(one.argval, str) and one.argval in OPTIMIZERS:
            found = named[0]
        if one.opname != "CACHE":
            before = named[-1] if named else ""  # an empty tuple is a constant, too
