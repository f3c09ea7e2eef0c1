"""Waiting for what another thread does, within a limit."""

from __future__ import annotations

import time
from collections.abc import Callable


def until(condition: Callable[[], object], what: str, limit: float = 10.0) -> None:
    """Return as soon as ``condition()`` holds; fail with ``what`` after ``limit`` seconds."""
    end = time.monotonic() + limit
    while not condition():
        assert time.monotonic() < end, f"{what}, after {limit} s"
        time.sleep(0.001)
