"""Callbacks that are sent to a child, which imports this module."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Callable
from typing import Any


class Verdicts:
    """Has each value judged there, by a function of the test's; keeps what came of that: None, or what went wrong."""

    def __init__(self) -> None:
        self.of: dict[str, str | None] = {}

    def on_value(self, *, value: Any, judge: Callable[[Any], Any], name: str) -> None:
        try:
            verdict = judge(value)
            self.of[name] = None if verdict is None or verdict is True else f"{judge} says {verdict}"
        except Exception:
            self.of[name] = traceback.format_exc()


class Appends:
    """Appends to a list that it may share with others."""

    def __init__(self, rows: list[Any], what: str) -> None:
        self.rows = rows
        self.what = what

    def on_value(self, *, value: Any) -> None:
        self.rows.append((self.what, value))


class Slotted:
    __slots__ = ("count",)

    def __init__(self) -> None:
        self.count = 0

    def on_value(self, *, value: Any) -> None:
        self.count += 1


class Opens:
    """Makes there what can't be sent."""

    def __init__(self) -> None:
        self.lock: Any = None
        self.count = 0
        self.untouched = "here"

    def on_value(self, *, value: Any) -> None:
        if self.lock is None:
            self.lock = threading.Lock()
        self.count += 1


class Stateful:
    """Counts; and says where its states were read and loaded."""

    def __init__(self) -> None:
        self.total = 0
        self.pids: set[int] = set()

    def on_value(self, *, value: int) -> None:
        self.total += value

    def state_dict(self) -> dict[str, Any]:
        self.pids.add(os.getpid())
        return {"total": self.total}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.pids.add(os.getpid())
        self.total = state_dict["total"]


class Speaks:
    """Logs, warns, prints, and may be killed."""

    def on_value(self, *, value: Any) -> None:
        logger = logging.getLogger("tests.speaks")
        logger.debug("debug %s", value)
        logger.info("info %s", value)
        try:
            raise ValueError("inside")
        except ValueError:
            logger.exception("it failed, %s", value, extra={"step": value})
        logging.getLogger("tests.speaks.loud").warning("loud")
        warnings.warn("a warning", UserWarning, stacklevel=1)
        print("printed", value)
        print("told", value, file=sys.stderr)
        print("begun", value, end="")
        if value == "dies":
            os.kill(os.getpid(), signal.SIGKILL)


class Unloadable:
    """Can be sent, and not be made again."""

    def __reduce__(self) -> Any:
        return _no, ()

    def on_value(self, *, value: Any) -> None:
        raise AssertionError


def _no() -> None:
    raise RuntimeError("not here")
