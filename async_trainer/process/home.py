"""The callbacks and objects of a process lane, on this end: what each of its children is sent first."""

from __future__ import annotations

import os
import sys
import weakref
from collections import deque
from typing import TYPE_CHECKING, Any

from async_trainer.attach import Attached
from async_trainer.process.ship import ship, ship_callbacks
from async_trainer.runtime.job import Job
from async_trainer.states import has_state

if TYPE_CHECKING:
    from async_trainer.process.session import HomeSession
    from async_trainer.proxy.proxied import Proxied
    from async_trainer.runtime.lane import Lane
    from async_trainer.runtime.pool import Pool


class Home:
    """The callbacks and proxied objects of a process lane; makes the sessions with its children.

    Attributes:
        callbacks: in the order in which they were attached.
        proxied: the objects.
    """

    def __init__(self, pool: Pool, lane: Lane) -> None:
        self.pool = pool
        self.lane = lane
        self.callbacks: list[Attached] = []
        self.proxied: list[Proxied] = []
        self.shipped: list[tuple[Any, ...]] = []  # messages: what each child is told first
        self._unshipped: list[Attached] = []
        self._started = False
        self._stateful: set[str] = set()
        self._handles: dict[int, weakref.ref[Any]] = {}
        self.held: int | None = None  # a descriptor that children hold open
        self.hold_number = 0
        self.dropped: deque[int] = deque()  # calls whose results nobody refers to any more

    def attach(self, one: Attached) -> None:
        """Another callback of this lane. The training thread."""
        self.callbacks.append(one)
        self._unshipped.append(one)
        if self._started:
            self.ship()
        if has_state(one.callback):
            self._stateful.add(one.name)

    def add(self, proxied: Proxied) -> None:
        """Another object whose calls are made in this lane. Any thread.

        Raises:
            ConfigurationError: it can't be sent.
        """
        pickled = ship_object(proxied)
        self.proxied.append(proxied)
        self.shipped.append(("object", proxied.name, pickled, not proxied.given, proxied.owner))

    def ship(self) -> None:
        """Pickle the callbacks, as they are now: when the lane starts. The training thread.

        Raises:
            ConfigurationError: one of them can't be sent.
        """
        new, self._unshipped = self._unshipped, []
        self._started = True
        if new:
            names = [(one.name, one.owner, tuple(one.hooks)) for one in new]
            self.shipped.append(("callbacks", ship_callbacks([one.callback for one in new]), names))

    def hold(self, descriptor: int) -> None:
        """Have the children hold a descriptor open, until they end. The training thread."""
        self.let_go()
        self.held = os.dup(descriptor)
        self.hold_number += 1

    def let_go(self) -> None:
        """Children that start from now on need not hold it. The training thread."""
        held, self.held = self.held, None
        if held is not None:
            os.close(held)

    def keep_while_referred_to(self, handle: Any) -> None:
        """The child keeps what a call has returned while somebody here may refer to it."""
        number: int = handle.number
        handles, dropped = self._handles, self.dropped

        def gone(_: object) -> None:
            handles.pop(number, None)
            dropped.append(number)

        handles[number] = weakref.ref(handle, gone)

    def stateful(self, job: Job) -> bool:
        return job.task.owner.name in self._stateful

    def command(self) -> list[str]:
        import subprocess

        flags: list[str] = subprocess._args_from_interpreter_flags()  # type: ignore[attr-defined]
        start = f"import sys; sys.path[:] = {import_paths()!r}; from async_trainer.process.child import main; main()"
        # -u: what it prints is not lost when it dies, half a line included.
        return [sys.executable, *flags, "-u", "-c", start, f"lane={self.lane.name}"]

    def environment(self) -> dict[str, str]:
        """One torch thread, unless somebody asks for more: the cores are the training's. And no windows."""
        ours = {**os.environ}
        if ours.get("MPLBACKEND", "module://").startswith("module://"):  # a notebook's
            ours["MPLBACKEND"] = "Agg"
        return {"OMP_NUM_THREADS": "1", **ours}

    def session(self) -> HomeSession:
        from async_trainer.process.session import HomeSession

        return HomeSession(self, self.lane)


def import_paths() -> list[str]:
    """``sys.path``, without what only importers of this process understand."""
    return [os.fspath(path) for path in sys.path if isinstance(path, (str, os.PathLike))]


def ship_object(proxied: Proxied) -> bytes:
    """The pickle of a proxied object, or of its factory."""
    remedy = "let it be made there, with factory=" if proxied.given else "let the factory make what it needs"
    return ship(proxied.subject, f"proxy({proxied.title})", remedy)
