"""The events of train, validate and test: their order, their arguments, the state at each; as recorded, and beyond."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.train.kit import (
    EE,
    ES,
    EXC,
    INIT,
    TE,
    TS,
    VE,
    VS,
    Boom,
    FailsAt,
    Recorder,
    Stops,
    T,
    TeE,
    TeS,
    V,
    VaE,
    VaS,
    loader,
    split,
    t,
    trainer,
)  # fmt: skip

TRACES = Path(__file__).parents[1] / "data" / "traces"
OURS = {"SupervisedModel": "FailsAt", "Batch": "dict"}  # a batch is whatever the loader gives


def trace(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (TRACES / f"{name}.jsonl").read_text().splitlines()]


def compare(recorded: list[dict[str, Any]], expected: list[dict[str, Any]], types: dict[str, str]) -> None:
    assert [row["event"] for row in recorded] == [row["event"] for row in expected]
    for row, wanted in zip(recorded, expected, strict=True):
        kwargs = {name: types.get(kind, kind) for name, kind in wanted["kwargs"].items()}
        assert row == {**wanted, "kwargs": kwargs}


def test_two_epochs_then_validate_then_test_as_recorded(tmp_path: Path) -> None:
    recorder = Recorder()
    study = trainer(tmp_path, [recorder])
    study.train(split())
    compare(recorder.take(), trace("basic"), {"Batch": "dict"})
    study.validate(0, ["loss"], model_checkpoint="final")
    compare(recorder.take(), trace("validate_one"), {"Batch": "dict"})
    best = study.maps.split(0).checkpoints / "best-loss.pt"
    best.write_bytes(study.maps.split(0).checkpoint("final").read_bytes())
    study.test("split-0_best-loss", "held-out", dataloader=loader(14, 4))
    compare(recorder.take(), trace("test"), {"Batch": "dict"})


def test_an_error_in_the_eighth_forward_step_as_recorded(tmp_path: Path) -> None:
    recorder = Recorder()
    model = FailsAt(Boom("forward call 8"), forward=8)
    with pytest.raises(Boom, match="forward call 8"):
        trainer(tmp_path, [recorder], model=model, num_epochs=3).train(split())
    events = [row for row in trace("exception") if row["event"] != "state_dict"]  # its run captured resume state
    compare(recorder.take(), events, OURS)


def test_accumulation_steps_at_the_tail_of_an_epoch_too(tmp_path: Path) -> None:
    recorder = Recorder()
    trainer(tmp_path, [recorder], accumulation_steps=2).train(split())
    assert recorder.names == INIT + TS + 2 * (ES + t + T + t + T + T + VS + 2 * V + VE + EE) + TE


def test_the_tail_of_a_loader_that_has_no_length_steps_before_the_validation(tmp_path: Path) -> None:
    class Unsized:
        def __iter__(self) -> Any:
            return iter(loader(0, 6))

    from async_trainer import Split

    recorder = Recorder()
    trainer(tmp_path, [recorder], accumulation_steps=2).train(Split(0, Unsized(), loader(10, 4)))
    step = ["on_optimization_step_start", "on_optimization_step_end"]
    assert recorder.names == INIT + TS + 2 * (ES + t + T + t + step + VS + 2 * V + VE + EE) + TE


def test_validation_every_second_epoch(tmp_path: Path) -> None:
    recorder = Recorder()
    trainer(tmp_path, [recorder], num_epochs=3, evaluation_interval=2).train(split())
    plain = ES + 5 * T + EE
    assert recorder.names == INIT + TS + plain + ES + 5 * T + VS + 2 * V + VE + EE + plain + TE


def test_a_callback_stops_the_training_at_the_end_of_an_epoch(tmp_path: Path) -> None:
    recorder = Recorder()
    trainer(tmp_path, [Stops(2), recorder], num_epochs=5).train(split())
    assert recorder.names == INIT + TS + 2 * (ES + 5 * T + VS + 2 * V + VE + EE) + TE


def test_validating_all_checkpoints_is_a_run_for_each(tmp_path: Path) -> None:
    recorder = Recorder()
    study = trainer(tmp_path)
    study.train(split())
    final = study.maps.split(0).checkpoint("final")
    final.with_name("epoch-1.pt").write_bytes(final.read_bytes())
    study.add_callbacks([recorder])
    frame = study.validate(0, ["loss"])
    assert recorder.names == 2 * (VaS + 2 * V + VaE)
    assert list(frame["model_checkpoint"]) == ["epoch-1", "final"]


def test_testing_is_one_run(tmp_path: Path) -> None:
    recorder = Recorder()
    study = trainer(tmp_path)
    study.train(split())
    study.add_callbacks([recorder])
    study.test("split-0_final", "held-out", dataloader=loader(14, 4))
    assert recorder.names == TeS + 2 * V + TeE


def test_an_error_in_the_validation_ends_the_training(tmp_path: Path) -> None:
    recorder = Recorder()
    with pytest.raises(Boom):
        trainer(tmp_path, [recorder], model=FailsAt(Boom(), evaluation=2)).train(split())
    head = INIT + TS + ES + 5 * T + VS
    assert recorder.names == head + V + ["on_batch_start", "on_evaluation_step_start"] + EXC
    assert recorder.rows[-1]["state"]["stage"] == "evaluation"
    assert torch.is_grad_enabled()


def test_an_error_in_an_inline_callback_ends_the_training(tmp_path: Path) -> None:
    class Fails:
        def on_batch_end(self) -> None:
            raise Boom

    recorder = Recorder()
    with pytest.raises(Boom):
        trainer(tmp_path, [recorder, Fails()]).train(split())
    assert recorder.names == INIT + TS + ES + T + EXC


@pytest.mark.parametrize("run", ["validate", "test"])
def test_errors_while_validating_and_testing_are_told_too(tmp_path: Path, run: str) -> None:
    recorder = Recorder()
    study = trainer(tmp_path, [recorder], model=FailsAt(Boom(), evaluation=6))
    study.train(split())
    recorder.take()
    start, evaluate = {
        "validate": (VaS, lambda: study.validate(0)),
        "test": (TeS, lambda: study.test("split-0_final", "held-out", dataloader=loader(14, 4))),
    }[run]
    with pytest.raises(Boom):
        evaluate()
    assert recorder.names == start + V + ["on_batch_start", "on_evaluation_step_start"] + EXC


def test_state_at_the_optimization_step_is_as_documented(tmp_path: Path) -> None:
    seen = []

    class Looks:
        def on_optimization_step_start(self, *, model: Any, state: Any) -> None:
            seen.append((state.optim_step, all(p.grad is not None for p in model.parameters())))

        def on_optimization_step_end(self, *, model: Any, state: Any) -> None:
            seen.append((state.optim_step, any(p.grad is not None for p in model.parameters())))

    trainer(tmp_path, [Looks()], num_epochs=1).train(split(batches=2))
    assert seen == [(0, True), (1, False), (1, True), (2, False)]


def test_metrics_are_aggregated_before_on_validation_end_and_not_before_the_last_batch_end(tmp_path: Path) -> None:
    seen: list[tuple[str, int]] = []

    class Looks:
        def on_batch_end(self, *, state: Any, metrics: Any) -> None:
            if state.stage == "evaluation":
                seen.append(("batch", len(metrics.df)))

        def on_validation_end(self, *, metrics: Any) -> None:
            seen.append(("end", len(metrics.df)))

    trainer(tmp_path, [Looks()], num_epochs=1).train(split())
    assert seen == [("batch", 0), ("batch", 0), ("end", 1)]
