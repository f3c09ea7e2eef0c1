"""A pytest fixture for handlers: closed at the end of the test, which fails where a hook has failed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from async_trainer.handler import CallbacksHandler

DRAIN = 10.0  # s: a test that needs longer for what is left in its lanes hangs


@pytest.fixture
def callbacks_handler() -> Iterator[Callable[..., CallbacksHandler]]:
    """Makes handlers, as ``CallbacksHandler(callbacks, **settings)`` does. At the end of the test they are drained and
    closed; a hook that failed, and an event that was lost, fail the test."""
    from async_trainer.handler import CallbacksHandler

    handlers: list[CallbacksHandler] = []

    def make(callbacks: Any = (), **settings: Any) -> CallbacksHandler:
        handlers.append(CallbacksHandler(callbacks, **settings))
        return handlers[-1]

    yield make
    reports = [handler.close(DRAIN) for handler in handlers]
    for report in reports:
        report.raise_for_errors()
        assert not report.lost, report
