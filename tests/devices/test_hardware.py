"""On an accelerator: skipped where there is none."""

from __future__ import annotations

import gc
from typing import Any

import pytest
import torch

from async_trainer import CallbacksHandler, background
from async_trainer.snapshot.accelerators import accelerator_kind
from tests.devices.test_handlers import Keeps, copied

KIND = accelerator_kind() or ""
pytestmark = pytest.mark.skipif(not KIND, reason="torch sees no accelerator whose copies can be made aside")


class Training:
    """A model on the device, with what a real loop has: autocast, a scaler, pinned batches."""

    def __init__(self, optimizer: Any = torch.optim.AdamW, **options: Any) -> None:
        torch.manual_seed(0)
        layers = [torch.nn.Linear(1024, 1024), torch.nn.BatchNorm1d(1024), torch.nn.ReLU(), torch.nn.Linear(1024, 10)]
        self.model = torch.nn.Sequential(*layers).to(KIND)
        self.optimizer = optimizer(self.model.parameters(), lr=1e-2, **options)
        self.scaler = torch.amp.GradScaler(KIND)
        self.source = torch.randn(8, 256, 1024).pin_memory()
        self.batch = torch.empty(256, 1024, device=KIND)

    def step(self, number: int) -> torch.Tensor:
        self.batch.copy_(self.source[number % 8], non_blocking=True)
        self.optimizer.zero_grad(set_to_none=False)
        loss: torch.Tensor = self.model(self.batch).square().mean()
        loss.backward()
        self.optimizer.step()
        return loss.detach()


@pytest.mark.parametrize("options", [{"foreach": True}, {"fused": True}, {"foreach": False}], ids=str)
def test_captures_equal_eager_copies(options: Any) -> None:
    training, hook, expected = Training(**options), Keeps(), []
    with CallbacksHandler([background(hook)]) as handler:
        handler.call_event("on_train_start", model=training.model, optimizers=training.optimizer)
        for number in range(100):
            loss = training.step(number)
            expected.append(copied(training.model, training.optimizer, training.batch, loss))  # on the device
            handler.call_event("on_batch_end", batch=training.batch, loss=loss)
    for got, wanted in zip(hook.got, expected, strict=True):
        assert all(one.device.type == "cpu" for one in got)
        assert all(torch.equal(one, other.cpu()) for one, other in zip(got, wanted, strict=True))


def test_a_replica_runs_on_the_cpu() -> None:
    training = Training()
    outputs = []

    class Predicts:
        def on_epoch_end(self, *, model: Any) -> None:
            outputs.append(model.eval()(torch.zeros(2, 1024)))

    with CallbacksHandler([background(Predicts())]) as handler:
        handler.call_event("on_epoch_end", model=training.model)
    wanted = training.model.eval()(torch.zeros(2, 1024, device=KIND))
    assert torch.allclose(outputs[0], wanted.cpu(), atol=1e-3)


def test_a_scaler_is_captured_as_it_was() -> None:
    training = Training()
    training.scaler.scale(torch.ones((), device=KIND))
    seen = []

    class Logs:
        def on_batch_end(self, *, grad_scaler: Any) -> None:
            seen.append(grad_scaler.state_dict()["scale"])

    with CallbacksHandler([background(Logs())]) as handler:
        handler.call_event("on_batch_end", grad_scaler=training.scaler)
        training.scaler.update(1.0)
    assert seen == [65536.0]


class Everything:
    """Names all that a step has."""

    def __init__(self) -> None:
        self.events = 0

    def on_batch_end(self, *, model: Any, optimizers: Any, grad_scaler: Any, batch: Any, loss: Any) -> None:
        assert not loss.isnan()
        assert len(optimizers.state) == len(list(model.parameters()))
        self.events += 1


@pytest.mark.skipif(KIND != "cuda", reason="only CUDA tells of synchronisations")
def test_a_step_with_ten_background_callbacks_never_waits_for_the_device() -> None:
    training = Training()
    training.scaler.scale(torch.ones((), device=KIND))
    hooks = [Everything() for _ in range(10)]
    with CallbacksHandler([background(hook) for hook in hooks]) as handler:
        handler.call_event(
            "on_train_start", model=training.model, optimizers=training.optimizer, grad_scaler=training.scaler
        )
        handler.call_event("on_batch_end", batch=training.batch, loss=training.step(0))  # pins memory
        handler.flush()
        try:
            torch.cuda.set_sync_debug_mode("error")
            for number in range(20):
                loss = training.step(number)
                handler.call_event("on_batch_end", batch=training.batch, loss=loss)
                handler.fence()
        finally:
            torch.cuda.set_sync_debug_mode("default")
        assert handler.flush().failed == 0
    assert [hook.events for hook in hooks] == [21] * 10


def test_the_memory_of_both_sides_is_returned() -> None:
    training = Training()
    with CallbacksHandler([background(Everything())]) as handler:
        handler.call_event(
            "on_train_start", model=training.model, optimizers=training.optimizer, grad_scaler=training.scaler
        )
        for number in range(30):
            handler.call_event("on_batch_end", batch=training.batch, loss=training.step(number))
            if number == 9:
                handler.flush()
                torch.accelerator.synchronize()
                gc.collect()
                before = torch.get_device_module(KIND).memory_allocated()
        handler.flush()
        torch.accelerator.synchronize()
        handler._store.reclaim(0)
        devices = handler._store.devices
        assert devices is not None
        devices.reclaim()
        assert devices.nbytes <= 3 * 30 * 2**20  # reused: not thirty times what one event takes
        assert handler.stats().snapshot_bytes == 0
        assert torch.get_device_module(KIND).memory_allocated() <= before + 2**20
