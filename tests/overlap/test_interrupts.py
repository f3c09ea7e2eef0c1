"""Ctrl-C while weights are captured, and while a step waits for their copies: nothing is torn, nothing hangs."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from async_trainer.snapshot.copier import Copier
from async_trainer.snapshot.store import Store
from async_trainer.snapshot.transfer import Transfer
from tests.endings.test_interrupts import Interrupts
from tests.overlap.kit import OPTIMIZERS, Net, PacedCopier, Run, forward, values

pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


@pytest.mark.parametrize("name", ["adam fused", pytest.param("adam foreach", marks=pytest.mark.slow)])
def test_interrupts_at_random_moments(name: str) -> None:
    model = Net(norm=False)
    run = Run(model, OPTIMIZERS[name](model.parameters()))
    interrupts = Interrupts(1, mean=2e-3)
    events = 400
    with interrupts.handled():
        for event in range(events):
            forward(run, event).backward()
            run.references[event] = values(model, run.optimizers)
            interrupts.whole(run.handler.call_event, "on_batch_end", step=event)
            interrupts.whole(run.handler.fence)
            run.optimizers.step()
            run.optimizers.zero_grad()
    assert interrupts.count > 30, "too few interrupts: the test shows nothing"
    torn = run.torn()
    assert not torn, torn[:10]
    assert not run.handler.stats().errors
    assert len(run.sees.seen) > 30
    assert run.handler.stats().snapshot_bytes == 0
    run.handler.close()


def test_a_step_that_is_interrupted_while_it_waits_waits_again(pace: PacedCopier, monkeypatch: Any) -> None:
    model = Net(norm=False)
    run = Run(model, OPTIMIZERS["adam fused"](model.parameters()))
    forward(run, 0).backward()
    run.event()
    run.event()
    wait = Transfer.wait
    calls = 0

    def interrupted(transfer: Transfer) -> float:
        nonlocal calls
        if threading.get_ident() != threading.main_thread().ident:
            return wait(transfer)
        calls += 1
        if calls % 2:
            raise KeyboardInterrupt
        return wait(transfer)

    with monkeypatch.context() as patch:
        patch.setattr(Transfer, "wait", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run.optimizers.step()
        calls = 0  # after the first of two, too
        with pytest.raises(KeyboardInterrupt):
            run.optimizers.step()
    run.optimizers.step()
    pace.open()
    run.check()
    run.handler.close()


@pytest.mark.parametrize(("cls", "name"), [(Copier, "submit"), (Store, "submit")])
@pytest.mark.parametrize("when", ["before", "after"])
def test_an_event_that_is_interrupted_while_it_is_submitted_blocks_no_step(
    cls: Any, name: str, when: str, pace: PacedCopier, monkeypatch: Any
) -> None:
    model = Net(norm=False)
    run = Run(model, OPTIMIZERS["adam fused"](model.parameters()))
    forward(run, 0).backward()
    original = getattr(cls, name)

    def interrupted(*args: Any) -> None:
        if when == "after":
            original(*args)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(cls, name, interrupted)
        with pytest.raises(KeyboardInterrupt):
            run.event()
    run.references.clear()
    run.optimizers.step()
    run.event()
    run.optimizers.step()
    pace.open()
    run.check()
    assert run.handler.stats().snapshot_bytes == 0
    run.handler.close()
