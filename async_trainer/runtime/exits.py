"""The end of the process: pools that are still open are drained, within bounds; a forked child never runs them."""

from __future__ import annotations

import atexit
import concurrent.futures.thread  # noqa: F401  (registers its own exit first: ours must come before it)
import logging
import os
import signal
import sys
import threading
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from async_trainer.runtime.pool import Pool

logger = logging.getLogger("async_trainer")

_pools: set[Pool] = set()  # strong: a dropped handler's pool lives until it has drained
_forkable: weakref.WeakSet[Any] = weakref.WeakSet()
_registered = False
_status = 0  # what the process exits with, as far as it is known


def register(pool: Pool) -> None:
    """Drain ``pool`` at the exit of the process, unless it is forgotten before. The training thread."""
    global _registered
    if not _registered:
        _registered = True
        os.register_at_fork(after_in_child=_after_fork)
        _at_thread_shutdown(_drain)
    _pools.add(pool)


def forget(pool: Pool) -> None:
    """``pool`` has ended. Any thread."""
    _pools.discard(pool)


def open_pools() -> list[Pool]:
    """The pools that have started and not ended."""
    return list(_pools)


def inert_in_child(handler: Any) -> None:
    """Call ``handler.after_fork()`` in every forked child."""
    _forkable.add(handler)


def remember_status(error: SystemExit) -> None:
    """``error`` has left a ``with handler``: the interpreter doesn't tell exit functions what it exits with."""
    global _status
    code = error.code
    _status = code if isinstance(code, int) else int(code is not None)


def _at_thread_shutdown(function: Callable[[], None]) -> None:
    # Before the interpreter joins threads and refuses new ones: in plain atexit a hook that uses an executor fails.
    try:
        threading._register_atexit(function)  # type: ignore[attr-defined]
    except (AttributeError, RuntimeError):  # gone from this Python, or the exit has begun
        atexit.register(function)


def _after_fork() -> None:
    from async_trainer.runtime.interpreter import switch_interval

    switch_interval.after_fork()
    for handler in list(_forkable):
        handler.after_fork()
    for pool in list(_pools):
        pool.after_fork()
    _pools.clear()


def _failed() -> type[BaseException] | None:
    """The exception that ends the process, if the interpreter has reported one."""
    return getattr(sys, "last_type", None)


def _drain() -> None:
    error = _failed()
    hung = []
    for pool in list(_pools):
        timeout = pool.shutdown_timeout if error else None
        try:
            report = pool.close(timeout)
        except KeyboardInterrupt:
            logger.warning("interrupted: what is left in the lanes is lost")
            report = pool.report()
        if report.lost or report.stalled:
            logger.warning("at exit: %s", report)
        at_end = pool.failures.take_to_raise_at_end()
        if at_end:
            logger.error("nobody closed the handler, so nobody could be told: %s", at_end)
        hung += [lane.name for lane in pool.hung]
    if hung:
        logger.error("still inside a hook: %s; the process ends without waiting for it any longer", ", ".join(hung))
        # Registered last, so called first: it runs all the others, and leaves.
        atexit.register(_leave)


def _leave() -> None:
    """End the process although a hook is still inside: a daemon thread that comes out of a torch or file operation
    while the interpreter is torn down aborts the process."""
    atexit.unregister(_leave)
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (AttributeError, OSError, ValueError):  # None under pythonw, closed, or a broken pipe
            pass
    error = _failed()
    if error is not None and issubclass(error, KeyboardInterrupt):
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
    if error is not None:
        os._exit(1)
    os._exit(_status)
