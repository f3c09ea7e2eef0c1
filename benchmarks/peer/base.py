"""What every peer has, and a sink of ours for those that hand over to a function."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any


class Peer(ABC):
    """One way to log, or to save weights, in the background; in a process of its own, for one trial.

    Attributes:
        name: in the tables.
        needs: modules that must be importable.
        calls: how many calls a burst has: fewer where a call takes long.
        what: what a call hands over.
    """

    name = ""
    needs: tuple[str, ...] = ()
    calls = 500
    what = "a scalar"

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def open(self) -> None:
        """Before the first call."""

    @abstractmethod
    def log(self, step: int, value: Any) -> None:
        """The call that is measured. ``value``: a number, or a 0-d tensor."""

    def before_change(self) -> None:
        """What the peer asks of a loop before it changes values in place."""

    def close(self) -> None:
        """What the peer's own documentation says to do at the end."""

    @abstractmethod
    def hang(self) -> None:
        """From now on what it writes to doesn't answer."""

    @staticmethod
    @abstractmethod
    def read(folder: Path) -> list[tuple[int, float]]:
        """What was delivered: steps and values, in the order of their delivery."""


class Sink:
    """A function's work: a line per call in a file, flushed. Hangs when told."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "sink.txt"
        self.go = threading.Event()
        self.go.set()

    def write(self, step: int, value: Any) -> None:
        self.go.wait()
        number = float(value)
        with self.path.open("a") as file:
            file.write(f"{step} {number}\n")

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.path = state["path"]
        self.go = threading.Event()
        self.go.set()


def read_lines(folder: Path) -> list[tuple[int, float]]:
    """What :class:`Sink` wrote; a line that was cut off is not counted."""
    path = folder / "sink.txt"
    if not path.exists():
        return []
    lines = [line.split() for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]
    return [(int(step), float(value)) for step, value in lines]


class FunctionPeer(Peer):
    """A peer that calls a function of the user's: :class:`Sink`."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.sink = Sink(folder)

    def hang(self) -> None:
        self.sink.go.clear()

    read = staticmethod(read_lines)
