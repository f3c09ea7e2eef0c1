"""Callbacks that these tests attach, and ways to fire events at them."""

from __future__ import annotations

import copy
import threading
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import numpy as np

from async_trainer import CallbacksHandler, capture
from async_trainer.routes import EventInfo

PATIENCE = 20.0  # s: for what should come at once

Make = Callable[..., CallbacksHandler]


class Rows:
    """Keeps what it gets, of three events."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []

    def on_batch_end(self, *, n: Any = None, **kwargs: Any) -> None:
        self.rows.append({"n": n, **kwargs})

    def on_epoch_end(self, *, n: Any = None, **kwargs: Any) -> None:
        self.rows.append({"n": n, **kwargs})

    def on_train_end(self, *, n: Any = None, **kwargs: Any) -> None:
        self.rows.append({"n": n, **kwargs})

    @property
    def ns(self) -> list[Any]:
        return [row["n"] for row in self.rows]

    @property
    def named(self) -> list[tuple[str, Any]]:
        return [(row["event"].name, row["n"]) for row in self.rows]


class Fails:
    """Fails where ``n`` says so, and keeps each attempt."""

    def __init__(self, fails: Callable[[Any, int], bool] = lambda n, attempt: True) -> None:
        self.fails = fails
        self.attempts: list[tuple[Any, int]] = []

    def on_batch_end(self, *, n: Any, event: EventInfo, **kwargs: Any) -> None:
        self.attempts.append((n, event.attempt))
        if self.fails(n, event.attempt):
            raise ValueError(f"no {n}")


class Flag:
    """As ``threading.Event``, for several processes: a file that is there, or not."""

    def __init__(self) -> None:
        self._path = Path(mkdtemp()) / "set"

    def set(self) -> None:
        self._path.touch()

    def clear(self) -> None:
        self._path.unlink(missing_ok=True)

    def is_set(self) -> bool:
        return self._path.exists()

    def wait(self, timeout: float = PATIENCE) -> bool:
        deadline = time.monotonic() + timeout
        while not self.is_set() and time.monotonic() < deadline:
            threading.Event().wait(0.001)
        return self.is_set()


class Gate:
    """Stays in its hook until told to go on."""

    def __init__(self) -> None:
        self.entered = Flag()
        self.go_on = Flag()
        self.rows: list[Any] = []

    def on_batch_end(self, *, n: Any, output: Any = None) -> None:
        self.entered.set()
        assert self.go_on.wait(PATIENCE)
        self.rows.append(n)


class Loud:
    """A value that counts how often it is captured."""

    captured = 0


@capture.register(Loud)
def take_loud(live: Loud) -> str:
    Loud.captured += 1
    return "captured"


def fire(handler: CallbacksHandler, count: int, event: str = "on_batch_end", **arguments: Any) -> None:
    for n in range(1, count + 1):
        handler.call_event(event, n=n, **arguments)


def in_thread(function: Callable[[], Any]) -> threading.Thread:
    thread = threading.Thread(target=function)
    thread.start()
    return thread


def until(condition: Callable[[], Any]) -> None:
    """Look until ``condition`` holds: for a thread that is about to wait, which nothing tells."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline
        threading.Event().wait(0.001)


class Output:
    """Names one argument."""

    def __init__(self) -> None:
        self.rows: list[Any] = []

    def on_batch_end(self, *, output: Any) -> None:
        self.rows.append(output)


class Counts(Rows):
    """Rows, with a state."""

    def state_dict(self) -> dict[str, Any]:
        return {"rows": list(self.ns)}

    def load_state_dict(self, state_dict: Any) -> None:
        self.rows = [{"n": n} for n in state_dict["rows"]]


class NamesRun:
    """Names what the start of a run provides."""

    def __init__(self) -> None:
        self.rows: list[Any] = []

    def on_batch_end(self, *, metrics: Any, **kwargs: Any) -> None:
        self.rows.append((copy.deepcopy(metrics), "computational" in kwargs))


def array(nbytes: int) -> Any:
    return np.zeros(nbytes, np.uint8)
