"""Handlers for each placement."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from async_trainer import CallbacksHandler
from async_trainer.callback import Placement
from async_trainer.runtime import loop
from tests.options.doubles import Loud, Make


@pytest.fixture(params=["thread", "task", "task on trio", "process"])
def placement(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Placement:
    name, _, backend = request.param.partition(" on ")
    monkeypatch.setattr(loop, "backend", backend or "asyncio")
    placements: dict[str, Placement] = {"thread": "thread", "task": "task", "process": "process"}
    return placements[name]


@pytest.fixture(params=["thread", "task", "task on trio"])
def within(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Placement:
    """The placements in this process: hooks share objects with the test, and may fire events."""
    name, _, backend = request.param.partition(" on ")
    monkeypatch.setattr(loop, "backend", backend or "asyncio")
    return "thread" if name == "thread" else "task"


@pytest.fixture
def handlers() -> Iterator[Make]:
    """Makes handlers, and closes them, whatever became of the test."""
    made: list[CallbacksHandler] = []

    def make(*callbacks: Any, **settings: Any) -> CallbacksHandler:
        made.append(CallbacksHandler(callbacks, **settings))
        return made[-1]

    yield make
    for handler in made:
        handler._close(5.0)


@pytest.fixture(autouse=True)
def _forget_captures() -> None:
    Loud.captured = 0
