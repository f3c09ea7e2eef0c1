"""The end of the process: pools that are still open are drained, within bounds; a forked child never runs them.

First, before the interpreter joins threads and executors take nothing more, the lanes are waited for: their hooks may
need both. Then, when no other thread is left that could emit anything, the pools are closed. A hook that is inside
then will not come out: the other exit functions are run, files are flushed, and the process is ended from here, with
the status that it would have had. (A daemon thread that comes out of a torch operation while the interpreter is torn
down aborts the process.)
"""

from __future__ import annotations

import atexit
import functools
import gc
import io
import logging
import os
import signal
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterable
from concurrent.futures import thread as executors
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    from async_trainer.runtime.pool import Pool

logger = logging.getLogger("async_trainer")
clock = time.monotonic

LOOP_GRACE = 0.5  # s: for a loop to end that has nothing left to do
PATIENCE = 5.0  # s: for files to be flushed, a log to be written, though a hook may be inside and hold their locks

_pools: set[Pool] = set()  # strong: a dropped handler's pool lives until it has drained
_forkable: weakref.WeakSet[Any] = weakref.WeakSet()
_registered = False
_late: set[Pool] = set()  # had their shutdown_timeout
_interrupt: BaseException | None = None  # Ctrl-C, or what a signal handler has raised, has ended the drain
_exit: tuple[int, BaseException | None] | None = None  # the status of the last SystemExit, the error before it


def register(pool: Pool) -> None:
    """Drain ``pool`` at the exit of the process, unless it is forgotten before."""
    global _registered, _exit
    if not _registered:
        os.register_at_fork(after_in_child=_after_fork)
        _hear_of_sys_exit()
        try:
            import concurrent.futures.process  # noqa: F401  (has an exit function too: ours is called before those above)

            threading._register_atexit(_drain)  # type: ignore[attr-defined]
        except (AttributeError, RuntimeError):  # gone from this Python, or the exit has begun
            atexit.register(_close)
        _registered = True
    _exit = None  # whatever has exited was caught
    open_pools()  # those that are over go
    _pools.add(pool)


def forget(pool: Pool) -> None:
    """``pool`` has ended. Any thread."""
    _pools.discard(pool)


def had_its_time(pool: Pool) -> None:
    """``pool`` has had its ``shutdown_timeout`` for the error that ends the process: it gets no other. Any thread."""
    _late.add(pool)


def goes_on(pool: Pool) -> None:
    """The error was caught: ``pool`` is used again."""
    _late.discard(pool)


def open_pools() -> list[Pool]:
    """The pools that have started and not ended, to the last of their threads: one that lets go of a tensor while the
    interpreter is torn down aborts the process."""
    for pool in list(_pools):
        if pool.over and not pool.alive:
            _pools.discard(pool)
    return list(_pools)


# ------------------------------------------------------------------------------------------------------------- forks


def inert_in_child(handler: Any) -> None:
    """Call ``handler.after_fork()`` in every forked child."""
    _forkable.add(handler)


def _after_fork() -> None:
    from async_trainer.runtime.interpreter import switch_interval

    switch_interval.after_fork()
    for handler in list(_forkable):
        handler.after_fork()
    for pool in list(_pools):
        pool.after_fork()
    _pools.clear()


# --------------------------------------------------------------------------------------- how the process comes to end


def remember_exit(code: object) -> None:
    """A ``SystemExit(code)`` was raised: the interpreter doesn't tell exit functions what it exits with."""
    global _exit
    _exit = (code & 0xFF if isinstance(code, int) else int(code is not None)), _error()


def _hear_of_sys_exit() -> None:
    original = sys.exit

    @functools.wraps(original)
    def exit_and_tell(status: Any = None, /) -> NoReturn:
        if threading.current_thread() is threading.main_thread():
            remember_exit(status)
        original(status)

    sys.exit = exit_and_tell


def _error() -> BaseException | None:
    """What has ended the main program. In an interactive one it may long be forgotten."""
    return None if hasattr(sys, "ps1") else getattr(sys, "last_value", None)


def _status() -> int:
    """What the process exits with, as far as it is known: as ``subprocess`` has it, negative for a signal."""
    error = _error()
    if _exit is not None and _exit[1] is error:
        return _exit[0]
    error = error or _interrupt
    if isinstance(error, KeyboardInterrupt):
        return -signal.SIGINT
    return 0 if error is None else 1


def interrupted_twice(error: BaseException | None) -> bool:
    """Whether a second Ctrl-C came while the first was dealt with."""
    interrupts = 0
    while error is not None:
        interrupts += isinstance(error, KeyboardInterrupt)
        error = error.__context__
    return interrupts > 1


def _time_left(pool: Pool, began: float) -> float | None:
    """Seconds that ``pool`` may still take; None: as long as its lanes move."""
    error = _error()
    if _interrupt is not None or pool in _late or interrupted_twice(error):
        return 0.0
    return None if error is None else max(0.0, began + pool.shutdown_timeout - clock())


# ------------------------------------------------------------------------------------------------ the steps of the end


def _drain() -> None:
    """Called by ``threading``, before it joins threads."""
    atexit.register(_close)  # last of all, so it comes first
    began = clock()
    try:
        for pool in open_pools():
            try:
                pool.drain(_time_left(pool, began), _error())
            except TimeoutError:
                _late.add(pool)
    except BaseException as error:
        _give_up(error)
    _stay_interrupted()
    try:
        forsake = any(_hangs(pool, began) for pool in open_pools())
    except BaseException as error:
        _give_up(error)
        forsake = True
    if forsake:
        _forsake_executors()


def _hangs(pool: Pool, began: float) -> bool:
    """Whether hooks of ``pool`` are left, or what they had the loop's executor do, that may never come to an end."""
    if any(lane.busy for lane in pool.lanes.values()):
        return True
    if pool.ending:
        pool.loop.join(LOOP_GRACE)
        return pool.loop.alive
    left = _time_left(pool, began)  # the loop still runs, for what other threads may emit
    return pool.loop.executor_hangs(pool.stall_timeout if left is None else left)


def _close() -> None:
    """Called by ``atexit``, when no other threads are left that count."""
    atexit.unregister(_close)
    began = clock()
    last_words: list[tuple[int, str, object]] = []
    hung: list[str] = []
    for pool in open_pools():
        try:
            report = pool.close(_time_left(pool, began), _error())
        except BaseException as error:
            _give_up(error)
            report = pool.report()
        if (report.lost or report.stalled) and not pool.told:
            last_words.append((logging.WARNING, "at exit: %s", pool.describe(report)))
        untold = pool.failures.take_to_raise_at_end()
        if untold is not None:
            last_words.append((logging.ERROR, "nobody closed the handler, so nobody could be told: %s", untold))
        hung += pool.hung
    if hung:
        text = "still inside a hook: %s; the process ends without waiting for it any longer"
        last_words.append((logging.ERROR, text, ", ".join(hung)))
    if last_words:
        _within(PATIENCE, functools.partial(_log, last_words))
    # The interpreter takes no notice of what ended the drain. With a frame behind this one it isn't the interpreter
    # that runs the exit functions, but a program that will end by itself.
    if (hung or _interrupt is not None) and sys._getframe().f_back is None:
        _leave()


def _give_up(error: BaseException) -> None:
    """Ctrl-C again, or what a signal handler raises, has ended the drain."""
    global _interrupt
    _interrupt = error
    if isinstance(error, SystemExit):
        remember_exit(error.code)
    logger.warning("%s ends the drain: what is left in the lanes is lost", type(error).__name__)


def _leave() -> NoReturn:
    try:
        _forsake_log_handlers()
        atexit._run_exitfuncs()
        _within(PATIENCE, _flush)
    finally:
        status = _status()
        if status < 0:
            signal.signal(-status, signal.SIG_DFL)
            os.kill(os.getpid(), -status)
        os._exit(status)


def _log(lines: Iterable[tuple[int, str, object]]) -> None:
    for line in lines:
        logger.log(*line)


def _within(seconds: float, function: Callable[[], object]) -> None:
    """Call ``function``, and go on after ``seconds`` even if it waits for a lock that a hook holds."""
    thread = threading.Thread(target=function, name="async_trainer-exit", daemon=True)
    try:
        thread.start()
    except RuntimeError:  # from Python 3.12 on, atexit is too late for a new thread
        function()
    else:
        thread.join(seconds)


def _flush() -> None:
    files = (io.TextIOWrapper, io.BufferedWriter, io.BufferedRandom)
    for stream in (sys.stdout, sys.stderr, *(item for item in gc.get_objects() if issubclass(type(item), files))):
        try:
            stream.flush()
        except Exception:  # None under pythonw; closed; a broken pipe
            pass


def _forsake_executors() -> None:
    """Don't have the interpreter wait for what a hook that never returns has an executor do. Threads that hooks start
    are daemon, as theirs are."""
    from concurrent.futures import process as processes

    registers: list[Any] = [executors._threads_queues, processes._threads_wakeups]
    for threads in registers:
        for thread in list(threads):
            if thread.daemon:
                del threads[thread]


def _forsake_log_handlers() -> None:
    """Don't have ``logging`` wait for the lock of a log handler that a hook is inside of."""
    for ref in list(logging._handlerList):  # type: ignore[attr-defined]
        lock = getattr(ref(), "lock", None)
        if lock is None or lock.acquire(timeout=0.1):
            if lock is not None:
                lock.release()
        else:
            logging._handlerList.remove(ref)  # type: ignore[attr-defined]


def _stay_interrupted() -> None:
    """CPython keeps in one flag that Ctrl-C has ended the main program; each ``exec`` and ``eval`` of a string resets
    it, in whatever thread, so a hook's ``import`` could turn the status from that of a signal to 1."""
    if isinstance(_error(), KeyboardInterrupt):
        try:
            exec("raise KeyboardInterrupt")
        except KeyboardInterrupt:
            pass
