"""RowFile: rows of epochs, batches and steps, as JSON lines or CSV."""

from __future__ import annotations

import csv
import io
import json
import math
import time
from collections.abc import Mapping
from pathlib import Path

from async_trainer.files.appended import AppendedFile

SYNC_SECONDS = 1.0
"""How long rows may be written and not yet synced, while more of them come."""

FORMATS = (".jsonl", ".csv")
ESCAPE = "backslashreplace"
"""What is no text (half of a pair of surrogates, as in the name of an odd file) is written as ``\\udc80``."""
_COLUMNS = ("epoch", "batch", "step", "name", "value")
_NAMES = {math.inf: "Infinity", -math.inf: "-Infinity"}


class RowFile(AppendedFile):
    """Rows in a ``.jsonl`` or ``.csv`` file. Any one thread.

    Args:
        path: the file.
    """

    def __init__(self, path: Path | None = None) -> None:
        super().__init__(path)
        self._synced_at = time.monotonic()

    def write_row(self, place: Mapping[str, int], values: Mapping[str, float]) -> None:
        """Append a row, whole or not at all: the process may end right after.

        Args:
            place: epoch, batch (of a training batch), step.
            values: by name.

        Raises:
            OSError: the disk is full, say; the rows before are still there.
        """
        self._opened()
        assert self.path is not None
        self.write(as_csv(place, values) if self.path.suffix == ".csv" else as_json(place, values))
        if time.monotonic() - self._synced_at >= SYNC_SECONDS:
            self.sync()

    def sync(self) -> None:
        """Have all rows on disk."""
        super().sync()
        self._synced_at = time.monotonic()

    def _cut(self, descriptor: int, size: int | None) -> None:
        super()._cut(descriptor, size)
        if self.size == 0 and self.path is not None and self.path.suffix == ".csv":
            self._append(descriptor, ",".join(_COLUMNS).encode() + b"\n")


def as_text(name: str) -> str:
    """``name``, with what is no text escaped."""
    return name.encode(errors=ESCAPE).decode()


def as_json(place: Mapping[str, int], values: Mapping[str, float]) -> bytes:
    """A line of JSON; what is not finite as a string."""
    named = {name: value if math.isfinite(value) else _NAMES.get(value, "NaN") for name, value in values.items()}
    return json.dumps({**place, **named}, ensure_ascii=False, allow_nan=False).encode(errors=ESCAPE) + b"\n"


def as_csv(place: Mapping[str, int], values: Mapping[str, float]) -> bytes:
    """A line of CSV for each value."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    for name, value in values.items():
        writer.writerow([place.get("epoch", ""), place.get("batch", ""), place.get("step", ""), name, repr(value)])
    return text.getvalue().encode(errors=ESCAPE)
