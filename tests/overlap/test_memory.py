"""What snapshots take stays within the budget, and all of it comes back."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import pytest
import torch

from async_trainer import CallbacksHandler, background
from tests.endings.child import run as run_child
from tests.overlap.kit import OPTIMIZERS, Net

CHILD = """
import torch
def rss():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
torch.set_num_threads(1)
class Slow(Callback):
    background = {}
    seen = 0
    def on_batch_end(self, *, step, model, optimizers):  # min and max take no memory of their own
        time.sleep(0.002)
        optimizers.param_groups
        assert model.weight.min() == model.weight.max() == step
        self.seen += 1
model = torch.nn.Linear(5_000, 5_000, bias=False)  # 100 MB
model.weight.data.fill_(0)
optimizer = torch.optim.SGD(model.parameters(), 1.0, maximize=True, fused=True)
model.weight.grad = torch.ones_like(model.weight)
slow = Slow()
handler = CallbacksHandler([slow], max_snapshot_bytes=350_000_000)
before = most = rss()
for step in range(int(sys.argv[1])):
    handler.call_event("on_batch_end", step=step, model=model, optimizers=optimizer)
    most = max(most, rss())
    optimizer.step()
handler.flush()
assert slow.seen == step + 1, handler.stats().errors
assert most - before < 350_000_000 + 60_000_000, (most - before) / 1e6
assert handler.stats().snapshot_bytes == handler.stats().kept_bytes == 0
handler.close()
after = rss()
assert after - before < 80_000_000, (after - before) / 1e6
print(int((most - before) / 1e6), int((after - before) / 1e6))
"""


@pytest.mark.slow
@pytest.mark.parametrize("captures", [200])
def test_captures_of_100_mb_behind_a_slow_callback_stay_within_the_budget(captures: int, tmp_path: Path) -> None:
    run_child(tmp_path, CHILD, captures).check()


def alive() -> tuple[int, int]:
    gc.collect()
    found = gc.get_objects()
    return len(found), sum(isinstance(one, torch.Tensor) for one in found)


@pytest.mark.parametrize("events", [300, pytest.param(10_000, marks=pytest.mark.slow)])
def test_events_leak_nothing(events: int) -> None:
    class Reads:
        def on_batch_end(self, *, model: Any, optimizers: Any, loss: Any) -> None:
            assert loss is not None
            optimizers.state_dict()
            model.state_dict()

    model = Net()
    optimizer = OPTIMIZERS["adam fused"](model.parameters())
    for weight in model.parameters():
        weight.grad = torch.ones_like(weight)
    handler = CallbacksHandler([background(Reads(), queue_size=4)])

    def play(steps: int) -> None:
        for _ in range(steps):
            handler.call_event("on_batch_end", model=model, optimizers=optimizer, loss=torch.ones(()))
            optimizer.step()
        handler.flush()

    play(300)
    objects, tensors = alive()
    play(events)
    more_objects, more_tensors = alive()
    # Buffers for as many events as have queued at once may wait, each a few tensors.
    assert more_tensors - tensors < 200
    assert more_objects - objects < 2_000 + events / 10
    assert not handler.stats().errors
    assert handler.stats().snapshot_bytes == 0
    handler.close()


def test_a_hook_that_keeps_every_loss_never_blocks_the_loop() -> None:
    class KeepsLosses:
        def __init__(self) -> None:
            self.losses: list[torch.Tensor] = []

        def on_batch_end(self, *, loss: torch.Tensor, output: torch.Tensor) -> None:
            self.losses += [loss, output[:1]]  # a view: it keeps all of the output, 80 kB

    keeps = KeepsLosses()
    with CallbacksHandler([background(keeps)], max_snapshot_bytes=10_000_000, stall_timeout=2) as handler:
        for step in range(10_000):
            handler.call_event("on_batch_end", loss=torch.tensor(float(step)), output=torch.empty(20_000))
            if step % 1000 == 0:
                keeps.losses[1::2] = [None] * (len(keeps.losses) // 2)  # type: ignore[list-item]
        handler.flush()
        assert [float(loss) for loss in keeps.losses[::2]] == list(range(10_000))
        stats = handler.stats()
        assert not stats.errors
        assert stats.lanes["keeps_losses"].dropped == 0
        assert stats.kept_bytes >= 80_000
        assert stats.snapshot_bytes == 0
        keeps.losses.clear()
        assert handler.stats().kept_bytes == 0
