"""Handlers that are closed whatever becomes of a test."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from async_trainer import CallbacksHandler


@pytest.fixture
def handlers() -> Iterator[Callable[..., CallbacksHandler]]:
    """Makes handlers, and closes them, whatever became of the test."""
    made: list[CallbacksHandler] = []

    def make(*callbacks: Any, **settings: Any) -> CallbacksHandler:
        made.append(CallbacksHandler(callbacks, **settings))
        return made[-1]

    yield make
    for handler in made:
        handler._close(5.0)
