"""Events, the training, the copier and the lane, each going on when chance says so: nothing is ever torn."""

from __future__ import annotations

import random
import threading
from typing import Any

import pytest

from async_trainer.snapshot.fence import Fence
from tests.overlap.kit import OPTIMIZERS, Net, PacedCopier, Run, Sees, forward

ACTIONS = ["event", "event", "forward", "backward", "step", "step", "copier", "copier", "lane", "fence"]


def play(seed: int, pace: PacedCopier, actions: int = 16) -> Run:
    """One interleaving: a training of ``actions`` actions; its run, not yet flushed."""
    chance = random.Random(seed)
    lane = threading.Semaphore(0)
    model = Net(norm=chance.random() < 0.5)
    names = chance.sample(list(OPTIMIZERS), 2)
    several: Any = OPTIMIZERS[names[0]](model.parameters())
    if chance.random() < 0.3:
        shared = model.tied.weight
        several = [
            OPTIMIZERS[names[0]]([*model.first.parameters(), shared]),
            OPTIMIZERS[names[1]]([*model.norm.parameters(), shared]),
        ]
    run = Run(model, several, Sees(lane), each=chance.random() < 0.3)
    optimizers = several if isinstance(several, list) else [several]
    forward(run, seed).backward()  # a step without gradients changes nothing
    loss: Any = None
    for _ in range(actions):
        action = chance.choice(ACTIONS)
        if action == "event":
            run.event()
        elif action == "forward":
            loss = forward(run, chance.randrange(100))
        elif action == "backward" and loss is not None:
            loss.backward()
            loss = None
        elif action == "step":
            chance.choice(optimizers).step()
            loss = None  # its graph is over weights that were changed
        elif action == "copier":
            pace.allow(chance.randrange(1, 12))
        elif action == "lane":
            lane.release()
        elif action == "fence" and chance.random() < 0.2:
            run.handler.fence()
    run.event()
    pace.open()
    for _ in range(actions + 1):
        lane.release()
    return run


@pytest.mark.parametrize("block", [0, *(pytest.param(block, marks=pytest.mark.slow) for block in range(1, 10))])
def test_a_hundred_interleavings(block: int, pace: PacedCopier) -> None:
    for seed in range(100 * block, 100 * block + 100):
        pace.pause()
        run = play(seed, pace)
        run.check()
        run.handler.close()
    assert pace.late > 500
    assert pace.waits > 20


def test_without_the_fence_many_interleavings_are_torn(pace: PacedCopier, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Fence, "wait", lambda fence: None)
    wrong = 0
    for seed in range(50):
        pace.pause()
        run = play(seed, pace)
        wrong += bool(run.torn() or run.handler.stats().errors)
        run.handler.close()
    assert wrong > 10, "the test above would show nothing"
