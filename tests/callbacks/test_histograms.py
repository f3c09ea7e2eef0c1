"""Histograms: what TensorBoard's own reader finds of weights and gradients."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("tensorboard")

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from async_trainer import CallbacksHandler, TrainerState, background, inline
from async_trainer.callbacks.histograms import Histograms
from async_trainer.errors import ConfigurationError
from async_trainer.testing import check_callback, hold, play
from async_trainer.train.maps import Maps


def values(one: Any) -> tuple[Any, ...]:
    return one.min, one.max, one.num, one.sum, one.sum_squares, list(one.bucket_limit), list(one.bucket)


def read(folder: Path) -> dict[str, Any]:
    reader = EventAccumulator(str(folder), size_guidance={"histograms": 0, "scalars": 0}).Reload()
    tags = reader.Tags()
    found: dict[str, Any] = {
        tag: [(one.step, *values(one.histogram_value)) for one in reader.Histograms(tag)] for tag in tags["histograms"]
    }
    return found | {tag: [(one.step, one.value) for one in reader.Scalars(tag)] for tag in tags["scalars"]}


@pytest.mark.slow
def test_it_does_the_same_inline_and_in_the_background_and_after_a_resume() -> None:
    check_callback(lambda directory: Histograms(directory, every=2), read=read)


@pytest.mark.parametrize("wrap", [inline, background])
def test_they_are_of_the_values_at_the_step_and_nothing_is_lost_in_the_bins(
    tmp_path: Path, wrap: Callable[[Any], Any]
) -> None:
    model = torch.nn.Linear(50, 4)
    expected = model.weight.detach().double().numpy().ravel()
    handler = CallbacksHandler([wrap(Histograms(tmp_path, every=2, bins=8))])
    handler.call_event("on_train_start", state=TrainerState(), model=model)
    model.weight.grad = torch.ones_like(model.weight)
    model.weight.grad[0, 0] = torch.nan
    with hold(handler):
        for number in range(2):
            state = TrainerState(called="train", optim_step=number)
            handler.call_event("on_optimization_step_start", state=state, model=model)
        with torch.no_grad():
            model.weight.fill_(7)
            model.weight.grad.fill_(7)
    handler.call_event("on_train_end", state=TrainerState(), model=model)
    handler.close().raise_for_errors()
    found = read(tmp_path)
    assert set(found) == {"weights/weight", "weights/bias", "gradients/weight", "nonfinite/gradients/weight"}
    ((step, low, high, count, total, squares, edges, counts),) = found["weights/weight"]
    assert (step, low, high, count) == (2, expected.min(), expected.max(), 200)
    assert total == pytest.approx(expected.sum())
    assert squares == pytest.approx(np.square(expected).sum())
    assert list(counts) == list(np.histogram(expected, bins=8)[0])
    assert len(edges) == 8
    assert found["gradients/weight"][0][2:6] == (1.0, 199, 199.0, 199.0)
    assert found["nonfinite/gradients/weight"] == [(2, 1.0)]


def test_by_default_they_go_beside_those_of_tensorboard(tmp_path: Path) -> None:
    play(Histograms(every=3, gradients=False), epochs=2, batches=3, directory=tmp_path).raise_for_errors()
    found = read(Maps(tmp_path).split(0).logs / "tensorboard-histograms")
    assert {tag.partition("/")[0] for tag in found} == {"weights"}
    assert all([one[0] for one in ones] == [3, 6] for ones in found.values())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"every": 0}, "Histograms: every must be"), ({"bins": 0}, "bins must be"), ({"binz": 3}, "did you mean 'bins'")],
)
def test_a_bad_argument_is_refused_by_name(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        Histograms(**arguments)


def test_of_complex_weights_both_parts_are_counted(tmp_path: Path) -> None:
    model = torch.nn.Linear(2, 1, bias=False, dtype=torch.complex64)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[1 + 5j, 2 - 3j]]))
    with CallbacksHandler([background(Histograms(tmp_path, every=1))]) as handler:
        handler.call_event("on_train_start", state=TrainerState(), model=model)
        handler.call_event("on_optimization_step_start", state=TrainerState(called="train"), model=model)
        handler.call_event("on_train_end", state=TrainerState(), model=model)
    ((_, low, high, count, *_),) = read(tmp_path)["weights/weight"]
    assert (low, high, count) == (-3.0, 5.0, 4.0)


@pytest.mark.parametrize("weights", [[1e30], [1e18, 1e18], [1.0, 1.0000001], [1e-44, 3e-44], [0.0, 0.0], [3e38, -3e38]])
def test_values_too_close_for_so_many_bins_are_counted_all_the_same(tmp_path: Path, weights: list[float]) -> None:
    model = torch.nn.Linear(len(weights), 1, bias=False)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([weights]))
    model.weight.grad = model.weight.detach().clone()
    handler = CallbacksHandler([background(Histograms(tmp_path, every=1))])
    handler.call_event("on_train_start", state=TrainerState(), model=model)
    handler.call_event("on_optimization_step_start", state=TrainerState(called="train"), model=model)
    handler.call_event("on_train_end", state=TrainerState(), model=model)
    handler.close().raise_for_errors()
    for tag in ("weights/weight", "gradients/weight"):
        ((_, _, _, count, _, _, edges, counts),) = read(tmp_path)[tag]
        assert count == sum(counts) == len(weights)
        assert (np.diff(edges) >= 0).all()


def test_values_at_the_ends_of_double_precision_are_counted(tmp_path: Path) -> None:
    model = torch.nn.Linear(3, 1, bias=False, dtype=torch.float64)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[-1.7e308, 0.0, 1.7e308]], dtype=torch.float64))
    handler = CallbacksHandler([background(Histograms(tmp_path, every=1, bins=3))])
    handler.call_event("on_train_start", state=TrainerState(), model=model)
    handler.call_event("on_optimization_step_start", state=TrainerState(called="train"), model=model)
    handler.close().raise_for_errors()
    ((_, low, high, count, _, _, edges, counts),) = read(tmp_path)["weights/weight"]
    assert (low, high, count, counts) == (-1.7e308, 1.7e308, 3, [1.0, 1.0, 1.0])
    assert np.isfinite(edges).all()
    assert (np.diff(edges) > 0).all()


def test_a_tensor_that_can_not_be_written_is_named_and_costs_no_other(tmp_path: Path) -> None:
    model = torch.nn.Module()
    model.first = torch.nn.Parameter(torch.ones(2))
    model.odd = torch.nn.Parameter(torch.ones(2, device="meta"))
    model.last = torch.nn.Parameter(torch.ones(2))
    log = Histograms(tmp_path, every=1)
    log.on_train_start(state=TrainerState())
    with pytest.raises(ValueError, match="Histograms: weights/odd can't be written"):
        log.on_optimization_step_start(state=TrainerState(called="train"), model=model)
    log.on_train_end()
    assert list(read(tmp_path)) == ["weights/first", "weights/last"]
