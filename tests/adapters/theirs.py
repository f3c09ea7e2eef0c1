"""A plugin of pytest under which the tests of other libraries run what they test in the background: see .ci/theirs.

    pytest -p tests.adapters.theirs their/tests
"""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Iterator
from typing import Any

moved: dict[str, int] = {}
"""What ran in the background, and how often it was put there: none would prove nothing."""


def of_accelerate() -> None:
    """Trackers go to the background as soon as there are any."""
    from accelerate import Accelerator

    from async_trainer.adapters import accelerate

    init_trackers = Accelerator.init_trackers

    @functools.wraps(init_trackers)
    def init_and_offload(self: Any, *args: Any, **kwargs: Any) -> None:
        init_trackers(self, *args, **kwargs)
        if self.trackers:
            for one in self.trackers:
                count(type(one).__name__)
            accelerate.offload(self)

    Accelerator.init_trackers = init_and_offload  # type: ignore[method-assign]


def of_ignite() -> None:
    """Ignite's own handlers go to the background where an engine gets them, its loggers when they are made."""
    import ignite.handlers
    from ignite.engine import Engine
    from ignite.handlers.base_logger import BaseLogger

    from async_trainer.adapters import ignite as adapter

    add = Engine.add_event_handler

    @functools.wraps(add)
    def add_in_background(self: Any, event_name: Any, handler: Any, *args: Any, **kwargs: Any) -> Any:
        owner = getattr(handler, "__self__", handler)
        if isinstance(owner, ignite.handlers.Checkpoint):
            handler = adapter.background(handler)
            count(type(owner).__name__)
        return add(self, event_name, handler, *args, **kwargs)

    def make_in_background(cls: type, **kwargs: Any) -> None:
        init: Any = cls.__init__  # type: ignore[misc]

        @functools.wraps(init)
        def init_in_background(self: Any, *args: Any, **kwargs: Any) -> None:
            init(self, *args, **kwargs)
            if type(self) is cls:
                adapter.background(self)
                count(cls.__name__)

        cls.__init__ = init_in_background  # type: ignore[misc]

    def below(cls: type) -> Iterator[type]:
        for one in cls.__subclasses__():
            yield one
            yield from below(one)

    Engine.add_event_handler = add_in_background  # type: ignore[method-assign]
    for cls in list(below(BaseLogger)):
        make_in_background(cls)
    BaseLogger.__init_subclass__ = classmethod(make_in_background)  # type: ignore[assignment]


def count(name: str) -> None:
    """Note that ``name`` runs in the background."""
    moved[name] = moved.get(name, 0) + 1


def pytest_configure(config: Any) -> None:
    """Before their tests are imported."""
    for name, move in (("accelerate", of_accelerate), ("ignite", of_ignite)):
        if importlib.util.find_spec(name) is not None:
            move()


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Says what was in the background."""
    there = ", ".join(f"{number} {name}" for name, number in sorted(moved.items()))
    terminalreporter.write_line(f"in the background: {there or 'nothing'}")
