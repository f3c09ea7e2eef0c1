"""Stand-ins for live objects: valid until their hook returns, unless kept."""

from __future__ import annotations

import weakref
from typing import Any, NoReturn, TypeVar

from async_trainer.errors import StandInError

T = TypeVar("T")

_kept: dict[int, weakref.ref[Any]] = {}


class Expired:
    """What a stand-in becomes when its hook has returned: it says so on any use.

    The class is swapped under the object, so that a stand-in costs nothing while it is alive.
    """

    _expired: str

    def __getattr__(self, name: str) -> NoReturn:
        raise StandInError(vars(self).get("_expired", "this stand-in has expired"))

    def _refuse(self, *_: object, **__: object) -> NoReturn:
        raise StandInError(self._expired)

    __call__ = __getitem__ = __setitem__ = __delitem__ = __iter__ = __len__ = __contains__ = __enter__ = _refuse
    __setattr__ = __delattr__ = _refuse

    def __repr__(self) -> str:
        return f"<expired: {self._expired}>"


def expire(stand_in: object, hook: str, argument: str) -> None:
    """Make a stand-in raise from now on, and let go of what it holds. WORKER thread, after the hook."""
    message = (
        f"{hook or 'the hook'} has returned, and its `{argument}` with it (it shows one event, and would silently grow "
        f"old): name `{argument}` in each hook that needs it, or keep({argument}) to hold on to this one"
    )
    try:
        object.__setattr__(stand_in, "__class__", Expired)
    except TypeError:
        # A class with slots or a C base: it can't be swapped, but emptied it shows nothing old.
        pass
    object.__setattr__(stand_in, "__dict__", {"_expired": message})


def keep(x: T) -> T:
    """Let a stand-in outlive its hook, with all stand-ins that it leads to; call it in the hook, with what it received.

    Values (tensors, frames, containers) need no ``keep``. Any thread.

    Args:
        x: a stand-in (model, submodule, optimizer, scheduler, scaler), or a dict, list or tuple of them.

    Returns:
        ``x`` itself, as it was at its event; it never shows anything newer.
    """
    seen: set[int] = set()
    stack: list[Any] = [x]
    while stack:
        value = stack.pop()
        if id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, dict):
            stack.extend(value.values())
        elif isinstance(value, list | tuple | set | frozenset):
            stack.extend(value)
        elif _may_stand_in(value):
            _keep_one(value)
            stack.extend(object.__getattribute__(value, "__dict__").values())
    return x


def is_kept(stand_in: object) -> bool:
    """Whether ``keep`` was called for it. Any thread."""
    kept = _kept.get(id(stand_in))
    return kept is not None and kept() is stand_in


def _may_stand_in(value: object) -> bool:
    # Modules and views by what they have: this file knows nothing of torch.
    try:
        fields = object.__getattribute__(value, "__dict__")
    except AttributeError:
        return False
    return "_modules" in fields or hasattr(type(value), "_view_of")


def _keep_one(value: object) -> None:
    key = id(value)

    def forget(dead: weakref.ref[Any]) -> None:
        if _kept.get(key) is dead:
            del _kept[key]

    _kept[key] = weakref.ref(value, forget)
