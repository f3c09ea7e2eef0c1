"""Callbacks for processes, and looks at what processes leave behind."""

from __future__ import annotations

import gc
import os
import signal
import time
from pathlib import Path
from typing import Any

from async_trainer import Callback, CallbacksHandler

PATIENCE = 30.0  # s: for what should come soon


def until(condition: Any, patience: float = PATIENCE) -> None:
    """Look until ``condition`` holds."""
    deadline = time.monotonic() + patience
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.002)


class Rows(Callback):
    """A log with a state: each number once, in memory and in a file that is cut back to the state."""

    def __init__(self, path: Path, slow: float = 0.0) -> None:
        self.path = path
        self.slow = slow
        self.rows: list[int] = []
        self.again: list[int] = []
        self._length = 0

    def on_batch_end(self, *, n: int, event: Any, output: Any = None) -> None:
        if self.slow:
            time.sleep(self.slow)
        if event.redelivered:
            self.again.append(n)
        with self.path.open("a") as file:
            file.write(f"{n}\n")
        self._length = self.path.stat().st_size
        self.rows.append(n)
        if output is not None:
            assert (output == n).all()

    def state_dict(self) -> dict[str, Any]:
        return {"rows": list(self.rows), "length": self._length, "again": list(self.again)}

    def load_state_dict(self, state_dict: Any) -> None:
        self.rows, self.again = list(state_dict["rows"]), list(state_dict["again"])
        self._length = state_dict["length"]
        if self.path.exists():
            os.truncate(self.path, self._length)


def written(path: Path) -> list[int]:
    """The numbers in the file."""
    return [int(line) for line in path.read_text().splitlines()] if path.exists() else []


def child_of(handler: CallbacksHandler, lane: str) -> int | None:
    """The process of a lane."""
    worker: Any = handler._pool.workers.get(lane)
    child = worker and worker._child
    return child.process.pid if child is not None else None


def kill(pid: int | None) -> None:
    """As the system does when memory is short."""
    try:
        os.kill(pid or -1, signal.SIGKILL) if pid else None
    except ProcessLookupError:
        pass


def alive(pid: int) -> bool:
    """Whether there is such a process, and it is no zombie."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state not in "ZX"


def children_of(pid: int) -> set[int]:
    """The processes that ``pid`` has started, zombies included."""
    found = set()
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(fields[1]) == pid:
            found.add(int(path.parent.name))
    return found


def what_is_open() -> tuple[int, int, int]:
    """Descriptors, shared segments and children of this process."""
    gc.collect()
    maps = Path("/proc/self/maps").read_text().count("memfd:async_trainer")
    return len(os.listdir("/proc/self/fd")), maps, len(children_of(os.getpid()))
