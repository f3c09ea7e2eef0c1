"""Figures: what a function makes of a validation, captured only as far as it is named, and let go once written."""

from __future__ import annotations

import functools
import gc
import os
import sys
import threading
import weakref
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cloudpickle
import pandas as pd
import pytest
import torch

pytest.importorskip("matplotlib")

import matplotlib
from matplotlib.figure import Figure

from async_trainer import CallbacksHandler, TrainerState, background, inline
from async_trainer.callbacks.figures import Figures, write_figure
from async_trainer.errors import ConfigurationError, LaneError
from async_trainer.testing import check_callback, play
from async_trainer.train.maps import Maps

thread = functools.partial(background, placement="thread")
WAYS = pytest.mark.parametrize("wrap", [inline, thread, background], ids=["inline", "thread", "process"])
HERE = pytest.mark.parametrize("wrap", [inline, thread], ids=["inline", "thread"])
"""Where a drawing function and its test see the same lists."""
PNG = b"\x89PNG\r\n\x1a\n"


def plot(values: Any) -> Figure:
    figure = Figure(figsize=(1, 1), dpi=20)
    figure.subplots().plot(values)
    return figure


def validate(
    handler: CallbacksHandler, epoch: int, *, called: str = "train", maps: Any = None, model: Any = None
) -> None:
    """A validation of two batches, whose outputs are overwritten as soon as their event is over."""
    state = TrainerState(called=called, current_epoch=epoch, split_idx=0)
    always = {"model": model, "maps": maps, "state": state}
    metrics = {"loss": float(epoch)}
    handler.call_event("on_validation_start", **always, metrics=metrics)
    output = torch.zeros(2)
    for number in (1, 2):
        output.fill_(10 * epoch + number)
        handler.call_event("on_metrics_computation_start", **always, output={"preds": output}, metrics=metrics)
        frame = pd.DataFrame({"sample": [number], "loss": [float(epoch)]})
        handler.call_event("on_metrics_computation_end", **always, detailed_metrics_df=frame)
    handler.call_event("on_validation_end", **always, metrics=metrics)


@HERE
def test_the_function_gets_what_it_names_of_this_validation(tmp_path: Path, wrap: Callable[[Any], Any]) -> None:
    seen: list[Any] = []

    def draw(
        *, outputs: Any, detailed_metrics_df: Any, metrics: Any, state: Any, other: int = 3, **kwargs: Any
    ) -> None:
        assert kwargs == {}
        values = [output["preds"].tolist() for output in outputs]
        seen.append((state.current_epoch, values, list(detailed_metrics_df["sample"]), metrics["loss"], other))

    with CallbacksHandler([wrap(Figures(draw, folder=tmp_path))]) as handler:
        validate(handler, 1)
        validate(handler, 2)
    assert seen == [
        (1, [[11, 11], [12, 12]], [1, 2], 1.0, 3),
        (2, [[21, 21], [22, 22]], [1, 2], 2.0, 3),
    ]
    assert list(tmp_path.iterdir()) == []  # None: no figure


@WAYS
def test_a_figure_of_each_epoch_that_every_divides_goes_to_the_logs_of_the_split(
    tmp_path: Path, wrap: Callable[[Any], Any]
) -> None:
    maps = Maps(tmp_path)
    with CallbacksHandler([wrap(Figures(lambda outputs: plot(outputs[0]["preds"]), every=2))]) as handler:
        for epoch in (1, 2, 3, 4):
            validate(handler, epoch, maps=maps)
        validate(handler, 6, called="validate", maps=maps)
    written = sorted((maps.split(0).logs / "figures").iterdir())
    assert [path.name for path in written] == ["epoch-002.png", "epoch-004.png"]
    assert all(path.read_bytes().startswith(PNG) for path in written)


def test_what_the_function_does_not_name_is_not_captured(tmp_path: Path) -> None:
    handler = CallbacksHandler([thread(Figures(lambda state: plot([state.current_epoch]), every=2, folder=tmp_path))])
    with handler:
        validate(handler, 1, model=threading.Lock())  # no copy can be made of it
        assert handler.stats().captures == 0
        validate(handler, 2, model=threading.Lock())
        assert handler.stats().captures == 2  # the start and the end of the validation
    assert [path.name for path in tmp_path.iterdir()] == ["epoch-002.png"]


def test_a_figure_is_let_go_once_it_is_written(tmp_path: Path) -> None:
    made: list[weakref.ref[Figure]] = []

    def draw() -> Figure:
        figure = plot([1, 2])
        made.append(weakref.ref(figure))
        return figure

    with CallbacksHandler([thread(Figures(draw, folder=tmp_path))]) as handler:
        validate(handler, 1)
        handler.flush()
        gc.collect()
        assert made[0]() is None


def test_pyplot_is_not_needed_and_lets_go_of_what_it_has_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)  # importing it is an error
    write_figure(plot([1]), tmp_path / "a.png", "")
    closed: list[Figure] = []
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", SimpleNamespace(close=closed.append))
    figure = plot([1])
    write_figure(figure, tmp_path / "b.png", "")
    assert closed == [figure]
    assert {path.name for path in tmp_path.iterdir()} == {"a.png", "b.png"}


@WAYS
def test_a_lambda_survives_cloudpickle(tmp_path: Path, wrap: Callable[[Any], Any]) -> None:
    factor = 3
    record = wrap(Figures(lambda state: plot([factor * state.current_epoch]), folder=tmp_path))
    with CallbacksHandler([cloudpickle.loads(cloudpickle.dumps(record))]) as handler:
        validate(handler, 1)
    assert [path.name for path in tmp_path.iterdir()] == ["epoch-001.png"]


def test_a_function_that_fails_or_returns_something_else_is_raised_at_the_end(tmp_path: Path) -> None:
    def draw(*, state: Any) -> Any:
        if state.current_epoch == 1:
            raise ZeroDivisionError
        return plot([1]) if state.current_epoch == 3 else "a figure"

    handler = CallbacksHandler([Figures(draw, folder=tmp_path)])
    for epoch in (1, 2, 3):
        validate(handler, epoch)
    with pytest.raises(LaneError) as raised:
        handler.close()
    assert raised.value.report is not None
    assert raised.value.report.failed == 2
    assert [path.name for path in tmp_path.iterdir()] == ["epoch-003.png"]
    with pytest.raises(TypeError, match=r"Figures\(draw, every=1\) returned a str, not a matplotlib.figure.Figure"):
        Figures(draw, folder=tmp_path).on_validation_end(state=TrainerState(current_epoch=2))


@HERE
def test_a_validation_that_broke_off_leaves_nothing_to_the_next(tmp_path: Path, wrap: Callable[[Any], Any]) -> None:
    seen: list[int] = []
    with CallbacksHandler([wrap(Figures(lambda outputs: seen.append(len(outputs)), folder=tmp_path))]) as handler:
        state = TrainerState(called="train", current_epoch=1)
        handler.call_event("on_validation_start", state=state)
        handler.call_event("on_metrics_computation_start", state=state, output=torch.zeros(2))
        validate(handler, 2)
    assert seen == [2]


def test_a_hook_that_is_tried_again_draws_the_same(tmp_path: Path) -> None:
    seen: list[int] = []

    def draw(*, outputs: Any, detailed_metrics_df: Any) -> Figure:
        seen.append(len(outputs) + len(detailed_metrics_df))
        if len(seen) == 1:
            raise OSError("once")
        return plot([1])

    with CallbacksHandler([thread(Figures(draw, folder=tmp_path), retries=1, backoff=0)]) as handler:
        validate(handler, 1)
    assert seen == [4, 4]


def test_it_draws_in_a_process_unless_told_otherwise(tmp_path: Path) -> None:
    pids = tmp_path / "pids"

    def draw() -> Figure:
        pids.write_text(str(os.getpid()))
        assert matplotlib.get_backend().lower() == "agg"
        return plot([1])

    with CallbacksHandler([Figures(draw, folder=tmp_path)]) as handler:
        validate(handler, 1)
        assert handler.stats().lanes["figures"].placement == "process"
    assert int(pids.read_text()) != os.getpid()


def test_what_the_function_holds_on_to_must_be_sendable(tmp_path: Path) -> None:
    lock = threading.Lock()
    with pytest.raises(ConfigurationError, match=r"Figures\.draw \(its lock\) can't be sent to a process"):
        CallbacksHandler([Figures(lambda: lock.locked() or None, folder=tmp_path)])


@pytest.mark.slow
def test_a_process_that_dies_in_a_validation_leaves_no_figure_of_half_of_it(tmp_path: Path) -> None:
    class Dies(Figures):
        def on_metrics_computation_start(self, *, output: Any) -> None:
            super().on_metrics_computation_start(output=output)
            if output["preds"][0] == 12 and not (tmp_path / "died").exists():
                (tmp_path / "died").touch()
                os._exit(3)

    def draw(outputs: list[Any]) -> Figure:
        with (tmp_path / "drawn").open("a") as file:
            print(len(outputs), file=file)
        return plot([len(outputs)])

    handler = CallbacksHandler([background(Dies(draw, folder=tmp_path), name="dies")])
    validate(handler, 1)
    validate(handler, 2)
    # Where it died before it was known that its first events had been handled, all of them came again.
    told = ""
    try:
        handler.close()
    except LaneError as error:
        told = str(error)
    assert told == "" or "lacks a part of this validation" in told
    figures = {"epoch-002.png"} if told else {"epoch-001.png", "epoch-002.png"}
    assert {path.name for path in tmp_path.iterdir()} == {"died", "drawn", *figures}
    counts = (tmp_path / "drawn").read_text().split()
    assert counts == counts[-1:] * len(figures)


@pytest.mark.slow
def test_it_does_the_same_however_it_runs() -> None:
    def draw(*, outputs: Any, detailed_metrics_df: Any, model: Any, state: Any) -> Figure:
        values = [value.double().sum().item() for output in outputs for value in output.values()]
        weights = [weight.sum().item() for weight in model.parameters()]
        return plot([*values, *weights, len(detailed_metrics_df), state.optim_step])

    check_callback(lambda directory: Figures(draw, every=2, folder=directory))


@pytest.mark.slow
def test_it_draws_in_a_whole_training(tmp_path: Path) -> None:
    assert play(Figures(lambda metrics, outputs: plot([len(outputs)]), folder=tmp_path)).failed == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["epoch-001.png", "epoch-002.png"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"draw": 3}, "draw must be a function, not 3"),
        ({"draw": Figure}, "draw must be a function"),
        ({"draw": lambda output: None}, "draw names 'output'; did you mean 'outputs'"),
        ({"draw": lambda state, /: None}, "must take 'state' as a keyword"),
        ({"every": 0}, "every must be a whole number, 1 or more"),
        ({"every": True}, "every must be a whole number, 1 or more"),
        ({"folder": 1}, "folder must be a path"),
        ({"evry": 1}, "did you mean 'every'"),
    ],
)
def test_arguments_that_can_not_work_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        Figures(**{"draw": lambda: None, **arguments})


def test_an_async_function_is_refused() -> None:
    async def draw() -> None: ...

    with pytest.raises(ConfigurationError, match="nothing awaits it"):
        Figures(draw)  # type: ignore[arg-type]


def test_a_training_without_a_folder_says_so_at_its_start() -> None:
    with pytest.raises(ConfigurationError, match="give a folder="):
        Figures(lambda: None).check_training(state=TrainerState(split_idx=0))
