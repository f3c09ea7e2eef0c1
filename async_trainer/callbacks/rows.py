"""RowFile: rows that are appended to a file, whole or not at all, and cut off again."""

from __future__ import annotations

import csv
import io
import json
import logging
import math
import os
import time
from collections.abc import Mapping
from pathlib import Path

from async_trainer.files.atomic import sync_folder

SYNC_SECONDS = 1.0
"""How long rows may be written and not yet synced, while more of them come."""

FORMATS = (".jsonl", ".csv")
_COLUMNS = ("epoch", "batch", "step", "name", "value")
_NAMES = {math.inf: "Infinity", -math.inf: "-Infinity"}

logger = logging.getLogger("async_trainer")


class RowFile:
    """Rows in a ``.jsonl`` or ``.csv`` file. Any one thread.

    Args:
        path: the file; its folders are made.
        size: bytes of it to keep: 0 replaces it, None keeps all its whole lines.

    Attributes:
        size: bytes of the rows so far.

    Raises:
        OSError: it can't be opened.
    """

    def __init__(self, path: Path, *, size: int | None) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0), 0o666)
        try:
            self._unsynced = True
            self._synced_at = time.monotonic()
            self.cut(size)
            sync_folder(path.parent)
        except BaseException:
            os.close(self._file)
            raise

    def __repr__(self) -> str:
        return f"<RowFile: {self.path}, {self.size} bytes>"

    def cut(self, size: int | None) -> None:
        """Cut off what comes after the first ``size`` bytes; None: after the last whole line.

        A file that is shorter, for it was lost, is gone on with as it is; that is logged.
        """
        there = os.fstat(self._file).st_size
        if size is None or size > there:
            if size is not None:
                logger.warning("%s is shorter than it was: rows up to byte %d of %d are lost", self.path, size, there)
            size = self._whole_lines(there)
        os.ftruncate(self._file, size)
        self.size = size
        self._torn = False
        self._unsynced = True
        if self.size == 0 and self.path.suffix == ".csv":
            self._append(",".join(_COLUMNS).encode() + b"\n")

    def _whole_lines(self, size: int) -> int:
        """How many of the first ``size`` bytes are whole lines."""
        while size > 0:
            start = max(0, size - 65_536)
            os.lseek(self._file, start, os.SEEK_SET)
            end = os.read(self._file, size - start).rfind(b"\n")
            if end >= 0:
                return start + end + 1
            size = start
        return 0

    def write(self, place: Mapping[str, int], values: Mapping[str, float]) -> None:
        """Append a row, whole or not at all: the process may end right after.

        Args:
            place: epoch, batch (of a training batch), step.
            values: by name.

        Raises:
            OSError: the disk is full, say; the rows before are still there.
        """
        self.append(as_csv(place, values) if self.path.suffix == ".csv" else as_json(place, values))

    def append(self, row: bytes) -> None:
        """Append what is a row in the file's own format, as :meth:`write` does."""
        self._append(row)
        if time.monotonic() - self._synced_at >= SYNC_SECONDS:
            self.sync()

    def _append(self, row: bytes) -> None:
        if self._torn:
            os.ftruncate(self._file, self.size)
        self._torn = self._unsynced = True
        os.lseek(self._file, self.size, os.SEEK_SET)
        rest = memoryview(row)
        try:
            while rest:
                rest = rest[os.write(self._file, rest) :]
        except BaseException:
            os.ftruncate(self._file, self.size)
            raise
        self.size += len(row)
        self._torn = False

    def sync(self) -> None:
        """Have all rows on disk."""
        if self._unsynced:
            os.fsync(self._file)
            self._unsynced = False
        self._synced_at = time.monotonic()

    def close(self) -> None:
        """Sync, and close the file."""
        try:
            self.sync()
        finally:
            os.close(self._file)


def as_json(place: Mapping[str, int], values: Mapping[str, float]) -> bytes:
    """A line of JSON; what is not finite as a string."""
    named = {name: value if math.isfinite(value) else _NAMES.get(value, "NaN") for name, value in values.items()}
    return json.dumps({**place, **named}, ensure_ascii=False, allow_nan=False).encode() + b"\n"


def as_csv(place: Mapping[str, int], values: Mapping[str, float]) -> bytes:
    """A line of CSV for each value."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    for name, value in values.items():
        writer.writerow([place.get("epoch", ""), place.get("batch", ""), place.get("step", ""), name, repr(value)])
    return text.getvalue().encode()
