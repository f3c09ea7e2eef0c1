"""Weights that change other than in a step: what is seen fails that event's hook, and fence() makes it right."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from async_trainer.errors import CaptureError
from tests.overlap.kit import OPTIMIZERS, Net, PacedCopier, Run, forward, train


def halve_unseen(model: Any) -> None:
    for weight in model.parameters():
        weight.data.mul_(0.5)


def halve(model: Any) -> None:
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(0.5)


def halve_foreach(model: Any) -> None:
    with torch.no_grad():
        torch._foreach_mul_(list(model.parameters()), 0.5)


def load(model: Any) -> None:
    model.load_state_dict({name: value * 0.5 for name, value in model.state_dict().items()})


@pytest.mark.parametrize("change", [halve_unseen, halve, halve_foreach, load])
def test_fence_makes_a_change_by_other_means_right(change: Any, pace: PacedCopier) -> None:
    model = Net(norm=False)
    run = Run(model, OPTIMIZERS["adam fused"](model.parameters()))
    for seed in range(3):
        forward(run, seed).backward()
        run.event()
        run.handler.fence()
        change(model)
        run.event()
        run.optimizers.step()
    pace.open()
    run.check()
    assert pace.late
    run.handler.close()


def test_without_fence_an_unseen_change_is_in_the_capture_as_the_docs_say(pace: PacedCopier) -> None:
    model = Net(norm=False)
    run = Run(model, OPTIMIZERS["sgd"](model.parameters()))
    run.event()
    halve_unseen(model)
    pace.open()
    assert run.torn()
    run.handler.close()


@pytest.mark.parametrize("change", [halve, halve_foreach, load])
def test_a_change_that_torch_tells_of_fails_that_event_alone(change: Any, pace: PacedCopier) -> None:
    model = Net(norm=False)
    run = Run(model, OPTIMIZERS["sgd"](model.parameters()))
    run.event()
    change(model)
    expected = [weight.detach().clone() for weight in model.parameters()]
    run.handler.fence()
    run.event()
    pace.open()
    assert not run.torn()
    (failure,) = run.handler.stats().errors
    assert isinstance(failure.error, CaptureError)
    assert "model: weights were changed while they were copied" in str(failure.error)
    assert "handler.fence()" in str(failure.error)
    assert list(run.sees.seen) == [1]
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), expected, strict=True))
    train(run, 2)
    assert len(run.sees.seen) == 1 + 6 or not run.torn()
    assert len(run.sees.seen) == 1 + 6
    run.handler.close()


def test_memory_that_is_freed_fails_that_event_and_the_loop_goes_on(pace: PacedCopier) -> None:
    model = Net(norm=False)
    run = Run(model, OPTIMIZERS["sgd"](model.parameters()))
    run.event()
    storage = model.first.weight.untyped_storage()
    nbytes = storage.nbytes()
    storage.resize_(0)
    run.handler.fence()
    storage.resize_(nbytes)
    model.first.weight.data.zero_()
    pace.open()
    train(run, 2)
    assert not run.torn()
    (failure,) = run.handler.stats().errors
    assert "freed" in str(failure.error)
    assert sorted(run.sees.seen) == [1, 2, 3, 4, 5, 6]
    run.handler.close()


def test_memory_that_was_freed_before_the_event_fails_it_too() -> None:
    model = Net(norm=False)
    model.average = torch.nn.Linear(300, 300).requires_grad_(False)
    run = Run(model, OPTIMIZERS["sgd"]([*model.first.parameters()]))
    run.event()
    run.references.clear()
    run.handler.flush()
    run.sees.seen.clear()
    model.average.weight.untyped_storage().resize_(0)
    run.handler.call_event("on_batch_end", step=0)
    run.handler.flush()
    assert not run.sees.seen
    (failure,) = run.handler.stats().errors
    assert "freed" in str(failure.error)
    run.handler.close()


def test_an_error_of_the_copier_is_the_hooks_and_the_training_goes_on(pace: PacedCopier) -> None:
    model = Net()
    run = Run(model, OPTIMIZERS["adam fused"](model.parameters()))
    pace.broken = MemoryError("no more")
    train(run, 1)
    run.handler.fence()
    pace.broken = None
    train(run, 1)
    pace.open()
    assert not run.torn()
    assert sorted(run.sees.seen) == [3, 4, 5]
    (failure,) = run.handler.stats().errors
    assert isinstance(failure.error, CaptureError)
    assert "no more" in str(failure.error)
    assert run.handler.stats().snapshot_bytes == 0
    run.handler.close()


def test_without_a_thread_for_the_copier_copies_are_made_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_more(*_: Any) -> None:
        raise RuntimeError("can't start new thread")

    model = Net()
    run = Run(model, OPTIMIZERS["adam fused"](model.parameters()))
    run.handler.call_event("on_batch_start")
    with monkeypatch.context() as patch:
        patch.setattr("async_trainer.snapshot.copier._thread.start_new_thread", no_more)
        train(run, 1)
    train(run, 1)
    run.check()
    run.handler.close()
