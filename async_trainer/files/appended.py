"""AppendedFile: a file that a callback appends to, each of its events exactly once: over retries, kills and resumes."""

from __future__ import annotations

import errno
import logging
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from async_trainer.files.atomic import name_file, sync_folder

logger = logging.getLogger("async_trainer")

_BLOCK = 65_536
PATIENCE = 30.0  # s: for another process that has the file: what is left of a run that was killed, say
LOOK = 0.05  # s


class Attempt(Protocol):
    """What is asked of a hook's ``event``."""

    @property
    def seq(self) -> int: ...
    @property
    def attempt(self) -> int: ...


class AppendedFile:
    """A file that a callback appends to, and whose state says how much of it counts.

    ::

        class LossLog(Callback):
            def __init__(self, path):
                self.file = AppendedFile(path)

            def on_train_start(self):
                self.file.replace()

            def on_resume(self):
                self.file.resume()

            def on_batch_end(self, *, loss, event):
                self.file.begin(event)  # what a failed attempt has written is cut off
                self.file.write(f"{float(loss)}\\n")

            def state_dict(self):
                return self.file.state_dict()

            def load_state_dict(self, state_dict):
                self.file.load_state_dict(state_dict)

    One process at a time writes to it: what is left of a killed run is waited for, and a second run is refused. (By a
    lock that goes with the process, also where one of its forks lives on; where the file is opened and closed once more
    in the process, it is given up.)

    Taking the state syncs what it counts; loading it cuts off the rest, which comes again. Where nobody tells of a
    start, as in a process that takes the place of one that died, the first write goes on from the state that was
    loaded; where a start couldn't open the file, each write tries again. Any one thread at a time. Pickled, it is a
    closed one.

    Args:
        path: the file; its folders are made. None: given to :meth:`replace` or :meth:`resume`.

    Attributes:
        path: the file, absolute.
        size: bytes of it that count.
    """

    def __init__(self, path: str | os.PathLike[str] | None = None) -> None:
        self.path = None if path is None else Path(path).absolute()
        self.size = 0
        self._is_told = path is None  # its path, at a start
        self._is_loaded = False
        self._is_begun = False  # else an earlier run's file would be overwritten by a hook that was told of no start
        self._keeps_all = False  # when it is opened: what there is counts
        self._descriptor: int | None = None
        self._torn = False
        self._unsynced = False
        self._begun = (-1, 0)  # the event, and the size before it

    def __repr__(self) -> str:
        return f"<{type(self).__name__}: {self.path}, {self.size} bytes>"

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_descriptor": None}

    # ------------------------------------------------------------------------------------------------- a run's start

    def replace(self, path: str | os.PathLike[str] | None = None) -> None:
        """Begin anew, with an empty file: for ``on_train_start``.

        Raises:
            OSError: it can't be opened.
        """
        self._start(path, 0)

    def resume(self, path: str | os.PathLike[str] | None = None) -> None:
        """Go on with the file: for ``on_resume``; :meth:`load_state_dict` comes before or after. Without a state all
        whole lines of it are kept.

        Raises:
            OSError: it can't be opened.
        """
        self._start(path, self.size if self._is_loaded else None)

    def _start(self, path: str | os.PathLike[str] | None, size: int | None) -> None:
        self.close()
        if path is not None:
            self.path = Path(path).absolute()
        if self.path is None:
            raise RuntimeError(f"{type(self).__name__}: it has no path: give one here, or when it is made")
        self.size, self._keeps_all = size or 0, size is None
        self._is_loaded, self._is_begun = False, True
        try:
            self._open()
        except BlockingIOError:  # another run's file: it isn't to be replaced later, when that run has ended
            self._is_begun = False
            raise

    def _open(self) -> int:
        assert self.path is not None
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0), 0o666)
        try:
            _lock(self._descriptor, self.path)
            self._cut(self._descriptor, None if self._keeps_all else self.size)
            sync_folder(self.path.parent)
        except BaseException:
            os.close(self._descriptor)
            self._descriptor = None
            raise
        self._keeps_all = False
        return self._descriptor

    # ------------------------------------------------------------------------------------------------------ in a hook

    def begin(self, event: Attempt | None) -> None:
        """First thing in a hook: where ``event`` is tried again, cut off what the attempt before has written.

        Args:
            event: the hook's argument of that name; None: it is no retry.
        """
        if self._keeps_all:
            self._opened()  # else its size isn't known
        if event is not None and event.attempt > 1 and self._begun[0] == event.seq:
            self.cut(self._begun[1])
        self._begun = (event.seq if event is not None else -1, self.size)

    def write(self, data: str | bytes) -> None:
        """Append ``data``, whole or not at all. It survives the end of the process at once, kill -9 included, and a
        power cut from :meth:`sync` on, or when the state is taken.

        Raises:
            OSError: the disk is full, say; what was there before still is.
        """
        self._append(self._opened(), data.encode() if isinstance(data, str) else data)

    def _opened(self) -> int:
        if self._descriptor is not None:
            return self._descriptor
        if not self._is_begun or self.path is None:
            raise RuntimeError(f"{self!r}: no file is open: on_train_start or on_resume comes first, or has failed")
        return self._open()

    def _append(self, descriptor: int, data: bytes) -> None:
        there = self._look(descriptor)
        if self._torn:
            os.ftruncate(descriptor, self.size)
        elif there.st_size != self.size:  # two callbacks of this process, say
            raise OSError(
                errno.EBUSY, f"somebody else writes to it (it has {there.st_size} bytes, and {self.size} are ours); "
                "each needs a file of its own: give it another path", str(self.path),
            )  # fmt: skip
        self._torn = self._unsynced = True
        os.lseek(descriptor, self.size, os.SEEK_SET)
        rest = memoryview(data)
        try:
            while rest:
                rest = rest[os.write(descriptor, rest) :]
        except BaseException as error:
            os.ftruncate(descriptor, self.size)
            name_file(error, self.path)
            raise
        self.size += len(data)
        self._torn = False

    def _look(self, descriptor: int) -> os.stat_result:
        there = os.fstat(descriptor)
        if there.st_nlink == 0:  # as some file systems say of any
            try:
                is_there = os.path.samestat(there, os.stat(str(self.path)))
            except OSError:
                is_there = False
            if not is_there:
                raise FileNotFoundError(errno.ENOENT, "it was deleted while it was written to", str(self.path))
        return there

    def sync(self) -> None:
        """Have all of it on disk.

        Raises:
            OSError: that can't be done.
        """
        if self._unsynced and self._descriptor is not None:
            try:
                os.fsync(self._descriptor)
            except OSError as error:
                name_file(error, self.path)
                raise
            self._unsynced = False

    def close(self) -> None:
        """Sync, and close it: for ``on_train_end`` and ``on_exception``. What is written then is an error.

        Raises:
            OSError: that can't be done; or somebody has deleted it meanwhile.
        """
        self._is_begun = False
        if self._descriptor is None:
            return
        try:
            self.sync()
            self._look(self._descriptor)
        finally:
            os.close(self._descriptor)
            self._descriptor = None

    # ------------------------------------------------------------------------------------------------------- its state

    def state_dict(self) -> dict[str, Any]:
        """``size``: bytes of the file up to here, all of them on disk; and ``path``, if it was told at a start, for a
        process that takes the place of one that died.

        Raises:
            OSError: they can't be synced.
        """
        if self._keeps_all:
            self._opened()
        self.sync()
        return {"size": self.size, "path": str(self.path)} if self._is_told and self.path else {"size": self.size}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Cut the file back to the state: at once, or when it is opened. A path that is known stays."""
        self._begun = (-1, 0)
        if self._descriptor is not None:
            self.cut(state_dict["size"])
            return
        self.size, self._is_loaded, self._is_begun = state_dict["size"], True, True
        if self.path is None and "path" in state_dict:
            self.path = Path(state_dict["path"])

    def cut(self, size: int | None) -> None:
        """Cut off what comes after the first ``size`` bytes; None: after the last whole line.

        A file that is shorter, for it was lost, is gone on with as it is; that is logged.
        """
        self._cut(self._opened(), size)

    def _cut(self, descriptor: int, size: int | None) -> None:
        there = os.fstat(descriptor).st_size
        if size is None or size > there:
            if size is not None:
                logger.warning("%s is shorter than it was: rows up to byte %d of %d are lost", self.path, size, there)
            size = _whole_lines(descriptor, there)
        os.ftruncate(descriptor, size)
        self.size = size
        self._torn = False
        self._unsynced = True


def _lock(descriptor: int, path: Path) -> None:
    """Have no other process write to it, from now until it is closed. Where there are no locks, so be it."""
    try:
        import fcntl
    except ImportError:  # Windows
        return
    until = time.monotonic() + PATIENCE
    while True:
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in (errno.EACCES, errno.EAGAIN):
                return
            if time.monotonic() > until:
                raise BlockingIOError(
                    errno.EAGAIN, "another process writes to it; each needs a file of its own: give it another path",
                    str(path),
                ) from None  # fmt: skip
            time.sleep(LOOK)
        else:
            return


def _whole_lines(descriptor: int, size: int) -> int:
    """How many of the first ``size`` bytes are whole lines."""
    while size > 0:
        start = max(0, size - _BLOCK)
        os.lseek(descriptor, start, os.SEEK_SET)
        end = os.read(descriptor, size - start).rfind(b"\n")
        if end >= 0:
            return start + end + 1
        size = start
    return 0
