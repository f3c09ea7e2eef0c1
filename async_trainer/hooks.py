"""The hooks of a callback: which they are, and what each of them names."""

from __future__ import annotations

import dis
import inspect
import logging
import os
import sys
import warnings
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from types import CodeType, FrameType
from typing import Any

from async_trainer.callback import Callback, label
from async_trainer.errors import ConfigurationError
from async_trainer.events import Event
from async_trainer.suggest import suggestion

logger = logging.getLogger("async_trainer")

COSTLY = ("model", "optimizers")
"""Arguments that are worth a warning where a background hook names them and never reads them."""


@dataclass(frozen=True, slots=True)
class Hook:
    """One hook of one callback."""

    event: str
    function: Callable[..., Any]
    required: tuple[str, ...]
    optional: tuple[str, ...]  # a parameter with a default
    catches_all: bool  # it has **kwargs
    is_async: bool

    @property
    def names(self) -> tuple[str, ...]:
        return self.required + self.optional

    def live_arguments(self, arguments: Mapping[str, Any], run: Mapping[str, Any]) -> dict[str, Any]:
        """What an inline call gets: what it names of ``arguments`` or ``run``; with ``**kwargs``, all ``arguments``."""
        live = dict(arguments) if self.catches_all else {}
        for name in self.names:
            if name in arguments:
                live[name] = arguments[name]
            elif name in run:
                live[name] = run[name]
        return live


def tolerated(hook: Hook) -> Hook:
    """``hook``, for an event that tells of an exception: an error of its own is logged. It must not take the place of
    the exception, nor silence other callbacks. Ctrl-C does: whoever presses it again wants no more waiting."""

    def tell(**arguments: Any) -> None:
        try:
            hook.function(**arguments)
        except KeyboardInterrupt:
            raise
        except BaseException:
            name = getattr(hook.function, "__qualname__", hook.event)
            logger.exception("%s failed; what has ended the run is raised all the same", name)

    return replace(hook, function=tell)


def check_training(callbacks: Iterable[tuple[str, Any]], arguments: Mapping[str, Any]) -> None:
    """Have each callback say whether it can do its part in a training that starts with ``arguments``. A plain object
    need not have an opinion. The training thread.

    Raises:
        ConfigurationError: it can't; or two would write the same files.
    """
    owners: dict[str, str] = {}
    for name, callback in callbacks:
        check = getattr(callback, "check_training", None)
        places = check(**arguments) if callable(check) else None
        for place in [places] if isinstance(places, (str, os.PathLike)) else places or ():
            owner = owners.setdefault(os.path.realpath(place), name)
            if owner != name:
                raise ConfigurationError(
                    f"{owner} and {name} would both write {os.fspath(place)}, and spoil each other's: give one of them "
                    "another place (folder=, path=)"
                )


def find_hooks(callback: Any, events: Collection[str]) -> dict[str, Hook]:
    """The hooks of ``callback`` for ``events``, by event.

    Raises:
        ConfigurationError: a method named ``on_...`` is for no event, or has a signature that can't be called with
            keywords; or ``callback`` is a class or a function.
    """
    if inspect.isclass(callback):
        raise ConfigurationError(f"{callback.__name__} is a class: pass an instance, {callback.__name__}()")
    if inspect.isroutine(callback):
        raise ConfigurationError(
            f"{callback.__name__} is a function: a callback is an object with hooks such as on_batch_end; "
            "to call functions in the background, use handler.proxy(function)"
        )
    hooks = {}
    for name in dir(callback):
        if not name.startswith("on_") or isinstance(inspect.getattr_static(callback, name), property):
            continue
        function = getattr(callback, name)
        if not callable(function) or _is_inherited_no_op(function, name):
            continue
        if name not in events:
            raise ConfigurationError(
                f"{label(callback)}.{name} is the hook of no event{suggestion(name, events)} "
                f"(an event of your own is declared with CallbacksHandler(..., events=[{name!r}]))"
            )
        hooks[name] = _inspect_hook(callback, name, function)
    if not hooks:
        _warn(
            f"{label(callback)} has no hook: no event will ever reach it; hooks are methods named on_..., such as "
            "on_batch_end"
        )
    return hooks


def _is_inherited_no_op(function: Any, name: str) -> bool:
    return getattr(function, "__func__", None) is getattr(Callback, name, function)


def _inspect_hook(callback: Any, name: str, function: Callable[..., Any]) -> Hook:
    where = f"{label(callback)}.{name}"
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError) as error:
        raise ConfigurationError(f"{where}: its signature can't be read ({error}); write it as a def") from error
    plain = inspect.unwrap(function)
    if inspect.isgeneratorfunction(plain) or inspect.isasyncgenfunction(plain):
        raise ConfigurationError(f"{where} contains a yield: calling it would run nothing; a hook is a plain function")
    required: list[str] = []
    optional: list[str] = []
    catches_all = False
    for parameter in signature.parameters.values():
        if parameter.kind is parameter.POSITIONAL_ONLY:
            raise ConfigurationError(
                f"{where}: {parameter.name!r} is positional-only; hooks are called with keywords: "
                f"def {name}(self, *, {parameter.name}, **kwargs)"
            )
        if parameter.kind is parameter.VAR_KEYWORD:
            catches_all = True
        elif parameter.kind is not parameter.VAR_POSITIONAL:
            (required if parameter.default is parameter.empty else optional).append(parameter.name)
    is_async = inspect.iscoroutinefunction(plain)
    return Hook(name, function, tuple(required), tuple(optional), catches_all, is_async)


def warn_of_unread(callback: Any, hooks: dict[str, Hook], select: Collection[str]) -> None:
    """Warn where a background hook names ``model`` or ``optimizers`` and never reads it: it is copied each time."""
    for hook in hooks.values():
        codes = list(_codes(hook.function))
        for name in COSTLY:
            if codes and name in hook.names and name not in select and not any(_reads(code, name) for code in codes):
                _warn(
                    f"{label(callback)}.{hook.event} names {name!r} and never reads it: it would be copied each time; "
                    f"leave it out of the signature, or pass select={{{name!r}: None}}"
                )


def _codes(function: Any) -> Iterator[CodeType]:
    """The code of ``function``, and of what it decorates; none where it isn't written in Python."""
    function = getattr(function, "__func__", function)
    while function is not None:
        if isinstance(code := getattr(function, "__code__", None), CodeType):
            yield code
        function = getattr(function, "__wrapped__", None)


def _warn(message: str) -> None:
    """Warn where the user called us, however deep we are: it is that line that has to change."""
    level = 2
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and _is_ours(frame):
        level, frame = level + 1, frame.f_back
    warnings.warn(message, UserWarning, stacklevel=level)


def _is_ours(frame: FrameType) -> bool:
    return str(frame.f_globals.get("__name__")).startswith("async_trainer.")


def _reads(code: CodeType, name: str) -> bool:
    if {"locals", "vars", "eval", "exec"} & set(code.co_names):
        return True
    for instruction in dis.get_instructions(code):
        named = instruction.argval if isinstance(instruction.argval, tuple) else (instruction.argval,)
        if name in named and instruction.opname.startswith(("LOAD_", "MAKE_CELL", "STORE_FAST_LOAD_FAST")):
            return True
    return False


ALL_EVENTS = tuple(event.value for event in Event)
