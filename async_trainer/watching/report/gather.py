"""What a run has left in its folder, read for a report: whole, partial, or of a run that was killed."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from async_trainer.watching import status
from async_trainer.watching.status import Status

LARGEST, SMALLEST = 1e300, 1e-300
"""What is beyond them is drawn there, and as 0: an axis must have a length that is a number."""

Curve = list[tuple[float, float]]

PLACES = ("epoch", "batch", "step")
LEAVES = ("forward", "backward", "optimization", "evaluation", "metrics computation")
"""Parts of the loop that hold no others."""


@dataclass(slots=True)
class Found:
    """What a folder tells of one training.

    Attributes:
        status: what it said last.
        name: of the training.
        seconds: how long it ran, in s, all that it was resumed for included.
        steps: how many steps, in all.
        paid: seconds of the loop, by what for.
        resumed: when it was resumed, in s of running time.
        step_times: (s of running time, median s, longest s), a point for each second or so.
        queued: by lane: (s of running time, events that wait).
        ages: by lane: (s of running time, age of the oldest event that is not handled, in s).
        curves: by metric: by where it was measured ("training", "validation"): (step or epoch, value).
        sources: of each curve, the file that it was read from: others may have the same.
        by_epoch: the curves are over epochs, not steps.
        config: what the Trainer has written down of it.
        unread: what could not be read, and why.
    """

    status: Status
    name: str
    seconds: float = 0.0
    steps: int = 0
    paid: dict[str, float] = field(default_factory=dict)
    resumed: list[float] = field(default_factory=list)
    step_times: list[tuple[float, float, float]] = field(default_factory=list)
    queued: dict[str, Curve] = field(default_factory=dict)
    ages: dict[str, Curve] = field(default_factory=dict)
    curves: dict[str, dict[str, Curve]] = field(default_factory=dict)
    sources: dict[tuple[str, str], Path] = field(default_factory=dict)
    by_epoch: bool = False
    config: Mapping[str, Any] = field(default_factory=dict)
    unread: list[str] = field(default_factory=list)


def gather(run: Path) -> list[Found]:
    """What there is of each training of ``run``, in order.

    Raises:
        ConfigurationError: it publishes nothing.
    """
    found = sorted(status.find(run), key=lambda path: (status.split_number(path), path))
    return [_gather(status.read(path)) for path in found]


def _gather(one: Status) -> Found:
    folder = one.path.parent.absolute()
    name = folder.name if status.split_number(one.path) < 0 else f"{folder.parent.name} · split {folder.name[6:]}"
    found = Found(one, name)
    _read_history(folder / status.HISTORY, found)
    for path in (folder / "split.json", folder.parent / "maps.json"):
        if path.is_file() and (path.parent == folder or status.split_number(one.path) >= 0):
            try:
                found.config = {**json.loads(path.read_text(encoding="utf-8")), **found.config}
            except (ValueError, TypeError, OSError) as error:
                found.unread.append(f"{path.name}: {error}")
    _read_curves(folder, found)
    return found


def _read_history(path: Path, found: Found) -> None:
    """Points of several processes, where the run was resumed: their times go on from each other."""
    began, steps = 0.0, 0
    last: dict[str, Any] = {}
    said = found.status.said
    for point in _lines(path, found):
        try:
            if point.get("resumed") and last:
                began, steps = began + last["at"], steps + last["steps"]
                found.resumed.append(began)
                _add(found.paid, last["paid"])
            at = began + float(point["at"])
            if point["step"]:
                middle, longest = map(float, point["step"])
                found.step_times.append((at, middle, longest))
            for lane, (queued, age) in point["lanes"].items():
                found.queued.setdefault(lane, []).append((at, float(queued)))
                found.ages.setdefault(lane, []).append((at, float(age)))
            last = point
        except (KeyError, TypeError, ValueError) as error:
            found.unread.append(f"{path.name}: a line says something else: {error!r}")
            break
    _add(found.paid, said["loop"]["paid"])
    found.seconds = began + said["loop"]["seconds"]
    found.steps = steps + said["steps"]["count"]


def _add(sums: dict[str, float], more: Mapping[str, float]) -> None:
    for name, seconds in more.items():
        sums[name] = sums.get(name, 0.0) + float(seconds)


def _lines(path: Path, found: Found) -> Iterator[dict[str, Any]]:
    """The rows of a file of JSON lines; the last one may be half there."""
    if not path.is_file():
        return
    with path.open(encoding="utf-8", errors="replace") as file:
        for number, line in enumerate(file, start=1):
            if not line.endswith("\n"):
                return
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                found.unread.append(f"{path.name}, line {number}: {error}")
                return
            if isinstance(row, dict):
                yield row


def _read_curves(folder: Path, found: Found) -> None:
    """From what ``MetricsLog`` has written, or else from the validations' ``metrics.tsv``."""
    for path in (*sorted((folder / "logs").glob("*.jsonl")), *sorted(folder.glob("*.jsonl"))):
        if path.name != status.HISTORY:
            for row in _lines(path, found):
                _add_row(row, path, found)
    for path in (*sorted((folder / "logs").glob("*.csv")), *sorted(folder.glob("*.csv"))):
        for row in _table(path, ",", found):
            if row.keys() >= {"name", "value", "step"}:
                _add_row({"step": row["step"], row["name"]: row["value"]}, path, found)
    for path in (*sorted((folder / "logs").glob("*.parquet")), *sorted(folder.glob("*.parquet"))):
        _read_parquet(path, found)
    if not any("validation" in curves for curves in found.curves.values()):
        path = folder / "metrics.tsv"
        rows = list(_table(path, "\t", found))
        if rows and not found.curves:
            found.by_epoch = True
            for row in rows:
                _add_row({"step": row.get("epoch"), **{f"validation/{name}": row[name] for name in row}}, path, found)


def _read_parquet(path: Path, found: Found) -> None:
    """A folder of segments, or one file. What can't be read of it is told."""
    try:
        import pyarrow.parquet
    except ImportError:
        found.unread.append(f"{path.name}: it needs pyarrow: pip install 'async_trainer[parquet]'")
        return
    for segment in sorted(path.glob("*.parquet")) if path.is_dir() else [path]:
        try:
            table = pyarrow.parquet.ParquetFile(segment).read(columns=["step", "name", "value"])
        except (pyarrow.ArrowException, OSError) as error:
            found.unread.append(f"{path.name}, {segment.name}: {error}")
            continue
        if table.column_names == ["step", "name", "value"]:
            for step, name, value in zip(*(column.to_pylist() for column in table.columns), strict=True):
                _add_row({"step": step, name: value}, path, found)


def _table(path: Path, delimiter: str, found: Found) -> Iterator[dict[str, Any]]:
    if not path.is_file():
        return
    try:
        with path.open(encoding="utf-8", errors="replace", newline="") as file:
            yield from csv.DictReader(file, delimiter=delimiter)
    except (csv.Error, OSError) as error:
        found.unread.append(f"{path.name}: {error}")


def _add_row(row: Mapping[str, Any], source: Path, found: Found) -> None:
    step = _number(row.get("step"))
    if step is None:
        return
    for key, given in row.items():
        where, _, name = key.partition("/") if isinstance(key, str) and key.startswith("validation/") else ("", "", key)
        value = _number(given)
        if name in PLACES or value is None or not isinstance(name, str):
            continue
        where = where or "training"
        if found.sources.setdefault((name, where), source) == source:
            found.curves.setdefault(name, {}).setdefault(where, []).append((step, value))


def _number(value: Any) -> float | None:
    """A finite number, as far as it can be drawn; also of text."""
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    if abs(number) < SMALLEST:
        return 0.0
    return max(-LARGEST, min(LARGEST, number)) if math.isfinite(number) else None
