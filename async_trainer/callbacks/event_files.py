"""EventFiles: what TensorBoard reads, appended record by record, and cut back to where it was."""

from __future__ import annotations

import io
import logging
import os
import struct
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from async_trainer.callbacks.rows import SYNC_SECONDS, as_text
from async_trainer.errors import ConfigurationError
from async_trainer.files.appended import AppendedFile

SUFFIX = ".async_trainer"
"""What the names of our files end in: no other writer's are touched."""
_PREAMBLE = 2  # records that each file begins with
_HEADER, _FOOTER = 12, 4  # bytes of a record around its data: length and checksum, checksum

logger = logging.getLogger("async_trainer")


class EventFiles:
    """The event files of one training in a folder: a new one each time that the training is begun or gone on with.

    A record is there as a whole or not at all, at once, and is synced within a second or so while more of them come:
    torch's ``SummaryWriter`` leaves it to a thread of its own, whose failure is seen by a later call, or never. Any
    one thread.

    Args:
        folder: where to; made if need be.
        state: what an earlier instance's ``state()`` was: its files are cut back to it, later ones removed, and a
            TensorBoard that has read on forgets what came after. Empty: all our files are removed. None: each keeps
            its whole records.

    Raises:
        ConfigurationError: tensorboard is not installed.
        OSError: a file can't be opened.
    """

    def __init__(self, folder: Path, state: Mapping[str, Any] | None) -> None:
        check_installed("EventFiles")
        self.folder = folder
        self._records = 0  # of all files, but for those that a file begins with
        self._last = -1
        folder.mkdir(parents=True, exist_ok=True)
        self._cut_back(state)
        newest = max((_seconds(path) for path in our_files(folder)), default=0)
        # Readers go through a folder's files by name: this one comes after those before, whatever the clock says.
        name = f"events.out.tfevents.{max(int(time.time()), newest + 1):010d}{SUFFIX}"
        self._file = AppendedFile(folder / name)
        self._file.replace()
        self._synced_at = time.monotonic()
        from tensorboard.compat.proto.event_pb2 import SessionLog

        self._append({"file_version": "brain.Event:2"})
        self._append({"session_log": SessionLog(status=SessionLog.START), "step": self._last + 1})
        self.mark()

    def __repr__(self) -> str:
        return f"<EventFiles: {self._file.path}, {self._file.size} bytes>"

    @property
    def path(self) -> Path:
        """The file that is written."""
        assert self._file.path is not None
        return self._file.path

    def _cut_back(self, state: Mapping[str, Any] | None) -> None:
        wanted = sys.maxsize if state is None else int(state.get("records", 0))
        self._last = -1 if state is None else int(state.get("step", -1))
        for path in our_files(self.folder):
            count, size = _whole_records(path, _PREAMBLE + wanted - self._records) if wanted > self._records else (0, 0)
            if count <= _PREAMBLE:
                path.unlink()
                continue
            self._records += count - _PREAMBLE
            os.truncate(path, size)
        if state is not None and self._records < wanted:
            logger.warning("%s: %d of %d points are lost", self.folder, wanted - self._records, wanted)

    def write(self, summary: Any, step: int) -> None:
        """Append a ``Summary``.

        Args:
            summary: of tensorboard, such as ``torch.utils.tensorboard.summary.scalar`` returns.
            step: its place on the x axis.

        Raises:
            OSError: the disk is full, say; what was written before is still there.
        """
        self._append({"summary": summary, "step": step})
        self._records += 1
        self._last = max(self._last, step)

    def write_scalars(self, values: Mapping[str, float], step: int) -> None:
        """Append numbers, by tag, in one record."""
        from tensorboard.compat.proto.summary_pb2 import Summary

        named = [Summary.Value(tag=as_text(tag), simple_value=value) for tag, value in values.items()]
        self.write(Summary(value=named), step)

    def _append(self, fields: Mapping[str, Any]) -> None:
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.summary.writer.record_writer import RecordWriter

        record = io.BytesIO()
        RecordWriter(record).write(Event(wall_time=time.time(), **fields).SerializeToString())
        self._file.write(record.getvalue())
        if time.monotonic() - self._synced_at >= SYNC_SECONDS:
            self.sync()

    def mark(self) -> None:
        """An event begins: :meth:`rewind` comes back to here."""
        self._before = self._file.size, self._records, self._last

    def rewind(self) -> None:
        """Cut off what came after the last :meth:`mark`."""
        size, self._records, self._last = self._before
        self._file.cut(size)

    def sync(self) -> None:
        """Have all on disk."""
        self._file.sync()
        self._synced_at = time.monotonic()

    def state(self) -> dict[str, Any]:
        """``records``: how many there are, in all files, and on disk; ``step``: the last that was written.

        Raises:
            OSError: they can't be synced.
        """
        self._file.sync()
        return self.counted()

    def counted(self) -> dict[str, Any]:
        """The same, whether they are on disk or not."""
        return {"records": self._records, "step": self._last}

    def close(self) -> None:
        """Sync, and close the file."""
        self._file.close()


def check_installed(where: str) -> None:
    """Refuse to work without tensorboard.

    Raises:
        ConfigurationError: it is not installed.
    """
    from importlib.util import find_spec

    if find_spec("tensorboard") is None:
        raise ConfigurationError(f"{where} needs tensorboard: pip install 'async_trainer[tensorboard]'")


def our_files(folder: Path) -> list[Path]:
    """The event files in ``folder`` that this library has written, in the order that readers take."""
    return sorted(folder.glob(f"events.out.tfevents.*{SUFFIX}"))


def _seconds(path: Path) -> int:
    digits = path.name.split(".")[3]
    return int(digits) if digits.isdigit() else 0


def _whole_records(path: Path, limit: int) -> tuple[int, int]:
    """How many whole records a file begins with, ``limit`` at most, and their bytes."""
    size, count, whole = path.stat().st_size, 0, 0
    with path.open("rb") as file:
        while count < limit and len(header := file.read(_HEADER)) == _HEADER:
            end = whole + _HEADER + struct.unpack("<Q", header[:8])[0] + _FOOTER
            if end > size:
                break
            file.seek(end)
            count, whole = count + 1, end
    return count, whole
