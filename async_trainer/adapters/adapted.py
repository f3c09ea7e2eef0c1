"""A callback of another library as one of a CallbacksHandler: its hooks get what they read."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from async_trainer.adapters.reading import constants_of, reads
from async_trainer.untaken import Untaken


@dataclass(frozen=True, slots=True)
class Call:
    """How a hook of theirs is called, from what was captured by our names.

    Attributes:
        method: the name of the method.
        places: for each positional parameter without a default: our name of the argument.
        keywords: their name of each further parameter, and ours.
        rest: our names of all positional arguments, where the hook takes ``*args``.
        brings: whether it takes ``**kwargs``.
        offered: what is in ``**kwargs`` by the library's custom; what was not captured raises on use.
        wanted: our names of what is captured for it.
    """

    method: str
    places: tuple[str, ...]
    keywords: tuple[tuple[str, str], ...]
    rest: tuple[str, ...]
    brings: bool
    offered: tuple[str, ...]
    wanted: tuple[str, ...]


class Adapted:
    """One of their callbacks. Its class is made for it: a hook for each event, that names what theirs reads.

    Attributes:
        callback: theirs.
        prepare: called before each hook, on the lane's thread; None: nothing is.
    """

    prepare: Callable[[], None] | None = None

    def __init__(self, callback: Any) -> None:
        self.callback = callback

    def state_dict(self) -> Any:
        """The callback's own."""
        return self.callback.state_dict()

    def load_state_dict(self, state_dict: Any) -> None:
        """The callback's own."""
        self.callback.load_state_dict(state_dict)


def adapt(
    callback: Any,
    hooks: Mapping[str, tuple[str, Sequence[str]]],
    *,
    free: Collection[str] = (),
    offered: Collection[str] = (),
    check: Callable[[str, Any], None] | None = None,
) -> Adapted:
    """Make a callback of ours of one of theirs.

    Args:
        callback: theirs.
        hooks: by event: the name of their method, and our names of its positional arguments, in order.
        free: arguments that ``**kwargs`` of a hook brings, whatever it reads: they cost little.
        offered: arguments that ``**kwargs`` brings where the hook's code names them, as ``kwargs["model"]``.
        check: looks at what a hook returns, with the hook's name.
    """
    namespace: dict[str, Any] = {}
    for event, (method, names) in hooks.items():
        call = inspect_call(getattr(callback, method), method, names, free, offered)
        namespace[event] = _hook(event, call, check)
    namespace["__module__"] = type(callback).__module__
    made: type[Adapted] = type(type(callback).__name__, (Adapted,), namespace)
    return made(callback)


def inspect_call(
    function: Callable[..., Any], method: str, names: Sequence[str], free: Collection[str], offered: Collection[str]
) -> Call:
    """How ``function``, a bound method of theirs, is called, and which arguments it reads."""
    places: list[str] = []
    keywords: list[tuple[str, str]] = []
    rest: tuple[str, ...] = ()
    brings = False
    wanted: list[str] = []
    left = list(names)
    for parameter in inspect.signature(function).parameters.values():
        if parameter.kind is parameter.VAR_POSITIONAL:
            rest, left = tuple(left), []
            wanted += rest
        elif parameter.kind is parameter.VAR_KEYWORD:
            brings = True
            spoken = constants_of(function)
            wanted += [name for name in (*free, *(one for one in offered if one in spoken)) if name not in wanted]
        else:
            positional = parameter.kind is not parameter.KEYWORD_ONLY and bool(left)
            ours = left.pop(0) if positional else parameter.name
            if positional and parameter.default is parameter.empty:
                places.append(ours)
            else:
                keywords.append((parameter.name, ours))
            if reads(function, parameter.name):
                wanted.append(ours)
    return Call(method, tuple(places), tuple(keywords), rest, brings, tuple(offered), tuple(wanted))


def _hook(event: str, call: Call, check: Callable[[str, Any], None] | None) -> Callable[..., Any]:
    def hook(self: Adapted, **captured: Any) -> Any:
        if self.prepare is not None:
            self.prepare()
        where = f"{type(self.callback).__name__}.{call.method}"
        arguments = [captured[name] if name in captured else Untaken(where, name) for name in call.places]
        arguments += [captured[name] for name in call.rest if name in captured]
        keywords = {theirs: captured[ours] for theirs, ours in call.keywords if ours in captured}
        if call.brings:
            used = {*call.places, *call.rest, *(ours for _, ours in call.keywords)}
            keywords |= {name: Untaken(where, name) for name in call.offered if name not in used}
            keywords |= {name: value for name, value in captured.items() if name not in used}
        result = getattr(self.callback, call.method)(*arguments, **keywords)
        if check is not None and result is not None:
            check(where, result)
        return result

    parameters = [inspect.Parameter("self", inspect.Parameter.POSITIONAL_OR_KEYWORD)]
    parameters += [inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None) for name in call.wanted]
    hook.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    hook.__name__ = event
    hook.__qualname__ = f"Adapted.{event}"
    return hook
