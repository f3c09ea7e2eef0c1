"""What lies between a capture and the hooks: sealed values, and the scope of one hook call that opens them."""

from __future__ import annotations

from typing import Any

from async_trainer.snapshot.standin import expire, is_kept


class Sealed:
    """A captured value that each hook call builds its own object from. It never changes once its event is captured."""

    __slots__ = ()

    def open(self, scope: Scope) -> Any:
        """What one hook call receives; the same object again within one scope.

        WORKER thread (synchronous mode: the training thread); many times, also from several threads at once.
        """
        raise NotImplementedError  # not an ABC: asking for its instances is on the way of each event

    def forget(self) -> None:
        """Let go of all parts: nobody will open it any more."""
        for cls in type(self).__mro__:
            for name in vars(cls).get("__slots__", ()):
                if hasattr(self, name):
                    delattr(self, name)


class SealedNode(Sealed):
    """A captured value that others hang on, and that may be met again below itself: a cycle.

    Attributes:
        done: False while what it is made of is being captured.
    """

    __slots__ = ("done",)

    done: bool


class SealedLeaf(Sealed):
    """A copy that is shared by all hooks; each gets a shell of its own over it.

    Attributes:
        copied: ``None`` until the batch that it is copied with is done.
    """

    __slots__ = ("copied",)

    copied: Any


class Scope:
    """One hook call. What it opens is shared within it (a model and its optimizers share parameters), not beyond it."""

    __slots__ = ("deep", "hook", "opened", "stand_ins")

    def __init__(self, hook: str = "") -> None:
        self.hook = hook
        self.opened: dict[Sealed, Any] = {}
        self.deep: dict[int, Any] = {}
        self.stand_ins: list[tuple[object, str]] = []

    def close(self) -> None:
        """The hook has returned: stand-ins opened here expire, unless they were given to ``keep``. WORKER thread."""
        for stand_in, argument in self.stand_ins:
            if not is_kept(stand_in):
                expire(stand_in, self.hook, argument)
        self.stand_ins.clear()
        self.opened.clear()
        self.deep.clear()

    def __repr__(self) -> str:
        return f"Scope({self.hook!r}, {len(self.opened)} opened, {len(self.stand_ins)} stand-ins)"


def open_value(taken: Any, scope: Scope) -> Any:
    """What a hook receives for a captured value: itself, unless it is sealed. WORKER thread.

    Raises:
        Exception: whatever the class of a captured object raises when it is rebuilt.
    """
    return taken.open(scope) if isinstance(taken, Sealed) else taken
