"""Objects to make proxies of; the child imports this module."""

from __future__ import annotations

import asyncio
import gc
import os
import threading
import time
import weakref
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


class Ledger:
    def __init__(self) -> None:
        self.held: list[Any] = []

    def add(self, row: Any) -> None:
        self.held.append(row)

    def rows(self) -> list[Any]:
        return self.held

    def pid(self) -> int:
        return os.getpid()

    def total(self, small: torch.Tensor, *, big: torch.Tensor, rows: list[int]) -> float:
        return float(small.sum() + big.sum() + sum(rows))

    def give(self, value: Any) -> Any:
        return value

    def lock(self) -> Any:
        return threading.Lock()

    def locked(self, lock: Any) -> bool:
        return bool(lock.locked())

    def fail(self, code: int) -> None:
        raise OSError(code, "disk full")

    def hang(self) -> None:
        time.sleep(60)


class Note:
    def __init__(self, run: Run) -> None:
        object.__setattr__(self, "_run", run)

    def __setattr__(self, name: str, value: Any) -> None:
        self._run.log(value)  # type: ignore[attr-defined]

    def __getstate__(self) -> dict[str, Any]:
        return {}

    def __setstate__(self, state: Any) -> None:
        pass


class Run:
    def __init__(self, name: str, lines: list[str]) -> None:
        self.name = name
        self.lines = lines
        self.note = Note(self)

    def log(self, what: Any) -> None:
        self.lines.append(f"{self.name}: {what}")

    def __enter__(self) -> Run:
        return self

    def __exit__(self, *_: object) -> None:
        self.log("end")


class Tracker:
    def __init__(self) -> None:
        self.lines: list[str] = []
        self.runs: weakref.WeakValueDictionary[str, Run] = weakref.WeakValueDictionary()

    def start(self, name: str) -> Run:
        run = self.runs[name] = Run(name, self.lines)
        return run

    def log_to(self, run: Run, what: Any) -> None:
        run.log(what)

    def text(self) -> list[str]:
        return self.lines

    def names(self, runs: list[Any]) -> list[str]:
        return [(run["run"] if isinstance(run, dict) else run).name for run in runs]

    def alive(self, name: str) -> bool:
        gc.collect()  # a run and its note refer to each other
        return name in self.runs


class Files:
    def __init__(self) -> None:
        self.mode = "r"
        self.items: dict[str, Any] = {}
        self.notes: list[str] = []

    def __setitem__(self, key: str, value: Any) -> None:
        self.items[key] = value

    def __delitem__(self, key: str) -> None:
        del self.items[key]

    def __enter__(self) -> Files:
        self.notes.append("enter")
        return self

    def __exit__(self, kind: Any, *_: object) -> None:
        self.notes.append(f"exit {kind}")

    def note(self, what: str) -> None:
        self.notes.append(what)

    def told(self) -> list[Any]:
        return [self.mode, self.items, *self.notes]


class Flaky:
    """Fails so many times, then works."""

    def __init__(self, times: int) -> None:
        self.left = times
        self.calls = 0

    def call(self, value: Any) -> Any:
        self.calls += 1
        if self.left:
            self.left -= 1
            raise ValueError("not yet")
        return value, self.calls

    def never(self) -> None:
        raise ValueError("always")


def fails() -> Any:
    raise ConnectionError("nobody there")


async def slow_then_fast(value: Any, delay: float) -> Any:
    await asyncio.sleep(delay)
    return value
