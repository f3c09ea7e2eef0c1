"""TraceFile: a Chrome trace that is whole at any time, though it grows; and merging it with others, as torch's."""

from __future__ import annotations

import gzip
import json
import os
import time
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from async_trainer.errors import ConfigurationError
from async_trainer.files.atomic import output_file

_BLOCK = 1 << 20
PERIOD = 90 * 86_400
"""Of this, in s, the last multiple in Unix time is what ``ts``, in µs, counts from. Torch does it so, too: nanoseconds
of some 100 days fit into the 53 bits of a float."""

EVENTS = 2_000_000
"""Events of a file, at most: some 30 MB, and about what viewers can show."""

LEVEL = 3  # of gzip: twice as fast as the usual 6, and 10 % larger


def _member(text: str) -> bytes:
    return gzip.compress(text.encode(), LEVEL, mtime=0)


TAIL = _member('{"name":"end","ph":"M","pid":0}]}\n')


class TraceFile:
    """A ``.json.gz`` file of events. Each write replaces its last few bytes, which close it, by more events and those
    bytes: the file of a killed run can be read, too. Any one thread.

    Args:
        path: the file.
        append: go on with the one that is there.

    Attributes:
        full: there were more events than ``EVENTS``; the later ones are not in it.
        base: Unix time that ``ts`` counts from, in ns.
    """

    def __init__(self, path: Path, *, append: bool = False) -> None:
        self.full = False
        self._left = EVENTS
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0), 0o666)
        size = os.fstat(self._file).st_size
        if append and size > len(TAIL) and os.pread(self._file, len(TAIL), size - len(TAIL)) == TAIL:
            head = zlib.decompressobj(wbits=31).decompress(os.pread(self._file, 1000, 0)).decode()
            self.base = int(json.loads(head.rstrip() + "]}")["baseTimeNanoseconds"])
            self._end = size - len(TAIL)
            self._left = max(0, EVENTS - self._count())
            return
        os.ftruncate(self._file, 0)
        self.base = int(time.time()) // PERIOD * PERIOD * 10**9
        self._end = 0
        self._put(_member(f'{{"displayTimeUnit":"ms","baseTimeNanoseconds":{self.base},"traceEvents":[\n'))

    def _count(self) -> int:
        """How many events there are: each is a line."""
        count, place, member = -1, 0, zlib.decompressobj(wbits=31)
        while place < self._end:
            part = os.pread(self._file, min(_BLOCK, self._end - place), place)
            place += len(part)
            while part:
                count += member.decompress(part).count(b"\n")
                part = member.unused_data
                if member.eof:
                    member = zlib.decompressobj(wbits=31)
        return count

    def write(self, events: Sequence[dict[str, Any]]) -> None:
        """Add ``events``.

        Raises:
            OSError: the disk is full, say; what was there before is.
        """
        if len(events) > self._left:
            self.full = True
            events = events[: self._left]
        self._left -= len(events)
        if events:
            self._put(_member("".join(json.dumps(one) + ",\n" for one in events)))

    def _put(self, member: bytes) -> None:
        rest = memoryview(member + TAIL)
        at = self._end
        try:
            while rest:
                written = os.pwrite(self._file, rest, at)
                rest, at = rest[written:], at + written
        except OSError:
            if os.fstat(self._file).st_size > self._end:  # its end was there, and was overwritten: there is room for it
                os.ftruncate(self._file, self._end + os.pwrite(self._file, TAIL, self._end))
            raise
        self._end += len(member)

    def close(self) -> None:
        """Close it."""
        os.close(self._file)


def read_trace(path: Path) -> dict[str, Any]:
    """A Chrome trace, gzipped or not; of one in the form of a list, and of one that was cut off, what is there.

    Raises:
        ConfigurationError: it is no such trace.
    """
    data = path.read_bytes()
    if data[:2] == b"\x1f\x8b":
        data = _unzip(data)
    text = data.decode("utf-8", errors="replace")
    lines = text.rpartition("\n")[0]
    ends = (text, *(part.rstrip().rstrip(",") + end for part in (text, lines) for end in ("]", "]}")))
    for whole in ends:
        try:
            found = json.loads(whole)
        except ValueError:
            continue
        found = {"traceEvents": found} if isinstance(found, list) else found
        if isinstance(found, dict) and isinstance(found.get("traceEvents"), list):
            return found
    raise ConfigurationError(f"{path} is no Chrome trace: it has no traceEvents")


def _unzip(data: bytes) -> bytes:
    """All members, and of one that was cut off what there is."""
    parts = []
    while data:
        member = zlib.decompressobj(wbits=31)
        try:
            parts.append(member.decompress(data))
        except zlib.error:
            break
        data = member.unused_data
    return b"".join(parts)


def merge_traces(paths: Iterable[str | os.PathLike[str]], output: str | os.PathLike[str]) -> int:
    """Put several Chrome traces on one time axis, in one file: a run's ``timeline.json.gz``, and what
    ``torch.profiler`` exported of it. Any thread.

    Both count from the ``baseTimeNanoseconds`` that they name, in Unix time; so they agree as far as the system's clock
    and torch's conversion to it do: to a millisecond or better.

    Args:
        paths: the traces, ``.json`` or ``.json.gz``.
        output: the file; gzipped if its name ends in ``.gz``.

    Returns:
        How many events it has.

    Raises:
        ConfigurationError: one of them is no Chrome trace.
    """
    merged: list[dict[str, Any]] = []
    base: int | None = None
    for path in map(Path, paths):
        trace = read_trace(path)
        if "baseTimeNanoseconds" not in trace:
            raise ConfigurationError(
                f"{path} doesn't say what its times count from (baseTimeNanoseconds): torch.profiler's files do, from "
                "torch 2.3 on"
            )
        base = int(trace["baseTimeNanoseconds"]) if base is None else base
        shift = (int(trace["baseTimeNanoseconds"]) - base) / 1e3
        for event in trace["traceEvents"]:
            if isinstance(event.get("ts"), (int, float)) and event.get("ph") != "M":
                event["ts"] = round(event["ts"] + shift, 3)
            if event.get("name") != "end" or event.get("ph") != "M":
                merged.append(event)
    head = {"displayTimeUnit": "ms", "baseTimeNanoseconds": base or 0}
    data = json.dumps({**head, "traceEvents": merged}).encode()
    output = Path(output)
    with output_file(output) as file:
        file.write(gzip.compress(data, LEVEL, mtime=0) if output.suffix == ".gz" else data)
    return len(merged)
