"""What an offline run of Weights & Biases has written: the records of its ``.wandb`` files."""

from __future__ import annotations

import contextlib
import json
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_BLOCK = 32_768
_HEADER = struct.Struct("<IHB")  # checksum, length, kind
_FULL, _LAST = 1, 4
_MAGIC = b":W&B"
_GIVEN_UP = "filestream: fatal error: "
_UNWRITTEN = "failed to save record: "


def read_records(path: Path, start: int = 0) -> Iterator[tuple[Any, int]]:
    """The records (of ``wandb.proto``) of a file, up to the first that is not whole; each with the byte where it ends.

    Args:
        path: the file.
        start: the byte where a record has ended: those after it.

    The format is that of LevelDB's log, after a header of 7 bytes: blocks of 32 KiB with pieces of records in them.
    (https://github.com/google/leveldb/blob/main/doc/log_format.md)
    """
    from wandb.proto import wandb_internal_pb2

    with path.open("rb") as file:
        if not file.read(7).startswith(_MAGIC):
            return
        place = file.seek(max(start, 7))
        content, before, pieces = file.read(), place, b""
    end = before + len(content)
    while place + _HEADER.size <= end:
        left = _BLOCK - place % _BLOCK
        if left < _HEADER.size:  # padding
            place += left
            continue
        _, length, kind = _HEADER.unpack_from(content, place - before)
        place += _HEADER.size
        if kind == 0 or place + length > end:
            return
        pieces += content[place - before : place - before + length]
        place += length
        if kind in (_FULL, _LAST):
            record = wandb_internal_pb2.Record()  # type: ignore[attr-defined]  # made at import
            record.ParseFromString(pieces)
            pieces = b""
            yield record, place


def read_rows(folder: Path, run_id: str) -> Iterator[dict[str, Any]]:
    """The rows of a run's history, in all the files in ``folder`` that wandb has written of it, in their order."""
    for path in sorted(folder.glob(f"wandb/*run-*-{run_id}/run-{run_id}.wandb")):
        for record, _ in read_records(path):
            if record.HasField("history"):
                items = record.history.item
                yield {".".join(one.nested_key) or one.key: json.loads(one.value_json) for one in items}


def given_up(log: Path) -> str | None:
    """Why wandb has stopped sending a run (its token has expired, say), as ``debug-internal.log`` has it: it tells the
    terminal, and no caller. None: it has not, as far as is known."""
    return _reason(log, _GIVEN_UP)


def unwritten(log: Path) -> str | None:
    """Why wandb doesn't write to a run's file any more (its disk was full, say: then it never does again, and tells
    nobody), as ``debug-internal.log`` has it. None: it does, as far as is known."""
    return _reason(log, _UNWRITTEN)


def _reason(log: Path, needle: str) -> str | None:
    if log.is_file():
        for line in log.read_text(encoding="utf-8", errors="replace").splitlines():
            if needle in line:
                try:
                    reason: str = json.loads(line)["msg"]
                except ValueError:  # torn: the log is on that disk
                    reason = line
                return reason.partition(needle)[2]
    return None


class RunFile:
    """A run's ``.wandb`` file, which wandb's process writes: each time it is read on from where it was read before.

    Attributes:
        rows: how many it has.
        ended: whether it has its end.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows = 0
        self.ended = False
        self._place = 0

    def read(self) -> int:
        """How many rows it has by now."""
        with contextlib.suppress(FileNotFoundError):
            for record, end in read_records(self.path, self._place):
                self._place = end
                self.rows += record.HasField("history")
                self.ended = self.ended or record.HasField("exit")
        return self.rows

    def wait(self, log: Path, seconds: float) -> None:
        """Until it has its end: ``wandb.finish`` returns a little before it is written.

        Args:
            log: its ``debug-internal.log``: what is no longer written is not waited for.
            seconds: how long it is waited for.
        """
        deadline = time.monotonic() + seconds
        while self.read() >= 0 and not self.ended and time.monotonic() < deadline and unwritten(log) is None:
            time.sleep(0.02)


def wait_for_another_second(folder: Path, run_id: str) -> None:
    """Until wandb will not take the folder of the same run once more: its name has the second in it."""
    while [*folder.glob(f"wandb/*run-{time.strftime('%Y%m%d_%H%M%S')}-{run_id}")]:
        time.sleep(0.05)
