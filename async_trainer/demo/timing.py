"""How long steps take, and what inline callbacks take of them."""

from __future__ import annotations

import functools
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

from async_trainer import Callback, Event
from async_trainer.callback import snake_case


class StepTimes(Callback):
    """The time from each ``on_batch_start`` to the next, validation's included; the last one ends with the training.

    Inline, and first in the list: what other callbacks do at a batch's start then counts for that batch.
    """

    def __init__(self) -> None:
        self._marks: list[float] = []

    def on_batch_start(self, **kwargs: Any) -> None:
        self._marks.append(time.perf_counter())

    def on_train_end(self, **kwargs: Any) -> None:
        self._marks.append(time.perf_counter())

    @property
    def seconds(self) -> tuple[float, ...]:
        """A time for each batch, in order."""
        return tuple(after - before for before, after in pairwise(self._marks))


class Stopwatch:
    """Adds up the time spent in callbacks and other objects, by name."""

    def __init__(self) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)

    def callback(self, callback: Callback) -> Callback:
        """``callback`` with each of its hooks timed, under its class's name in snake case."""
        kind = type(callback)
        name = snake_case(kind.__name__)
        hooks = {
            event.value: self._timed_hook(name, callback, getattr(kind, event.value))
            for event in Event
            if getattr(kind, event.value) is not getattr(Callback, event.value)
        }
        timed: Callback = type(kind.__name__, (Callback,), hooks)()
        return timed

    def target(self, name: str, target: Any) -> Any:
        """``target`` with each call of its methods timed."""
        return _TimedTarget(target, functools.partial(self.measure, name))

    @contextmanager
    def measure(self, name: str) -> Iterator[None]:
        """Add the time of the block to ``name``, also where it raises."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] += time.perf_counter() - start

    def _timed_hook(self, name: str, callback: Callback, function: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(function)  # handlers read a hook's arguments from its signature
        def hook(_self: object, **kwargs: Any) -> None:
            with self.measure(name):
                function(callback, **kwargs)

        return hook


class _TimedTarget:
    def __init__(self, target: Any, measure: Callable[[], Any]) -> None:
        self._target = target
        self._measure = measure

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._target, name)

        @functools.wraps(method)
        def timed(*args: Any, **kwargs: Any) -> Any:
            with self._measure():
                return method(*args, **kwargs)

        return timed
