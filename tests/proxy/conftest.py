from __future__ import annotations

from collections.abc import Iterator

import pytest

from async_trainer import CallbacksHandler


@pytest.fixture
def handler() -> Iterator[CallbacksHandler]:
    """A handler that runs, and is closed after the test."""
    with CallbacksHandler() as made:
        yield made
