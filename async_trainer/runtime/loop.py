"""The event loop of a pool: an anyio task group on a thread of its own."""

from __future__ import annotations

import contextvars
import logging
import socket
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import anyio
from anyio.abc import TaskGroup

from async_trainer.gate import Gate

if TYPE_CHECKING:
    from async_trainer.runtime.pool import Pool

logger = logging.getLogger("async_trainer")
clock = time.perf_counter

READY = 10.0  # s: for the loop to run
backend = "asyncio"
"""What ``anyio.run`` runs on. The tests run "trio" too."""


class LoopThread:
    """Runs the tasks of async lanes, and the watch that notices stalled lanes.

    Other threads reach it with a byte on a socket: some 2 µs, where an anyio portal takes 40 and keeps no order.
    """

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._calls: deque[Callable[[TaskGroup], None]] = deque()
        self.stopping = False  # what is cancelled then, no hook has cancelled
        self._runs = Gate()
        self._over = Gate()
        self._look: anyio.Event | None = None
        self._thread: threading.Thread | None = None
        self._asyncio: Any = None  # asyncio's loop, if it runs on that
        self._ours: socket.socket | None = None
        self._theirs: socket.socket | None = None

    def start(self, context: contextvars.Context) -> None:
        """Start the thread, in ``context``, and wait until the loop runs.

        Else the training thread may import something beside it, and Ctrl-C in that leaves the interpreter's import
        lock taken: the loop, whose backend is imported at first, would wait for it forever.
        """
        self._ours, self._theirs = socket.socketpair()
        self._ours.setblocking(False)
        self._theirs.setblocking(False)
        self._thread = threading.Thread(
            target=context.run, args=(self._run,), name="async_trainer-loop", daemon=True
        )  # fmt: skip
        self._thread.start()
        self._runs.wait(READY)

    def call(self, function: Callable[[TaskGroup], None]) -> None:
        """Have the loop call ``function`` with its task group. Any thread; takes no lock; never waits."""
        self._calls.append(function)
        self._poke()

    def look(self) -> None:
        """Have the watch look again. Any thread."""
        self.call(lambda _: self._look.set() if self._look else None)

    @property
    def alive(self) -> bool:
        """Whether its thread runs. It may for long after :meth:`stop`: until what hooks had ``asyncio``'s own executor
        do is done."""
        return self._thread is not None and not self._over.wait(0.0)

    def stop(self) -> None:
        """Have the loop end. Any thread; never waits."""
        self.stopping = True
        self._poke()

    def join(self, timeout: float) -> None:
        """Wait, at most ``timeout`` seconds, until its thread has ended."""
        if self._thread is None or self._thread is threading.current_thread():
            return
        if self._over.wait(timeout):  # first: Ctrl-C in a thread's join() has later ones return while it still runs
            self._thread.join(timeout)

    def executor_hangs(self, timeout: float) -> bool:
        """Whether ``asyncio``'s own executor is still busy after ``timeout`` seconds: it goes on with what a hook had
        it do, though the hook was cancelled. It takes nothing more; for the exit, when no executor does."""
        executor = getattr(self._asyncio, "_default_executor", None)
        if executor is None:
            return False
        executor.shutdown(wait=False)
        until = clock() + timeout
        for thread in list(executor._threads):
            thread.join(max(0.0, until - clock()))
        return any(thread.is_alive() for thread in list(executor._threads))

    def after_fork(self) -> None:
        """In a forked child the socket is still the parent's: leave it alone."""
        self._theirs = self._thread = None

    def _poke(self) -> None:
        if self._theirs is None:
            return
        try:
            self._theirs.send(b"\0")
        except (BlockingIOError, OSError):  # it has a byte to read already, or has ended
            pass

    def _run(self) -> None:
        try:
            anyio.run(self._main, backend=backend)
        except BaseException:
            logger.critical("the event loop of a handler has died; its async callbacks will stall", exc_info=True)
        finally:
            for end in (self._ours, self._theirs):
                if end is not None:
                    end.close()
            self._asyncio = None
            self._runs.open()
            self._over.open()
            self._pool.loop_ended()

    async def _main(self) -> None:
        import asyncio  # not at the top: under trio nobody needs it

        try:
            self._asyncio = asyncio.get_running_loop()
        except RuntimeError:
            pass
        assert self._ours is not None
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._watch)
            self._runs.open()
            while not self.stopping:
                await anyio.wait_readable(self._ours)
                try:
                    self._ours.recv(4096)
                except BlockingIOError:
                    pass
                while self._calls:
                    self._calls.popleft()(tasks)
            tasks.cancel_scope.cancel()

    async def _watch(self) -> None:
        while True:
            self._look = anyio.Event()
            with anyio.move_on_after(self._pool.check()):
                await self._look.wait()
