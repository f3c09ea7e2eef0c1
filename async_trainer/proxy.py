"""A stand-in for an object whose calls run in the background, in order, on captured arguments."""

from __future__ import annotations

import inspect
import logging
import time
from collections.abc import Callable, Hashable, Iterable
from enum import Enum
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

from async_trainer.callback import Options, merge_options, snake_case
from async_trainer.emit import take_values
from async_trainer.errors import AsyncTrainerError, ConfigurationError, EventLostError, StandInError
from async_trainer.routes import Uncaptured
from async_trainer.runtime.job import Job, Lease, Owner
from async_trainer.runtime.lane import Lane
from async_trainer.runtime.pool import Pool, current_lane
from async_trainer.snapshot import Scope, open_value

if TYPE_CHECKING:
    from async_trainer.handler import CallbacksHandler

PLAIN = (str, bytes, int, float, complex, bool, type(None), Enum, PurePath)
MISSING: Any = object()


class Handle:
    """What a proxied call returns: wait for it, or ignore it. In a ``with`` it enters what the call returned."""

    __slots__ = ("_error", "_lane", "_result", "done")

    def __init__(self, lane: ProxyLane) -> None:
        self._lane = lane
        self._result: Any = None
        self._error: BaseException | None = None
        self.done = False

    def __repr__(self) -> str:
        state = "waits" if not self.done else "failed" if self._error is not None else "done"
        return f"<Handle in lane {self._lane.name}: {state}>"

    def wait(self, timeout: float | None = None) -> Any:
        """What the call returned, waiting for it. Any thread, but not inside a background hook.

        Args:
            timeout: seconds; None: as long as the lane moves.

        Raises:
            TimeoutError: it has not been made yet; names the lane.
            EventLostError: it was dropped or lost.
            Exception: what the call raised.
        """
        if not self.done:
            stalled = self._lane.pool.wait(
                lambda: () if self.done else (self._lane.lane,), timeout, f"{self._lane.name}: wait()"
            )
            if stalled and not self.done:
                raise TimeoutError(f"{self._lane.name}: wait(): the lane has stalled")
        return self.get()

    def get(self) -> Any:
        if self._error is not None:
            raise self._error
        return self._result

    def settle(self, result: Any, error: BaseException | None) -> None:
        self._result, self._error = result, error
        self.done = True

    def __enter__(self) -> Any:
        self._lane.submit(_enter, ("__enter__",), self.get, (), {})
        return Proxy(self._lane, (), self.get)

    def __exit__(self, kind: Any, error: Any, traceback: Any) -> None:
        self._lane.submit(_exit, ("__exit__",), self.get, (kind, error), {})


class ProxyLane:
    """The lane of a proxied object, and the object: the training thread pushes calls, the lane makes them."""

    def __init__(
        self, handler: CallbacksHandler, pool: Pool, lane: Lane, owner: Owner, target: Any, factory: Any
    ) -> None:
        self.handler = handler  # a proxy that is in use keeps its handler
        self.pool = pool
        self.lane = lane
        self.owner = owner
        self.target = target
        self.name = owner.name
        self.of = type(target).__name__ if factory is None else getattr(factory, "__name__", "factory")
        self._factory = factory

    def root(self) -> Any:
        """The object itself; made by the factory when it is first needed. The lane's thread."""
        if self.target is MISSING:
            self.target = self._factory()
        return self.target

    def submit(
        self, action: Callable[..., Any], path: tuple[str, ...], root: Callable[[], Any], args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Handle:  # fmt: skip
        """Push a call. Any thread."""
        return push_call(CallTask(self, action, path, root), args, kwargs)


class Call:
    """The payload of one call."""

    __slots__ = ("args", "at", "handle", "lease", "names")

    def __init__(self, at: float, handle: Handle, args: list[Any], names: tuple[str, ...], lease: Lease | None) -> None:
        self.at = at
        self.handle = handle
        self.args = args  # the positional ones, then those of ``names``
        self.names = names
        self.lease = lease


class CallTask:
    """One method (or attribute, or item) of a proxied object, as the runtime sees it."""

    __slots__ = ("_action", "_path", "_root", "lane", "name", "owner", "targets")

    essential = False

    def __init__(
        self, lane: ProxyLane, action: Callable[..., Any], path: tuple[str, ...], root: Callable[[], Any]
    ) -> None:
        self.lane = lane
        self.owner = lane.owner
        self.name = ".".join(path) or "__call__"
        self.targets = ((lane.lane, self),)
        self._action = action
        self._path = path
        self._root = root

    def key(self, payload: Call) -> Hashable:
        first = payload.args[0] if payload.args else None
        try:
            hash(first)
        except TypeError:
            first = None
        return self.name, first

    def call(self, job: Job, attempt: int) -> Any:
        payload: Call = job.payload
        scope = Scope(f"{self.owner.name}.{self.name}")
        try:
            values = []
            for value in payload.args:
                if type(value) is Uncaptured:
                    raise value.error
                values.append(open_value(value, scope))
            count = len(values) - len(payload.names)
            kwargs = dict(zip(payload.names, values[count:], strict=True))
            result = self._action(self._root(), self._path, *values[:count], **kwargs)
        except BaseException:
            scope.close()
            raise
        if inspect.isawaitable(result) and self.lane.lane.placement == "task":
            return _closing(result, scope)
        scope.close()
        if inspect.iscoroutine(result):
            result.close()
            raise ConfigurationError(f"{self.owner.name}.{self.name} is async: proxy it with placement='task'")
        return result

    def argument(self, place: int) -> str:
        """How messages call the value at ``place``."""
        return f"argument {place + 1}"

    def retriable(self, error: BaseException) -> bool:
        return not isinstance(error, AsyncTrainerError)

    def settled(self, job: Job, result: Any, error: BaseException | None) -> None:
        job.payload.handle.settle(result, error)

    def where(self, payload: Any) -> str:
        return ""


async def _closing(result: Any, scope: Scope) -> Any:
    try:
        return await result
    finally:
        scope.close()


def push_call(task: CallTask, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Handle:
    """Capture the arguments, and push the call to its lane. Any thread."""
    pool = task.lane.pool
    now = time.perf_counter()
    handle = Handle(task.lane)
    values, lease = take_values(pool, [*args, *kwargs.values()], task)
    if values is None:
        pool.drop(task.targets)
        task.settled(
            Job(0, task, Call(now, handle, [], (), None)),
            None,
            EventLostError(
                f"{task.owner.name}.{task.name} was dropped: the byte budget is full, and the lanes stalled"
            ),
        )
        return handle
    try:
        pool.push(task.targets, Call(now, handle, values, tuple(kwargs), lease))
    finally:
        if lease is not None:
            pool.release(lease)
    return handle


# What a call does with the object, on its lane.


def _resolve(root: Any, path: Iterable[str]) -> Any:
    for name in path:
        root = getattr(root, name)
    return root


def _call(root: Any, path: tuple[str, ...], *args: Any, **kwargs: Any) -> Any:
    return _resolve(root, path)(*args, **kwargs)


def _set_attribute(root: Any, path: tuple[str, ...], value: Any) -> None:
    setattr(_resolve(root, path[:-1]), path[-1], value)


def _delete_attribute(root: Any, path: tuple[str, ...]) -> None:
    delattr(_resolve(root, path[:-1]), path[-1])


def _set_item(root: Any, path: tuple[str, ...], key: Any, value: Any) -> None:
    _resolve(root, path[:-1])[key] = value


def _delete_item(root: Any, path: tuple[str, ...], key: Any) -> None:
    del _resolve(root, path[:-1])[key]


def _enter(root: Any, path: tuple[str, ...]) -> Any:
    return _resolve(root, path[:-1]).__enter__()


def _exit(root: Any, path: tuple[str, ...], kind: Any, error: Any) -> Any:
    return _resolve(root, path[:-1]).__exit__(kind, error, None)


class Proxy:
    """Stands for an object (or for what is at ``path`` in it): calls to it are made on its lane, in order.

    Calls return a :class:`Handle`. Setting attributes and items, and ``with``, are calls too. Attributes that are
    plain values are read from the object at once; other attributes are proxies. What would need the object's answer
    at once (``len()``, iterating, reading an item, comparing, arithmetic) raises, by name.
    """

    def __init__(self, lane: ProxyLane, path: tuple[str, ...], root: Callable[[], Any]) -> None:
        own = object.__getattribute__(self, "__dict__")
        own["_async_trainer"] = (lane, path, root)
        own["_async_trainer_call"] = CallTask(lane, _call, path, root)

    def __repr__(self) -> str:
        lane, path, _ = self.__dict__["_async_trainer"]
        return f"<proxy of {'.'.join((lane.of, *path))}, lane {lane.name}>"

    def __call__(self, *args: Any, **kwargs: Any) -> Handle:
        return push_call(self.__dict__["_async_trainer_call"], args, kwargs)

    def __getattr__(self, name: str) -> Any:
        own = self.__dict__
        if "_async_trainer" not in own or (name.startswith("__") and name.endswith("__")):
            raise AttributeError(name)  # copy and pickle ask for such on an object that isn't made yet
        lane, path, root = own["_async_trainer"]
        if root == lane.root and lane.target is not MISSING:
            value = getattr(_resolve(lane.target, path), name)
            if isinstance(value, PLAIN):
                return value
        proxy: Proxy
        if name == "handle" and isinstance(lane.target, logging.Handler):
            proxy = LogProxy(lane, (*path, name), root)
        else:
            proxy = Proxy(lane, (*path, name), root)
        own[name] = proxy
        return proxy

    def __setattr__(self, name: str, value: Any) -> None:
        self._do(_set_attribute, name, value)

    def __delattr__(self, name: str) -> None:
        self._do(_delete_attribute, name)

    def __setitem__(self, key: Any, value: Any) -> None:
        self._do(_set_item, "__setitem__", key, value)

    def __delitem__(self, key: Any) -> None:
        self._do(_delete_item, "__delitem__", key)

    def __enter__(self) -> Any:
        self._do(_enter, "__enter__")
        return self

    def __exit__(self, kind: Any, error: Any, traceback: Any) -> None:
        self._do(_exit, "__exit__", kind, error)

    def _do(self, action: Callable[..., Any], name: str, *args: Any) -> None:
        lane, path, root = self.__dict__["_async_trainer"]
        lane.submit(action, (*path, name), root, args, {})

    def __reduce__(self) -> Any:
        raise StandInError(f"{self!r} can't be copied or pickled: it belongs to its handler")


class LogProxy(Proxy):
    """``handle`` of a proxied ``logging.Handler``."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        lane, path, root = self.__dict__["_async_trainer"]
        if current_lane.get() is lane.lane:  # the lane logs that it failed: through itself it would never end
            return _call(root(), path, *args, **kwargs)
        return super().__call__(*args, **kwargs)


def _refuse(operation: str) -> Callable[..., Any]:
    def refuse(self: Proxy, *args: Any, **kwargs: Any) -> Any:
        raise StandInError(
            f"{self!r}: {operation} needs the object's answer at once; use the object itself, or wait() for what one "
            "of its methods returns"
        )

    return refuse


for _name in [
    "len",
    "iter",
    "next",
    "contains",
    "getitem",
    "index",
    "int",
    "float",
    "add",
    "radd",
    "sub",
    "rsub",
    "mul",
    "rmul",
    "truediv",
    "rtruediv",
    "floordiv",
    "mod",
    "pow",
    "matmul",
    "lt",
    "le",
    "gt",
    "ge",
    "neg",
    "pos",
    "abs",
    "iadd",
    "isub",
    "imul",
    "itruediv",
    "await",
    "aenter",
    "aexit",
    "aiter",
    "anext",
]:
    setattr(Proxy, f"__{_name}__", _refuse(f"__{_name}__"))


def make_proxy(
    handler: CallbacksHandler, pool: Pool, names: Iterable[str], target: Any, factory: Any, options: dict[str, Any]
) -> tuple[Any, str, Lane]:
    """A proxy of ``target`` (or of what ``factory`` returns), its name, and its lane, not added to the pool yet.

    Raises:
        ConfigurationError: both or neither of ``target`` and ``factory``; an option that a proxy has no use for.
    """
    if (target is MISSING) == (factory is None):
        raise ConfigurationError("proxy(): give either the object, or factory=a function that makes it on its lane")
    subject = target if factory is None else factory
    if factory is not None and not callable(factory):
        raise ConfigurationError(f"proxy(): factory must be callable, not {factory!r}")
    if isinstance(subject, Proxy):
        raise ConfigurationError(f"proxy(): {subject!r} is a proxy already")
    title = subject.__name__ if hasattr(subject, "__name__") else type(subject).__name__
    for option in ("every", "when", "select"):
        if options.get(option) is not None:
            raise ConfigurationError(
                f"proxy({title}): {option}= is for events; a proxy makes each call that it is given"
            )
    checked = merge_options(Options(), options, f"proxy({title})")
    taken = set(names)
    name = checked.name or _default_name(title.rpartition(".")[2], taken)
    if name in taken:
        raise ConfigurationError(f"proxy({title}): there is a callback or lane {name!r} already; give it another name=")
    is_async = inspect.iscoroutinefunction(target)
    placement = checked.placement or ("task" if is_async else "thread")
    lane = pool.lanes.get(checked.lane or name) or Lane(
        checked.lane or name, size=checked.queue_size, overflow=checked.overflow, placement=placement
    )
    owner = Owner(name, checked.on_error, checked.retries, checked.backoff, checked.timeout)
    home = ProxyLane(handler, pool, lane, owner, target, factory)
    return Proxy(home, (), home.root), name, lane


def _default_name(title: str, taken: set[str]) -> str:
    base = snake_case(title) if title.isidentifier() else "proxy"
    return next(name for n in range(len(taken) + 1) if (name := f"{base}_{n}" if n else base) not in taken)
