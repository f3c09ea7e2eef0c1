"""Whether a background callback holds live objects of the run: it would see them change under its hands."""

from __future__ import annotations

import functools
import sys
import types
from collections import deque
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

from async_trainer.snapshot.attributes import fields_of, filled_slots

_LEVELS = 5
_CLASSES = 1  # levels: of the callback, and of one that it adapts
_ITEMS = 1_000
_VISITS = 20_000
_NOT_THE_USERS = sys.stdlib_module_names | {"torch", "async_trainer"}
_CLOSED: tuple[type, ...] = (
    str,
    bytes,
    bytearray,
    int,
    float,
    complex,
    type,
    types.ModuleType,
    types.FunctionType,
    types.BuiltinFunctionType,
    property,
    classmethod,
)


def held_by(callback: object, live: Iterable[object]) -> str | None:
    """By which of its attributes a callback holds one of the live models or optimizers, or a part of one.

    Looks by identity, a few levels deep, at attributes of its class, too, without running any code of the objects it
    passes. Any thread.

    Args:
        callback: the background callback.
        live: modules and optimizers of the run, or dicts, lists and tuples of them.

    Returns:
        The path, ``"self.nets['a']"``; ``None`` if it holds none (a module of its own is fine).
    """
    wanted = {id(part): part for one in live for part in _parts_of(one)}
    queue: deque[tuple[object, str, int]] = deque([(callback, "self", 0)])
    seen: set[int] = set()
    while queue and len(seen) < _VISITS:
        value, path, level = queue.popleft()
        if id(value) in wanted:
            return path
        if id(value) in seen or isinstance(value, _CLOSED) or level > _LEVELS:
            continue
        seen.add(id(value))
        queue.extend((part, path + step, level + 1) for step, part in islice(_steps(value), _ITEMS))
        if level <= _CLASSES:
            queue.extend((part, path + step, level + 1) for step, part in _steps_of_class(type(value)))
    return None


def _parts_of(live: object) -> Iterator[object]:
    # Modules and optimizers by what they have: this file must not load torch.
    if isinstance(live, dict):
        live = list(live.values())
    if isinstance(live, list | tuple | set):
        for one in live:
            yield from _parts_of(one)
        return
    stack: list[Any] = [live]
    seen: set[int] = set()
    while stack:
        part = stack.pop()
        if part is None or id(part) in seen:
            continue
        seen.add(id(part))
        yield part
        fields = fields_of(part) or {}
        if "_modules" in fields:
            stack.extend(fields["_modules"].values())
            yield from (parameter for parameter in fields["_parameters"].values() if parameter is not None)
        for group in fields.get("param_groups") or ():
            yield from group["params"]


def _steps(value: object) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        yield from ((f"[{key!r:.40}]", part) for key, part in list(dict.items(value)))
    elif isinstance(value, list | tuple | deque):
        yield from ((f"[{place}]", part) for place, part in enumerate(list(value)))
    elif isinstance(value, set | frozenset):
        yield from (("[...]", part) for part in list(value))
    elif isinstance(value, types.MethodType):
        yield ".__self__", value.__self__
    elif isinstance(value, functools.partial):
        yield from ((".func", value.func), (".args", value.args), (".keywords", value.keywords))
    for name, part in (fields_of(value) or {}).copy().items():
        if name in ("_modules", "_parameters"):
            yield from ((f".{member}", held) for member, held in dict.items(part))
        else:
            yield f".{name}", part
    yield from ((f".{slot.__name__}", part) for slot, part in filled_slots(value))


def _steps_of_class(cls: type) -> Iterator[tuple[str, Any]]:
    """The attributes of a user's class, those of its bases included."""
    for base in cls.__mro__:
        if str(getattr(base, "__module__", "")).partition(".")[0] not in _NOT_THE_USERS:
            for name, part in list(vars(base).items()):
                if not name.startswith("__"):
                    yield f".{name}", part
