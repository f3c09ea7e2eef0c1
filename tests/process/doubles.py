"""Callbacks that are sent to a child, which imports this module."""

from __future__ import annotations

import traceback
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
