"""Progress of the demo's runs: bars on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

from async_trainer import Callback, TrainerState
from async_trainer.demo.callbacks import Metrics, last_values

LINES = 6
"""How many lines a run prints where there is no terminal."""


class RunProgress(Protocol):
    """Shows how far one run is: an inline callback, and a last word once its lanes are empty."""

    def start(self) -> Callback: ...

    def finish(self) -> None: ...


@contextmanager
def show_progress(console: Console, names: Sequence[str], *, batches: int) -> Iterator[Mapping[str, RunProgress]]:
    """A progress for each name; each run has ``batches`` training batches."""
    if not console.is_terminal:
        yield {name: Lines(console, name) for name in names}
        return
    width = max(map(len, names))
    columns = (
        TextColumn(f"{{task.description:<{width}}}"),
        BarColumn(),
        TaskProgressColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=console, refresh_per_second=5) as progress:
        yield {name: Bar(progress, name, batches=batches) for name in names}


class Bar(Callback):
    """A bar that moves with each training batch."""

    def __init__(self, progress: Progress, name: str, *, batches: int) -> None:
        self._progress = progress
        self._task = progress.add_task(name, total=batches, start=False, note="")

    def start(self) -> Callback:
        self._progress.start_task(self._task)
        return self

    def on_batch_end(self, *, state: TrainerState, **kwargs: Any) -> None:
        if state.stage == "training":
            self._progress.advance(self._task)

    def on_validation_end(self, *, state: TrainerState, metrics: Metrics, **kwargs: Any) -> None:
        note = f"epoch {state.current_epoch} of {state.num_epochs}, accuracy {last_values(metrics)['accuracy']:.1%}"
        self._progress.update(self._task, note=note)

    def on_train_end(self, **kwargs: Any) -> None:
        self._progress.update(self._task, note="trained; callbacks finish")

    def finish(self) -> None:
        self._progress.update(self._task, note="done, all files written")
        self._progress.stop_task(self._task)


class Lines(Callback):
    """A plain line for a few of the epochs, and one at the end."""

    def __init__(self, console: Console, name: str) -> None:
        self._console = console
        self._name = name
        self._started = 0.0

    def start(self) -> Callback:
        self._started = time.perf_counter()
        return self

    def on_validation_end(self, *, state: TrainerState, metrics: Metrics, **kwargs: Any) -> None:
        if state.current_epoch == state.num_epochs or state.current_epoch % -(-state.num_epochs // LINES) == 0:
            self._say(
                f"epoch {state.current_epoch} of {state.num_epochs}, accuracy {last_values(metrics)['accuracy']:.1%}"
            )

    def finish(self) -> None:
        self._say("done, all files written")

    def _say(self, text: str) -> None:
        seconds = time.perf_counter() - self._started
        self._console.print(f"{self._name:<10} {seconds:6.1f} s  {text}", highlight=False, soft_wrap=True)
