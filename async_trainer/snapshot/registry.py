"""The registry of kinds, and the capture of a value by it."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from typing import Any, TypeVar

from async_trainer.errors import CaptureError
from async_trainer.snapshot.bundle import bundled
from async_trainer.snapshot.faults import LeafError, final, worded
from async_trainer.snapshot.kind import Kind
from async_trainer.snapshot.memo import Memo
from async_trainer.snapshot.sealed import Scope, open_value

F = TypeVar("F", bound=Callable[[Any], Any])
Rule = Kind | Callable[[type], Kind]

LEAVES: dict[str, tuple[str, ...]] = {
    "builtins": ("plain", "derived", "objects", "records"),
    "numpy": ("arrays",),
    "pandas": ("frames",),
    "torch": ("tensors", "parameters", "modules", "module_hooks", "scripted", "views"),
}
"""Root package of a type -> the files of this package that know its types. Each is imported when first needed."""


class Registry:
    """Which kind a type is of: registered functions first, then the nearest base class that has a rule.

    Attributes:
        kinds: the types met so far. The hot path looks here first, and calls ``kind`` for a type that is missing.
        references: those of them that are captured by reference; containers compare whole batches of types with it.
    """

    def __init__(self) -> None:
        self.kinds: dict[type, Kind] = {}
        self.references: set[type] = set()
        self._registered: dict[type, Kind] = {}
        self._rules: dict[type, Rule] = {}
        self._loaded: set[str] = set()

    def kind(self, cls: type) -> Kind:
        """The kind of a type; found once, then cached. TRAINING THREAD (any thread is safe)."""
        found = self.kinds.get(cls)
        if found is None:
            found = self._resolve(cls)
            self.kinds[cls] = found
            if found.take is None:
                self.references.add(cls)
        return found

    def register(self, cls: type) -> Callable[[F], F]:
        """Say how a type, and its subclasses, are captured; wins over every rule of this package.

        ::

            @capture.register(Net)
            def _(live: Net) -> Net:
                return live.small_copy()

        The function runs on the TRAINING THREAD, once per event; what it returns is what all hooks get, so it must not
        change later.
        """

        def decorate(function: F) -> F:
            self._registered[cls] = _registered(cls, function)
            self.kinds.clear()
            self.references.clear()
            return function

        return decorate

    def freezes(self, cls: type) -> Callable[[F], F]:
        """As ``register``, for a function that makes a small frozen copy and can't fail: without bookkeeping."""

        def decorate(function: F) -> F:
            self._registered[cls] = Kind("copied, frozen", lambda value, memo: function(value), quick=function)
            self.kinds.clear()
            self.references.clear()
            return function

        return decorate

    def knows(self, cls: type, kind: Kind) -> None:
        """A type of this package, and its kind."""
        self._registered[cls] = kind

    def __call__(self, value: Any) -> Any:
        """``value`` as a hook would receive it: captured and opened, in one. Any thread.

        Raises:
            CaptureError: it, or something in it, can't be copied.
        """
        return open_value(take(value, Memo()), Scope("capture"))

    def _resolve(self, cls: type) -> Kind:
        mro = cls.__mro__
        for base in mro:
            if base in self._registered:
                return self._registered[base]
        for base in mro:
            self._load(str(base.__module__).partition(".")[0])
        rule = next(self._rules[base] for base in mro if base in self._rules)
        return rule if isinstance(rule, Kind) else rule(cls)

    def _load(self, root: str) -> None:
        if root in self._loaded or root not in LEAVES or root not in sys.modules:
            return
        for name in LEAVES[root]:
            leaf_file: Any = importlib.import_module(f"async_trainer.snapshot.{name}")
            self._rules.update(leaf_file.KINDS)
        self._loaded.add(root)

    def __repr__(self) -> str:
        return f"<capture: {len(self._registered)} registered, {len(self.kinds)} types met>"


capture = Registry()
"""The public object: ``capture(value)``, ``capture.register(type)``."""

_kinds = capture.kinds


def take(value: Any, memo: Memo, path: str = "") -> Any:
    """Capture one argument of an event. TRAINING THREAD.

    Args:
        value: the live value.
        memo: the event's; shared by all its arguments.
        path: the argument's name, for messages and stand-ins.

    Returns:
        A value that never changes, or a ``Sealed``; give it to ``open_value`` in each hook.

    Raises:
        CaptureError: it, or something in it, can't be copied; names the path. The memo is as before the call.
    """
    kind = _kinds.get(type(value)) or capture.kind(type(value))
    if kind.take is None:
        return value
    mark = memo.mark()
    memo.argument = path or "value"
    failure: CaptureError | None = None
    try:
        taken = kind.take(value, memo)
    except Exception as error:
        memo.rollback(mark)
        failure = final(error, path)
    if failure is not None:
        # Raised here, and not kept in this frame: as a cycle, error and frame would hold live values and half a copy.
        try:
            raise failure
        finally:
            del failure
    return taken if memo.bundle is None else bundled(taken, memo.bundle)


def leaf(value: Any, memo: Memo) -> Any:
    """Capture something within an argument; for the ``take`` functions of this package. TRAINING THREAD."""
    kind = _kinds.get(type(value)) or capture.kind(type(value))
    return value if kind.take is None else kind.take(value, memo)


def size(*values: Any) -> int:
    """Bytes of the big parts (above ``SMALL`` each) that capturing ``values`` in one event will copy; an estimate.

    What they share is counted once. What is found only inside deep copies is not counted: see ``Memo.nbytes``.
    TRAINING THREAD.
    """
    total = 0
    seen: set[int] = set()
    stack = list(values)
    while stack:
        value = stack.pop()
        kind = _kinds.get(type(value)) or capture.kind(type(value))
        if kind.size is None or id(value) in seen:
            continue
        seen.add(id(value))
        if kind.parts is None:
            total += kind.size(value)
        else:
            stack.extend(kind.parts(value))
    return total


def _registered(cls: type, function: Callable[[Any], Any]) -> Kind:
    def take_registered(value: Any, memo: Memo) -> Any:
        if id(value) in memo.copies:
            return memo.copies[id(value)]
        try:
            taken = function(value)
        except Exception as error:
            reason = f"the function registered for {cls.__qualname__} failed ({worded(error)})"
            raise LeafError(reason, error) from error
        memo.put(value, taken)
        if taken is not value:
            memo.nbytes += size(taken)
        return taken

    return Kind("by the function registered for it", take_registered)
