"""Writing a file so that it is there as a whole, on disk, or not at all."""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

_numbers = itertools.count()


@contextmanager
def atomic_write(path: Path) -> Iterator[BinaryIO]:
    """Open ``path`` for writing; what is written appears there, synced, when the ``with`` block is left without error.

    Until then it has another name beside it, ``.<name>.<process>-<number>.partial`` (of a long name the beginning).
    Missing folders are made. Any thread.

    Raises:
        OSError: the disk is full, say; what was at ``path`` before is still there.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name[:40]}.{os.getpid()}-{next(_numbers)}.partial")  # a name has 255 bytes
    try:
        with partial.open("wb") as file:
            with disk_errors():
                yield file
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except BaseException as error:
        partial.unlink(missing_ok=True)
        name_file(error, path)
        raise
    sync_folder(path.parent)


@contextmanager
def output_file(path: Path) -> Iterator[BinaryIO]:
    """As :func:`atomic_write`, for a path that somebody has typed: a link stays one, and what is no file (a pipe,
    ``/dev/stdout``) is written to."""
    if path.exists() and not path.is_file():
        with path.open("wb") as file:
            yield file
        return
    with atomic_write(path.resolve()) as file:
        yield file


def name_file(error: BaseException, path: Path | None) -> None:
    """Have an ``OSError`` say which file it is about: that of a full disk doesn't."""
    if isinstance(error, OSError) and error.errno is not None and error.filename is None and path is not None:
        error.filename = str(path)


@contextmanager
def disk_errors() -> Iterator[None]:
    """Within it what ``torch.save`` makes of a full disk ("unexpected pos 1344 vs 1238") gives way to what that said.

    Raises:
        OSError: the disk is full, say.
    """
    try:
        yield
    except RuntimeError as error:
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, OSError):
            cause = cause.__cause__ or cause.__context__
        if cause is None:
            raise
        raise OSError(*cause.args) from error


def sync_folder(folder: Path) -> None:
    """Have the names in ``folder`` survive a power cut, where the system can do that."""
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_json(path: Path, content: Mapping[str, Any], *, new: bool = False) -> None:
    """Write ``content`` to ``path``, for people to read too.

    Raises:
        TypeError: something in it is no JSON.
        FileExistsError: it is to be ``new``, and there is a file already. Of several that write it, one succeeds.
    """
    text = json.dumps(content, indent=2, ensure_ascii=False).encode(errors="backslashreplace") + b"\n"  # of surrogates
    if not new:
        with atomic_write(path) as file:
            file.write(text)
        return
    draft = path.with_name(f".{path.name}.{os.getpid()}-{next(_numbers)}.new")
    with atomic_write(draft) as file:
        file.write(text)
    try:
        os.link(draft, path)
        sync_folder(path.parent)
    finally:
        draft.unlink()
