"""ParquetRows: rows in a folder of Parquet files, a file for each segment of them."""

from __future__ import annotations

import errno
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from async_trainer.callbacks.rows import as_text
from async_trainer.files.appended import Attempt
from async_trainer.files.atomic import atomic_write, sync_folder

SUFFIX = ".parquet"
SEGMENT = 10_000
"""Rows in a file, at most; fewer, where a file had to be written before."""

logger = logging.getLogger("async_trainer")

Row = tuple[int | None, int | None, int | None, str, float]


class ParquetRows:
    """A row for each value, in files ``rows-<number of the first>.parquet``, each there as a whole or not at all. What
    reads Parquet reads the folder as one table. What counts of it is told as by an
    :class:`~async_trainer.files.AppendedFile`, in rows. Any one thread.

    Args:
        path: the folder; made if need be.

    Attributes:
        path: the folder, absolute.
    """

    def __init__(self, path: Path) -> None:
        self.path = path.absolute()
        self._rows: list[Row] = []  # of the next file
        self._on_disk = 0
        self._loaded: int | None = None  # rows that count, as loaded while it was closed
        self._is_open = False
        self._last: Path | None = None  # the segment that was written last
        self._begun = (-1, 0)  # the event, and the rows before it

    def __repr__(self) -> str:
        return f"<ParquetRows: {self.path}, {self.size} rows>"

    def replace(self, _: Path | None = None) -> None:
        """Begin anew, with an empty folder; what can't be emptied now is when the first row comes."""
        self.close()
        self._loaded = 0
        self._open(0)

    def resume(self, _: Path | None = None) -> None:
        """Go on with the folder, from the state that was loaded; without one all rows of it are kept."""
        self._open(self._loaded)

    def _open(self, size: int | None) -> None:
        self.close()
        self.path.mkdir(parents=True, exist_ok=True)
        self._on_disk = sum(_count(segment) for segment in self._segments())
        if size is not None and size > self._on_disk:
            logger.warning("%s is shorter than it was: rows %d to %d are lost", self.path, self._on_disk, size)
        self._last = None
        self.cut(self._on_disk if size is None else min(size, self._on_disk))
        self._is_open, self._loaded = True, None

    def begin(self, event: Attempt | None) -> None:
        """First thing in a hook: where ``event`` is tried again, cut off what the attempt before has written."""
        self._check_open()
        if event is not None and event.attempt > 1 and self._begun[0] == event.seq:
            self.cut(self._begun[1])
        self._begun = (event.seq if event is not None else -1, self.size)

    def _check_open(self) -> None:
        if self._is_open:
            return
        if self._loaded is None:
            raise RuntimeError(f"{self!r}: it is not open: on_train_start or on_resume comes first, or has failed")
        self._open(self._loaded)  # a start has failed; or in a process that takes the place of one that died

    @property
    def size(self) -> int:
        """The rows that count."""
        return self._on_disk + len(self._rows) if self._loaded is None else self._loaded

    def _segments(self) -> list[Path]:
        return sorted(self.path.glob(f"rows-*{SUFFIX}"))

    def cut(self, size: int) -> None:
        """Cut off what comes after the first ``size`` rows."""
        if size >= self._on_disk:
            del self._rows[size - self._on_disk :]
            return
        self._rows, self._last = [], None
        for segment in reversed(self._segments()):
            if self._on_disk <= size:
                break
            first = self._on_disk - _count(segment)
            if first < size:
                self._rows = _read(segment)[: size - first]
            segment.unlink()
            self._on_disk = first
        sync_folder(self.path)
        self.sync()

    def write_row(self, place: Mapping[str, int], values: Mapping[str, float]) -> None:
        """Append a row for each value; they are on disk with the segment that they belong to.

        Raises:
            OSError: the disk is full, say; the rows wait, and are written with the next.
        """
        self._check_open()
        at = place.get("epoch"), place.get("batch"), place.get("step")
        self._rows += [(*at, as_text(name), value) for name, value in values.items()]
        if len(self._rows) >= SEGMENT:
            self.sync()

    def sync(self) -> None:
        """Have all rows on disk: ends the segment."""
        if not self._rows:
            return
        import pyarrow.parquet

        self._check_ours()
        segment = self.path / f"rows-{self._on_disk:012d}{SUFFIX}"
        if segment.exists():
            what = "somebody else writes there; each needs a folder of its own: give it another path"
            raise OSError(errno.EBUSY, what, str(self.path))
        table = pyarrow.table(list(map(list, zip(*self._rows, strict=True))), schema=_schema())
        with atomic_write(segment) as file:
            pyarrow.parquet.write_table(table, file)
        self._last = segment
        self._on_disk += len(self._rows)
        self._rows = []

    def close(self) -> None:
        """End the last segment. What is written then is an error."""
        if self._is_open:
            self.sync()
            self._is_open = False
            self._check_ours()

    def _check_ours(self) -> None:
        if self._last is not None and not self._last.exists():
            what = "it was deleted, or replaced, while it was written to"
            raise FileNotFoundError(errno.ENOENT, what, str(self._last))

    def state_dict(self) -> dict[str, int]:
        """``size``: rows up to here, all of them on disk.

        Raises:
            OSError: they can't be written.
        """
        self.sync()
        return {"size": self.size}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Cut the folder back to the state: at once, or when it is opened."""
        self._begun = (-1, 0)
        if self._is_open:
            self.cut(state_dict["size"])
        else:
            self._loaded = state_dict["size"]


def _schema() -> Any:
    import pyarrow

    kinds = {"epoch": pyarrow.int64(), "batch": pyarrow.int64(), "step": pyarrow.int64()}
    return pyarrow.schema({**kinds, "name": pyarrow.string(), "value": pyarrow.float64()})


def _count(segment: Path) -> int:
    import pyarrow.parquet

    return int(pyarrow.parquet.read_metadata(segment).num_rows)


def _read(segment: Path) -> list[Row]:
    import pyarrow.parquet

    return [tuple(row.values()) for row in pyarrow.parquet.read_table(segment, partitioning=None).to_pylist()]
