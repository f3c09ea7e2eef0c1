"""Callbacks to make mistakes with, and what is said of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from async_trainer import CallbacksHandler
from async_trainer.errors import ConfigurationError


class Rows:
    """Keeps what it gets."""

    def __init__(self, **attributes: Any) -> None:
        self.rows: list[Any] = []
        self.__dict__.update(attributes)

    def on_batch_end(self, **kwargs: Any) -> None:
        self.rows.append(kwargs)


class Writer:
    """Not a callback: no hooks."""


Make = Callable[..., CallbacksHandler]


def message_of(function: Callable[[], Any], error: type[Exception] = ConfigurationError) -> str:
    with pytest.raises(error) as caught:
        function()
    return str(caught.value)
