"""What an offline run of Weights & Biases has written: the records of its ``.wandb`` files."""

from __future__ import annotations

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


def read_records(path: Path) -> Iterator[Any]:
    """The records (of ``wandb.proto``) of a file, up to the first that is not whole.

    The format is that of LevelDB's log, after a header of 7 bytes: blocks of 32 KiB with pieces of records in them.
    (https://github.com/google/leveldb/blob/main/doc/log_format.md)
    """
    from wandb.proto import wandb_internal_pb2

    content = path.read_bytes()
    place, pieces = 7, b""
    if not content.startswith(_MAGIC):
        return
    while place + _HEADER.size <= len(content):
        left = _BLOCK - place % _BLOCK
        if left < _HEADER.size:  # padding
            place += left
            continue
        _, length, kind = _HEADER.unpack_from(content, place)
        place += _HEADER.size
        if kind == 0 or place + length > len(content):
            return
        pieces += content[place : place + length]
        place += length
        if kind in (_FULL, _LAST):
            record = wandb_internal_pb2.Record()  # type: ignore[attr-defined]  # made at import
            record.ParseFromString(pieces)
            pieces = b""
            yield record


def read_rows(folder: Path, run_id: str) -> Iterator[dict[str, Any]]:
    """The rows of a run's history, in all the files in ``folder`` that wandb has written of it, in their order."""
    for path in sorted(folder.glob(f"wandb/*run-*-{run_id}/run-{run_id}.wandb")):
        for record in read_records(path):
            if record.HasField("history"):
                items = record.history.item
                yield {".".join(one.nested_key) or one.key: json.loads(one.value_json) for one in items}


def given_up(log: Path) -> str | None:
    """Why wandb has stopped sending a run (its token has expired, say), as ``debug-internal.log`` has it: it tells the
    terminal, and no caller. None: it has not, as far as is known."""
    if log.is_file():
        for line in log.read_text(encoding="utf-8", errors="replace").splitlines():
            if _GIVEN_UP in line:
                reason: str = json.loads(line)["msg"].partition(_GIVEN_UP)[2]
                return reason
    return None


def wait_until_written(path: Path, seconds: float) -> bool:
    """Whether a file has its end: ``wandb.finish`` returns a little before it is written."""
    deadline = time.monotonic() + seconds
    while not any(record.HasField("exit") for record in read_records(path)):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def wait_for_another_second(folder: Path, run_id: str) -> None:
    """Until wandb will not take the folder of the same run once more: its name has the second in it."""
    while [*folder.glob(f"wandb/*run-{time.strftime('%Y%m%d_%H%M%S')}-{run_id}")]:
        time.sleep(0.05)
