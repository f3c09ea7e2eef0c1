"""Files as they were at an event, for an upload that comes later: hard links, and a look at what they held."""

from __future__ import annotations

import hashlib
import itertools
import os
import shutil
import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import BinaryIO, NamedTuple

from async_trainer.callbacks.object_store import UploadError
from async_trainer.files.atomic import name_file
from async_trainer.watching import status

_BLOCK = 1 << 20
_END = 1 << 12
_LOCK = "run.lock"
_PAUSES = (0.02, 0.05, 0.1, 0.2, 0.4)  # s

_numbers = itertools.count()


class Look(NamedTuple):
    """What tells a file's versions apart."""

    size: int
    mtime_ns: int
    inode: int


@dataclass(frozen=True, slots=True, eq=False)
class Staged:
    """A file as it was at an event."""

    name: str  # of its object
    path: Path  # of the hard link; where there can be none, of the file itself
    look: Look
    ends: bytes  # its first and last bytes: what was only appended to since still has them
    linked: bool
    event: int  # the number of that event: clocks may go back

    @property
    def age(self) -> tuple[int, int, str]:
        """Greater for what is newer."""
        return self.event, self.look.mtime_ns, self.name


class Staging:
    """The newest version of each file that waits to be uploaded. Any thread; its lock is held for decisions only."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting: dict[str, Staged] = {}
        self._looks: dict[str, Look] = {}  # of what was staged last
        self._begun: set[Path] = set()
        self._events = 0  # so far

    def __repr__(self) -> str:
        return f"<Staging: {len(self._waiting)} waiting>"

    def __reduce__(self) -> tuple[type[Staging], tuple[()]]:
        return Staging, ()

    def stage(self, folder: Path, prefix: str, patterns: Iterable[str], home: str, without: Path | None) -> bool:
        """Take the files of ``folder`` that are new or changed, as they are now. A version that still waits gives way.

        Args:
            folder: where they are.
            prefix: what their objects' names begin with, before their path in ``folder``.
            patterns: which, as for ``Path.glob``; hidden files and folders are left out, and what is about the run as
                it is now: its status file, and its lock.
            home: the name of the hidden folder in ``folder`` for the links.
            without: a folder to leave out.

        Returns:
            Whether anything waits.
        """
        with self._lock:
            begin = folder not in self._begun
            self._begun.add(folder)
            self._events += 1
        if begin:  # what an earlier process, killed, has left
            shutil.rmtree(folder / home, ignore_errors=True)
        for path in find_files(folder, patterns, without):
            name = prefix + path.relative_to(folder).as_posix()
            staged = self._take(name, path, folder / home)
            if staged is not None:
                with self._lock:
                    old = self._waiting.get(name)
                    self._waiting[name] = staged
                    self._looks[name] = staged.look
                if old is not None:
                    discard(old)
        return bool(self._waiting)

    def _take(self, name: str, path: Path, home: Path) -> Staged | None:
        try:
            if _look(os.stat(path)) == self._looks.get(name):
                return None
            link, linked = _link(path.resolve() if path.is_symlink() else path, home)
            with link.open("rb", buffering=0) as file:
                look = _look(os.fstat(file.fileno()))
                return Staged(name, link, look, _ends(file, look.size), linked, self._events)
        except FileNotFoundError:  # gone since it was listed
            return None

    def waiting(self) -> list[Staged]:
        """What waits, by age."""
        with self._lock:
            found = list(self._waiting.values())
        return sorted(found, key=lambda one: one.age)

    def is_newest(self, staged: Staged) -> bool:
        """Whether no newer version of it waits."""
        return self._waiting.get(staged.name) is staged

    def done(self, staged: Staged) -> None:
        """It needs no upload any more."""
        with self._lock:
            if self._waiting.get(staged.name) is staged:
                del self._waiting[staged.name]
        discard(staged)


def discard(staged: Staged) -> None:
    """Let go of a version, and of the folder of links with the last."""
    if not staged.linked:
        return
    staged.path.unlink(missing_ok=True)
    try:
        staged.path.parent.rmdir()
    except OSError:  # others are in it
        pass


def copy_whole(staged: Staged, target: Path) -> str:
    """Copy it to ``target``, which nobody else changes; returns the SHA-256 of what is there.

    Of a file that was only appended to since the event, that is what it held at the event. One that was rewritten in
    place since is copied as it is now, once it stays as it is.

    Raises:
        FileNotFoundError: a newer version has taken its place.
        UploadError: it doesn't stay as it is.
    """
    look, ends = staged.look, staged.ends
    with staged.path.open("rb", buffering=0) as file:  # a buffer would go on to show what was there
        for pause in (0.0, *_PAUSES):
            if pause:
                look = _look(os.fstat(file.fileno()))
                ends = _ends(file, look.size)
                time.sleep(pause)
            digest, copied, copied_ends = _copy(file, target, look.size)
            after = _look(os.fstat(file.fileno()))
            appended = not pause and after.size > look.size
            if copied == look.size and copied_ends == ends and (after == look or appended):
                return digest
    raise UploadError(
        f"{staged.name} is rewritten in place again and again: it was not uploaded. Write it to another name and move "
        "that into place"
    )


def _copy(file: FileIO, target: Path, size: int) -> tuple[str, int, bytes]:
    digest = hashlib.sha256()
    file.seek(0)
    left = size
    try:
        with target.open("w+b") as copy:
            while left and (block := file.read(min(left, _BLOCK))):
                copy.write(block)
                digest.update(block)
                left -= len(block)
            copy.flush()
            return digest.hexdigest(), size - left, _ends(copy, size - left)
    except OSError as error:
        name_file(error, target)
        raise


def _ends(file: BinaryIO | FileIO, size: int) -> bytes:
    file.seek(0)
    first = file.read(min(_END, size))
    file.seek(max(0, size - _END))
    return first + file.read(min(_END, size))


def _link(path: Path, home: Path) -> tuple[Path, bool]:
    link = home / f"{os.getpid()}-{next(_numbers)}"
    for _ in range(3):  # the folder goes with its last link, maybe just now
        try:
            home.mkdir(exist_ok=True)
            os.link(path, link)
            return link, True
        except FileNotFoundError:
            if not path.exists():
                raise
        except OSError:  # a file system without hard links
            break
    return path, False


def _glob(folder: Path, pattern: str) -> list[Path]:
    """Path.glob stops with an error where a folder goes away under it, as that of the links does."""
    for _ in range(50):
        try:
            return list(folder.glob(pattern))
        except FileNotFoundError:
            continue
    return list(folder.glob(pattern))


def find_files(folder: Path, patterns: Iterable[str], without: Path | None) -> Iterator[Path]:
    found = {path for pattern in patterns for path in _glob(folder, pattern)}
    for path in sorted(found):
        inside = path.relative_to(folder).parts
        if any(part.startswith(".") for part in inside) or (without is not None and without in path.parents):
            continue
        if path.is_file() and not _is_of_now(path):
            yield path


def _is_of_now(path: Path) -> bool:
    """Whether it is about the run while it goes on: a copy elsewhere would say for ever that it does."""
    try:
        return path.name == _LOCK or status.is_status(path)
    except OSError:  # gone since it was listed; what can't be read is told when it is to be uploaded
        return False


def _look(stat: os.stat_result) -> Look:
    return Look(stat.st_size, stat.st_mtime_ns, stat.st_ino)
