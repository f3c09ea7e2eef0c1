"""Profiles one callback: the same loop without it, and with it inline, in a thread, in a process."""

from __future__ import annotations

import copy
import inspect
import logging
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from statistics import median
from typing import Any

from async_trainer.bench.advice import Advice, Figures, advise
from async_trainer.bench.watched import Recorder, Watch, WatchedHandler, clock, placed
from async_trainer.callback import Background, Inline, label, snake_case
from async_trainer.errors import AsyncTrainerError
from async_trainer.handler import CallbacksHandler
from async_trainer.runtime.stats import Stats

PLAIN = "without"
Loop = Callable[[CallbacksHandler], Any]


@dataclass(frozen=True, slots=True)
class Profile:
    """What one callback takes, by where it runs; of several runs the one with the median step."""

    name: str
    runs: dict[str, Watch]  # by placement, and PLAIN
    figures: Figures
    advice: Advice

    def slowdown(self, placement: str) -> float | None:
        """A step of the loop with it there, over one without it."""
        run = self.runs.get(placement)
        return None if run is None or run.problem else run.step / self.runs[PLAIN].step


def profile(make: Callable[[], Any], loop: Loop, rounds: int = 3) -> Profile:
    """Run ``loop`` with a callback in each placement, by turns. The first turn is a warm-up: libraries are imported, a
    process is started.

    Args:
        make: gives a callback, wrapped or not; called for each placement. A new one each time, where it can.
        loop: called with a handler, several times; fires the events of a training, and returns at its end.
        rounds: turns that count; the one with the median step is shown.

    Raises:
        AsyncTrainerError: the callback can run nowhere, or its hooks fail wherever it runs.
        Exception: what the loop raised.
    """
    record = make()
    callback = record.callback if isinstance(record, (Background, Inline)) else record
    steers = bool(getattr(type(callback), "steers", False))
    asynchronous = any(inspect.iscoroutinefunction(getattr(callback, one, None)) for one in dir(callback))
    placements: Sequence[str] = ("task",) if asynchronous else ("inline", "thread", "process")
    logger = logging.getLogger("async_trainer")
    level = logger.level
    logger.setLevel(logging.ERROR)  # what a warning would tell, the table does
    with ExitStack() as stack:
        stack.callback(logger.setLevel, level)
        stages = {one: Stage(make, one, loop) for one in (PLAIN, *(("inline",) if steers else placements))}
        for stage in stages.values():
            stack.callback(stage.close)
        for _ in range(1 + rounds):
            for stage in stages.values():
                stage.run()
        problems = [stage.problem for one, stage in stages.items() if one != PLAIN]
        if all(problems):
            raise AsyncTrainerError(f"{snake_case(label(callback))} can't be profiled: {problems[0]}")
        runs = {placement: stage.middle() for placement, stage in stages.items()}
        least = stages["inline"].least() if "inline" in stages else Watch()
        beside = [with_it.step / without.step for with_it, without in _pairs(stages)]
    figures = _figures(runs, least, beside, steers=steers, asynchronous=asynchronous)
    return Profile(snake_case(label(callback)), runs, figures, advise(figures))


class Stage:
    """A handler with the callback in one placement, and what the runs of the loop with it took."""

    def __init__(self, make: Callable[[], Any], placement: str, loop: Loop) -> None:
        self._loop = loop
        self._recorder = Recorder()
        self._watches: list[Watch] = []
        self.problem = ""
        callbacks: list[Any] = []
        try:
            if placement != PLAIN:
                callbacks = [placed(make(), placement, self._recorder)]
            self._handler = WatchedHandler(callbacks, self._recorder)
        except AsyncTrainerError as error:  # it can't run there
            self.problem = str(error)

    @property
    def raised(self) -> Exception | None:
        """What a hook has raised inline."""
        return self._recorder.raised

    def run(self) -> None:
        """One run of the loop, unless the callback can't run there."""
        if self.problem:
            return
        handler = self._handler
        watch = self._recorder.watch = Watch()
        stats = handler.stats()
        before, took = stats.waits, _took(stats)
        began = clock()
        try:
            self._loop(handler)
        except Exception as error:
            if error is not self.raised:
                raise
            self.problem = f"{type(error).__name__}: {error}"
            return
        watch.seconds = clock() - began
        handler.flush()
        watch.handled = clock() - began
        stats = handler.stats()
        watch.waited = stats.waits.queue + stats.waits.budget - before.queue - before.budget
        watch.took = _since(_took(stats), took)
        watch.captured = handler.captured()
        self.problem = str(stats.errors[0]) if stats.errors else ""
        self._watches.append(watch)

    @property
    def counted(self) -> list[Watch]:
        """The runs but the first; none where the callback can't run there."""
        return [] if self.problem else self._watches[1:]

    def middle(self) -> Watch:
        """The run with the median step; the first doesn't count."""
        if self.problem:
            return Watch(problem=self.problem)
        step = median([watch.step for watch in self.counted])
        return min(self.counted, key=lambda watch: abs(watch.step - step))

    def least(self) -> Watch:
        """The run in which the hooks took least: what others took of the machine meanwhile is not theirs."""
        return min(self.counted, key=lambda watch: sum(one.wall for one in watch.hooks.values()), default=Watch())

    def close(self) -> None:
        """End its lanes."""
        if hasattr(self, "_handler"):
            self._handler.close()


def fresh(found: Any) -> Callable[[], Any]:
    """What gives a new callback each time: of an instance, copies; where it can't be copied, the same again."""

    def make() -> Any:
        try:
            return copy.deepcopy(found)
        except Exception:
            return found

    return make


def _pairs(stages: dict[str, Stage]) -> list[tuple[Watch, Watch]]:
    """The runs in a thread, each with the one without the callback in the same turn."""
    return list(zip(stages["thread"].counted, stages[PLAIN].counted, strict=False)) if "thread" in stages else []


def _took(stats: Stats) -> tuple[float, float]:
    """s that hooks in the background took, and s of CPU."""
    lanes = stats.lanes.values()
    return sum(lane.hook_seconds for lane in lanes), sum(lane.cpu_seconds for lane in lanes)


def _since(now: tuple[float, float], before: tuple[float, float]) -> tuple[float, float]:
    return now[0] - before[0], now[1] - before[1]


def _figures(
    runs: dict[str, Watch], inline: Watch, beside: Sequence[float], *, steers: bool, asynchronous: bool
) -> Figures:
    plain = runs[PLAIN]
    thread = runs.get("thread", Watch(problem="not run"))
    process = runs.get("process", Watch(problem="not run"))
    heard = [event for event in inline.hooks if event in thread.events]
    idle = sum(plain.events[event].wall for event in heard if event in plain.events)
    here = not runs["inline"].problem if "inline" in runs else False
    own = [(spent.wall, spent.cpu) for spent in inline.hooks.values()]
    elsewhere = thread.took if process.problem else process.took
    took = (sum(wall for wall, _ in own), sum(cpu for _, cpu in own)) if here else elsewhere
    return Figures(
        hooks=took[0],
        cpu=took[1],
        loop=plain.seconds,
        handing=max(0.0, sum(thread.events[event].wall for event in heard) - idle - thread.waited),
        beside_thread=max(beside, default=None),
        inline=here,
        thread=not thread.problem,
        process=not process.problem,
        steers=steers,
        asynchronous=asynchronous,
    )
