"""The stand-in for a proxied object."""

from __future__ import annotations

import inspect
import logging
import operator
import types
from collections.abc import Callable, Iterable
from typing import Any

from async_trainer.errors import CaptureError
from async_trainer.proxy.call import Place, enter_itself, leave
from async_trainer.proxy.handle import Handle, Returned
from async_trainer.proxy.proxied import MISSING
from async_trainer.proxy.unanswered import PLAIN, Unanswered, refuse
from async_trainer.runtime.pool import current_lane
from async_trainer.snapshot import Scope, Sealed, capture

DESCRIBED = (types.FunctionType, types.BuiltinFunctionType, types.ModuleType, type)
"""What the dunder attributes of these hold (``__name__``, ``__version__``, ``__code__``) describes them."""


class Proxy(Unanswered):
    """Stands for an object, or for something in it: calls to it are made on its lane, in order.

    Calls return a :class:`Handle`. Setting and deleting attributes and items, and ``with``, are calls too (an exception
    in the body of a ``with`` is told to the object, but always goes on). Attributes that hold a plain value are read at
    once, on the caller's thread, as the object is then; other attributes are proxies. What would need the object's
    answer at once (``len()``, iterating, reading an item, arithmetic, ...) raises.

    Its own names are all dunders, or start with ``_async_trainer``: all others are the object's.
    """

    def __init__(self, place: Place, handler: Any) -> None:
        own = self.__dict__
        own["_async_trainer_place"] = place
        own["_async_trainer_handler"] = handler  # a proxy that is in use keeps its handler
        own["_async_trainer_push"] = place.task().push
        own["_async_trainer_entered"] = []

    def __call__(self, *args: Any, **kwargs: Any) -> Handle:
        handle: Handle = self.__dict__["_async_trainer_push"](args, kwargs)
        return handle

    def __getattr__(self, name: str) -> Any:
        own = self.__dict__
        place: Place = own["_async_trainer_place"]
        path = (*place.path, name)
        dunder = name.startswith("__") and name.endswith("__")
        if place.known:
            value = place.home.read(path)
            if isinstance(value, PLAIN) or (dunder and not place.path and isinstance(place.home.target, DESCRIBED)):
                return value
        if dunder:  # what copy, inspect, NumPy and others look for, and do without
            raise AttributeError(f"{self!r} has no {name}")
        child = Proxy(Place(place.home, place.source, path), own["_async_trainer_handler"])
        if not place.known or inspect.isroutine(value):  # any other attribute may hold a plain value the next time
            own[name] = child
        return child

    def __setattr__(self, name: str, value: Any) -> None:
        _wrote(self, name, _push(self, setattr, name, value), value)

    def __delattr__(self, name: str) -> None:
        _wrote(self, name, _push(self, delattr, name), MISSING)

    def __setitem__(self, key: Any, value: Any) -> None:
        _push(self, operator.setitem, key, value)

    def __delitem__(self, key: Any) -> None:
        _push(self, operator.delitem, key)

    def __enter__(self) -> Any:
        self.__dict__["_async_trainer_entered"].append(_push(self, enter_itself))
        return self

    def __exit__(self, kind: Any, error: Any, traceback: Any) -> None:
        _push(self, leave, self.__dict__["_async_trainer_entered"].pop(), kind, error)

    def __repr__(self) -> str:
        place: Place = self.__dict__["_async_trainer_place"]
        name = place.home.title if place.source is None else place.home.name
        return f"<proxy of {'.'.join(filter(None, (name, str(place))))}, lane {place.home.lane.name}>"

    def __str__(self) -> str:
        place: Place = self.__dict__["_async_trainer_place"]
        if not place.known and str(place):  # it would end up in a message or a file name
            refuse(self, "its text")
        return repr(self)

    def __bool__(self) -> bool:
        return True

    def __dir__(self) -> Iterable[str]:
        place: Place = self.__dict__["_async_trainer_place"]
        return dir(place.home.read(place.path)) if place.known else ()

    @property
    def __class__(self) -> Any:  # for isinstance()
        place: Place = self.__dict__["_async_trainer_place"]
        return type(place.home.target) if place.known and not place.path else Proxy

    @__class__.setter
    def __class__(self, value: Any) -> None:
        _push(self, setattr, "__class__", value)


class LogProxy(Proxy):
    """Of a ``logging.Handler``: to be added to a logger, like any other."""

    def __init__(self, place: Place, handler: Any) -> None:
        super().__init__(place, handler)
        self.__dict__["_async_trainer_handle"] = Place(place.home, path=("handle",)).task()

    def handle(self, record: logging.LogRecord) -> Handle | None:
        """Push ``record``, unless the handler's own call has led here: told through itself, that would never end."""
        task = self.__dict__["_async_trainer_handle"]
        home = task.place.home
        if home.within():
            home.pool.drop(task.targets)
            return None
        handle: Handle = task.push((record,), {})
        return handle

    def setLevel(self, level: int | str) -> None:  # noqa: N802
        """At once: loggers read the level before they hand a record on."""
        self.__dict__["_async_trainer_place"].home.target.setLevel(level)


def _push(proxy: Proxy, action: Callable[..., Any], *args: Any) -> Handle:
    place: Place = proxy.__dict__["_async_trainer_place"]
    return place.task(action).push(args, {})


def _wrote(proxy: Proxy, name: str, handle: Handle, value: Any) -> None:
    place: Place = proxy.__dict__["_async_trainer_place"]
    proxy.__dict__.pop(name, None)
    if place.known:
        place.home.wrote((*place.path, name), handle, value)


class SealedProxy(Sealed):
    """A proxy among the arguments of a call: in its own lane it is what it stands for."""

    __slots__ = ("proxy",)

    def __init__(self, proxy: Proxy) -> None:
        self.proxy = proxy

    def __reduce__(self) -> tuple[Any, ...]:
        place: Place = self.proxy.__dict__["_async_trainer_place"]
        if place.home.lane.placement != "process":
            raise CaptureError(f"{self.proxy!r}: what it stands for is in its own lane only")
        return Returned, (place.home.name, None if place.source is None else place.source.number, place.path)

    def open(self, scope: Scope) -> Any:
        place: Place = self.proxy.__dict__["_async_trainer_place"]
        return place.find() if current_lane.get() is place.home.lane else self.proxy


capture.register(Proxy)(SealedProxy)
