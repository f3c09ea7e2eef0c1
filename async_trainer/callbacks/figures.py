"""Figures: what a function draws of each validation, as PNG files."""

from __future__ import annotations

import inspect
import os
import sys
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
from pandas import DataFrame
from torch import nn

from async_trainer.callback import Callback
from async_trainer.callbacks.run_folder import given_folder, split_folder
from async_trainer.callbacks.values import check_counts
from async_trainer.errors import ConfigurationError
from async_trainer.files.atomic import atomic_write
from async_trainer.runtime.placement.child import supported
from async_trainer.snapshot import capture
from async_trainer.suggest import refuse_unknown_options, suggestion
from async_trainer.train.state import TrainerState

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NAMES = ("state", "metrics", "detailed_metrics_df", "outputs", "model", "maps")
"""What a drawing function may name."""


class Figures(Callback):
    """Draws a figure at the end of a validation: ``epoch-003.png``, there as a whole or not at all.

    ::

        def residuals(*, state, outputs):
            figure = matplotlib.figure.Figure()
            errors = torch.cat([output["preds"] - output["target"] for output in outputs])
            figure.subplots().hist(errors.numpy(), bins=50)
            return figure

        Figures(residuals)

    What the function does not name is not captured. It runs in a process of its own: drawing is Python, and in a
    thread would take the interpreter from the training. A lambda, a closure, a function of a script is sent there once;
    what it changes there is not seen here. Where that won't do: ``background(Figures(draw), placement="thread")``. It
    makes its figure of ``matplotlib.figure.Figure``, without pyplot, which keeps global state and is for the main
    thread. The figure is let go once it is written.

    Args:
        draw: names what it needs, as keywords: ``state``; ``metrics`` (the results so far); ``detailed_metrics_df``
            (one frame, a row per sample of this validation); ``outputs`` (what the evaluation steps returned, a list);
            ``model`` (captured once per figure); ``maps``. Returns a ``matplotlib.figure.Figure``, or None for no
            figure.
        every: draw in the epochs that this divides. What other epochs bring is not captured.
        folder: where to; made if need be. Default: ``figures`` in the logs of the split, in the ``maps`` of the run.

    Raises:
        ConfigurationError: an argument that can't work: ``draw`` names something else; matplotlib is not installed.
            At the start of a training: no folder is given, and the run has no maps.
    """

    @refuse_unknown_options
    def __init__(
        self,
        draw: Callable[..., Figure | None],
        *,
        every: int = 1,
        folder: str | os.PathLike[str] | None = None,
    ) -> None:
        if find_spec("matplotlib") is None:
            raise ConfigurationError("Figures need matplotlib: pip install matplotlib")
        self._names = _names_of(draw)
        check_counts("Figures", every=every)
        self.draw = draw
        self.every = every
        self.folder = given_folder(self, folder)
        self._collecting = False
        self._outputs: list[Any] = []
        self._frames: list[DataFrame] = []

    def __repr__(self) -> str:
        return f"Figures({getattr(self.draw, '__name__', self.draw)}, every={self.every})"

    @property
    def background(self) -> Mapping[str, Any]:  # type: ignore[override]  # each instance has its own ``when``
        """In the background by default, with what the function names."""
        collecting = ("on_validation_start", "on_metrics_computation_start", "on_metrics_computation_end")
        when = {event: self._wanted_of(event) for event in (*collecting, "on_validation_end")}
        unnamed = [name for name in ("metrics", "model") if name not in self._names]
        return {
            "on_error": "raise_at_end",
            "placement": "process"
            if supported()
            else "thread",  # drawing is Python, which a thread does beside the loop
            "when": when,
            "select": dict.fromkeys(unnamed),
        }

    def _wanted_of(self, event: str) -> Callable[..., bool]:
        """The function of the training thread that says whether ``event`` is to be captured."""
        if event == "on_metrics_computation_start" and "outputs" not in self._names:
            return _never
        if event == "on_metrics_computation_end" and "detailed_metrics_df" not in self._names:
            return _never
        return self._draws_in

    def _draws_in(self, *, state: TrainerState, **live: Any) -> bool:
        return state.current_epoch % self.every == 0 and getattr(state, "called", None) not in ("validate", "test")

    def check_training(self, **arguments: Any) -> list[Path]:
        """Refuse a training without a place to write to."""
        return [self._folder(arguments.get("maps"), arguments.get("state")) / "epoch-*.png"]

    def on_validation_start(self, *, state: TrainerState) -> None:
        self._outputs, self._frames = [], []
        self._collecting = self._draws_in(state=state)

    def on_metrics_computation_start(self, *, output: Any) -> None:
        if self._collecting and "outputs" in self._names:
            self._outputs.append(capture(output))  # inline too: a loop may use its buffers again

    def on_metrics_computation_end(self, *, detailed_metrics_df: DataFrame) -> None:
        if self._collecting and "detailed_metrics_df" in self._names:
            self._frames.append(capture(detailed_metrics_df))

    def on_validation_end(
        self, *, model: nn.Module | None = None, maps: Any = None, state: TrainerState, metrics: Any = None
    ) -> None:
        if not self._draws_in(state=state):
            return
        if not self._collecting and {"outputs", "detailed_metrics_df"} & set(self._names):
            raise RuntimeError(
                f"{self!r} lacks a part of this validation: it came in its middle, or the process that had it died"
            )
        frames = self._frames
        given = {
            "state": state,
            "metrics": metrics,
            "detailed_metrics_df": pd.concat(frames, ignore_index=True) if frames else DataFrame(),
            "outputs": self._outputs,
            "model": model,
            "maps": maps,
        }
        figure = self.draw(**{name: given[name] for name in self._names})
        if figure is not None:
            write_figure(figure, self._folder(maps, state) / f"epoch-{state.current_epoch:03d}.png", repr(self))
        self._collecting = False
        self._outputs, self._frames = [], []  # kept until now: the hook may be tried again

    def _folder(self, maps: Any, state: TrainerState | None) -> Path:
        if self.folder is not None:
            return self.folder
        logs: Path = split_folder(self, maps, state).logs
        return logs / "figures"


def write_figure(figure: Any, path: Path, where: str) -> None:
    """Write ``figure`` as a PNG, and let it go. Any thread.

    Raises:
        TypeError: it is no figure; ``where`` names what returned it.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    if not isinstance(figure, Figure):
        raise TypeError(f"{where} returned a {type(figure).__name__}, not a matplotlib.figure.Figure or None")
    try:
        canvas = FigureCanvasAgg(figure)  # whatever backend there is, none of its windows
        with atomic_write(path) as file:
            canvas.print_png(file)  # type: ignore[no-untyped-call]
    finally:
        figure.clear()
        pyplot = sys.modules.get("matplotlib.pyplot")
        if pyplot is not None:  # or it would keep a figure that it has made
            pyplot.close(figure)


def _never(**live: Any) -> bool:
    return False


def _names_of(draw: Any) -> tuple[str, ...]:
    wanted = f"it is called with what it names of {', '.join(NAMES)}"
    if not callable(draw) or inspect.isclass(draw):
        raise ConfigurationError(f"Figures: draw must be a function, not {draw!r}: {wanted}")
    if inspect.iscoroutinefunction(draw):
        raise ConfigurationError(f"Figures: draw must be a plain function, as nothing awaits it, not {draw!r}")
    try:
        parameters = inspect.signature(draw).parameters.values()
    except (TypeError, ValueError) as error:
        raise ConfigurationError(f"Figures: the signature of draw={draw!r} can't be read; wrap it in a def") from error
    names = []
    for parameter in parameters:
        if parameter.kind in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL):
            continue
        if parameter.kind is parameter.POSITIONAL_ONLY:
            raise ConfigurationError(f"Figures: draw must take {parameter.name!r} as a keyword: {wanted}")
        if parameter.name in NAMES:
            names.append(parameter.name)
        elif parameter.default is parameter.empty:
            hint = suggestion(parameter.name, NAMES)
            raise ConfigurationError(f"Figures: draw names {parameter.name!r}{hint}; {wanted}")
    return tuple(names)
