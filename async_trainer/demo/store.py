"""A stand-in for remote storage: a local directory, and the time that a remote store would take for each write."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO


@dataclass(frozen=True, slots=True)
class Store:
    """Objects in ``folder``, each there as a whole or not at all.

    Writing an object takes the time of the local disk, synced, and then sleeps for a round trip plus the object's size
    over the bandwidth. That sleep is the only simulated thing in the demo, and its output states it.

    Args:
        folder: where the objects are.
        latency: seconds of the round trip of each object.
        bandwidth: bytes per second.
    """

    folder: Path
    latency: float = 0.12
    bandwidth: float = 20e6

    def put(self, name: str, write: Callable[[BinaryIO], object]) -> None:
        """Store what ``write`` writes under ``name``; it appears there once all of it has arrived."""
        self.folder.mkdir(parents=True, exist_ok=True)
        partial = self.folder / f".{name}.partial"
        with partial.open("wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
            size = file.tell()
        time.sleep(self.latency + size / self.bandwidth)
        partial.replace(self.folder / name)

    def __str__(self) -> str:
        return f"a store {1000 * self.latency:.0f} ms away, {self.bandwidth / 1e6:.0f} MB/s"
