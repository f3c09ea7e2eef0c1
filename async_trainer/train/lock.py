"""The lock of a split's folder: one run at a time has it."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from async_trainer.errors import ConfigurationError
from async_trainer.handler import CallbacksHandler
from async_trainer.train.maps import Maps, SplitMaps

logger = logging.getLogger("async_trainer")

LOCK_PATIENCE = 60.0  # s: for another process that still has the folder: a killed run's children, say
LOCK = "run.lock"
LOOK = 0.05  # s


@contextmanager
def locked(folder: SplitMaps, handler: CallbacksHandler) -> Iterator[None]:
    """Hold ``run.lock`` of a split: one run at a time, and none before the children of a killed one have ended.

    The children of ``handler`` hold it, too.

    Raises:
        ConfigurationError: another process holds it for longer than a killed run's children could.
    """
    import fcntl

    folder.path.mkdir(parents=True, exist_ok=True)
    path = folder.path / LOCK
    until, told = time.monotonic() + LOCK_PATIENCE, False
    while (lock := _lock(path)) is None:
        if time.monotonic() > until:
            raise ConfigurationError(
                f"split {folder.index} is in use: a process that trains it, or is left of one that did, holds {path}"
            )
        if not told:
            told = True
            logger.warning("waiting for a process that still has %s", folder.path)
        time.sleep(LOOK)
    try:
        handler._hold_in_children(lock)
        yield
    finally:
        handler._hold_in_children(None)
        path.unlink(missing_ok=True)
        fcntl.flock(lock, fcntl.LOCK_UN)  # for the copies that children have, too
        os.close(lock)


def refuse_running(maps: Maps) -> None:
    """Before all that is in ``maps`` is deleted.

    Raises:
        ConfigurationError: a process trains one of its splits.
    """
    for index in maps.splits:
        path = maps.split(index).path / LOCK
        lock = _lock(path) if path.exists() else None
        if lock is not None:
            os.close(lock)
        elif path.exists():
            raise ConfigurationError(
                f"overwrite=True: split {index} of {maps.path} is in use: a process that trains it holds {path}"
            )


def _lock(path: Path) -> int | None:
    """A descriptor of ``path``, locked; None: another process has it."""
    import fcntl

    lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.fstat(lock).st_ino == os.stat(path).st_ino:  # else who had it has removed it meanwhile
            return lock
    except (BlockingIOError, FileNotFoundError):
        pass
    os.close(lock)
    return None
