"""Runs scenarios, one after the other, each in a process of its own: none bears what another has left behind."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from async_trainer.bench.machine import load
from async_trainer.bench.row import Row
from async_trainer.bench.timing import Effort
from async_trainer.errors import AsyncTrainerError


class BenchError(AsyncTrainerError):
    """A scenario could not be measured."""


@dataclass(frozen=True, slots=True)
class Result:
    """What one scenario gave, how long it took (s), and the machine's load when it began."""

    scenario: str
    rows: tuple[Row, ...]
    seconds: float
    load: float | None

    def to_json(self) -> dict[str, Any]:
        """A dict of plain values."""
        return {"seconds": round(self.seconds, 1), "load": self.load, "rows": [row.to_json() for row in self.rows]}


def run_all(names: Iterable[str], effort: Effort, tell: Callable[[Result], None]) -> list[Result]:
    """Run the scenarios ``names``; ``tell`` hears of each as it is done."""
    results = []
    for name in names:
        before, began = load(), time.perf_counter()
        rows = run_one(name, effort)
        results.append(Result(name, tuple(rows), time.perf_counter() - began, before))
        tell(results[-1])
    return results


def run_one(name: str, effort: Effort) -> list[Row]:
    """Run one scenario in a child process.

    Raises:
        BenchError: the child failed; what it wrote to stderr is told.
    """
    command = [sys.executable, "-m", "async_trainer.bench.child", name, str(effort.share)]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if done.returncode != 0:
        raise BenchError(f"{name}: it ended with status {done.returncode}\n{done.stderr.strip()}")
    return [Row.from_json(row) for row in json.loads(done.stdout)]
