"""ParquetRows: rows in a folder of Parquet files, a file for each segment of them."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from async_trainer.files.atomic import atomic_write, sync_folder

SUFFIX = ".parquet"
SEGMENT = 10_000
"""Rows in a file, at most; fewer, where a file had to be written before."""

logger = logging.getLogger("async_trainer")

Row = tuple[int | None, int | None, int | None, str, float]


class ParquetRows:
    """A row for each value, in files ``rows-<number of the first>.parquet``, each there as a whole or not at all. What
    reads Parquet reads the folder as one table. Any one thread.

    Args:
        path: the folder; made if need be.
        size: rows of it to keep: 0 replaces it, None keeps all.

    Attributes:
        size: the rows so far.
    """

    def __init__(self, path: Path, *, size: int | None) -> None:
        self.path = path
        self._rows: list[Row] = []  # of the next file
        path.mkdir(parents=True, exist_ok=True)
        self._on_disk = sum(_count(segment) for segment in self._segments())
        if size is not None and size > self._on_disk:
            logger.warning("%s is shorter than it was: rows %d to %d are lost", path, self._on_disk, size)
        self.cut(self._on_disk if size is None else min(size, self._on_disk))

    def __repr__(self) -> str:
        return f"<ParquetRows: {self.path}, {self.size} rows>"

    @property
    def size(self) -> int:
        return self._on_disk + len(self._rows)

    def _segments(self) -> list[Path]:
        return sorted(self.path.glob(f"rows-*{SUFFIX}"))

    def cut(self, size: int) -> None:
        """Cut off what comes after the first ``size`` rows."""
        if size >= self._on_disk:
            del self._rows[size - self._on_disk :]
            return
        self._rows = []
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

    def write(self, place: Mapping[str, int], values: Mapping[str, float]) -> None:
        """Append a row for each value; they are on disk with the segment that they belong to.

        Raises:
            OSError: the disk is full, say; the rows wait, and are written with the next.
        """
        at = place.get("epoch"), place.get("batch"), place.get("step")
        self._rows += [(*at, name, value) for name, value in values.items()]
        if len(self._rows) >= SEGMENT:
            self.sync()

    def sync(self) -> None:
        """Have all rows on disk: ends the segment."""
        if not self._rows:
            return
        import pyarrow.parquet

        table = pyarrow.table(list(map(list, zip(*self._rows, strict=True))), schema=_schema())
        with atomic_write(self.path / f"rows-{self._on_disk:012d}{SUFFIX}") as file:
            pyarrow.parquet.write_table(table, file)
        self._on_disk += len(self._rows)
        self._rows = []

    def close(self) -> None:
        """End the last segment."""
        self.sync()


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
