"""Hooks of a handler, on tensors of a fake accelerator."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from async_trainer import CallbacksHandler, background
from async_trainer.snapshot import Memo, Scope, Store, open_value, take
from async_trainer.snapshot.devices import Devices
from async_trainer.snapshot.offload import Offload
from tests.devices.fake import FakeAccelerator
from tests.devices.program import on_the_device
from tests.same import same
from tests.snapshot.test_tensors import ODD


@pytest.fixture(autouse=True)
def device() -> Iterator[None]:
    with on_the_device():
        yield


def on_devices(handler: CallbacksHandler, accelerator: FakeAccelerator) -> CallbacksHandler:
    handler._store.devices = Devices(accelerator)
    return handler


class Keeps:
    """Keeps copies of all that it gets."""

    def __init__(self) -> None:
        self.got: list[Any] = []
        self.called = threading.Event()

    def on_batch_end(self, *, model: Any, optimizers: Any, batch: Any, loss: Any) -> None:
        self.got.append(copied(model, optimizers, batch, loss))
        self.called.set()


def copied(model: Any, optimizer: Any, batch: Any, loss: Any) -> list[torch.Tensor]:
    states = [part for state in optimizer.state.values() for part in state.values()]
    return [tensor.detach().clone() for tensor in (*model.state_dict().values(), *states, batch, loss)]


class Training:
    """A model with big and small weights and buffers, and Adam."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.model = torch.nn.Sequential(torch.nn.Linear(200, 200), torch.nn.BatchNorm1d(200), torch.nn.Linear(200, 2))
        self.optimizer = torch.optim.Adam(self.model.parameters())
        self.batch = torch.empty(100, 200)

    def step(self) -> torch.Tensor:
        self.batch.normal_()
        self.optimizer.zero_grad()
        loss = self.model(self.batch).square().mean()
        loss.backward()
        self.optimizer.step()
        return loss


@pytest.mark.parametrize("synchronous", [False, True])
def test_hooks_get_what_eager_copies_have(synchronous: bool) -> None:
    training, hook, accelerator = Training(), Keeps(), FakeAccelerator(eager=True)
    expected = []
    with on_devices(CallbacksHandler([background(hook)], synchronous=synchronous), accelerator) as handler:
        handler.call_event("on_train_start", model=training.model, optimizers=training.optimizer)
        for _ in range(20):
            loss = training.step()
            expected.append(copied(training.model, training.optimizer, training.batch, loss))
            handler.call_event("on_batch_end", batch=training.batch, loss=loss)
            if not synchronous:
                handler.flush()
    assert len(hook.got) == 20
    for got, wanted in zip(hook.got, expected, strict=True):
        assert all(torch.equal(*pair) for pair in zip(got, wanted, strict=True))
    assert accelerator.pinned_count < 20  # not new for each event


def test_all_small_tensors_of_an_event_are_one_transfer() -> None:
    accelerator = FakeAccelerator(eager=True)
    seen = []

    class Logs:
        def on_batch_end(self, *, losses: Any, count: Any, flag: Any) -> None:
            seen.append((losses["a"].item(), losses["b"].item(), count.item(), flag.tolist()))

    with on_devices(CallbacksHandler([background(Logs())]), accelerator) as handler:
        losses = {"a": torch.tensor(1.5), "b": torch.tensor(2.5, dtype=torch.float64)}
        handler.call_event("on_batch_end", losses=losses, count=torch.tensor(3), flag=torch.tensor([True, False]))
    assert seen == [(1.5, 2.5, 3, [True, False])]
    assert accelerator.transfers == 1


def test_neither_events_nor_steps_nor_fences_wait_for_the_device() -> None:
    training, hook, accelerator = Training(), Keeps(), FakeAccelerator()
    loss = training.step()
    with on_devices(CallbacksHandler([background(hook)]), accelerator) as handler:
        handler.call_event("on_train_start", model=training.model, optimizers=training.optimizer)
        handler.call_event("on_batch_end", batch=training.batch, loss=loss)
        training.optimizer.step()
        handler.fence()
        assert handler.stats().waits.fence == 0
        assert not hook.called.wait(0.05)  # its values aren't there yet
        for stream in 2 * (accelerator.kernels, accelerator.copies):
            while stream.able:
                stream.advance()
        assert hook.called.wait(60)


def test_a_device_that_fails_fails_the_hooks_and_not_the_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> Any:
        raise RuntimeError("no memory can be pinned")

    accelerator = FakeAccelerator(eager=True)
    seen = []

    class Logs:
        def on_batch_end(self, *, loss: Any) -> None:
            seen.append(loss)

    with on_devices(CallbacksHandler([background(Logs())]), accelerator) as handler:
        with monkeypatch.context() as patch:
            patch.setattr(accelerator, "pinned", broken)
            handler.call_event("on_batch_end", loss=torch.tensor(1.0))
            report = handler.flush()
        assert report.failed == 1
        assert "no memory can be pinned" in str(report)
        handler.call_event("on_batch_end", loss=torch.tensor(1.0))
    assert len(seen) == 1


def test_an_async_hook_and_a_proxy_get_them_too() -> None:
    seen = []

    class Logs:
        async def on_batch_end(self, *, loss: Any) -> None:
            seen.append(loss.item())

    with on_devices(CallbacksHandler([background(Logs())]), FakeAccelerator(eager=True)) as handler:
        proxy: Any = handler.proxy(seen)
        loss = torch.tensor(2.0)
        handler.call_event("on_batch_end", loss=loss)
        proxy.append(loss)
        loss.zero_()
    assert sorted(map(float, seen)) == [2.0, 2.0]


@pytest.mark.parametrize("make", [make for name, make in ODD.items() if name != "meta"])
@pytest.mark.parametrize("mode", [torch.enable_grad, torch.inference_mode])
@pytest.mark.parametrize("times", [1, 200])
def test_any_tensor_has_the_value_and_strides_of_a_clone(make: Any, mode: Any, times: int) -> None:
    store = Store(1 << 30, {"fence": 0.0})
    store.devices = Devices(FakeAccelerator(eager=True))
    with mode():
        live = make()
        if times > 1 and live.layout is torch.strided and live.numel() < 100:
            live = live.expand(times, 100, *live.shape)  # big
        memo = Memo(store)
        taken = take([live, torch.tensor(1, dtype=torch.uint8), live], memo, "x")
        offload = store.launch(memo)
    assert offload is not None
    offload.check()
    got, one, again = open_value(taken, Scope())
    assert same(got, live)
    assert one == 1
    assert again is got
    assert not got.is_inference()
    assert not got.requires_grad
    if live.layout is torch.strided:
        assert got.stride() == live.clone().stride()


def test_a_subclass_keeps_its_class_and_its_attributes() -> None:
    store = Store(1 << 30, {"fence": 0.0})
    store.devices = Devices(FakeAccelerator(eager=True))
    live = torch.ones(3).as_subclass(Tagged)
    live.tag = "a"
    memo = Memo(store)
    taken = take(live, memo, "x")
    offload = store.launch(memo)
    assert offload is not None
    offload.check()
    got = open_value(taken, Scope())
    assert type(got) is Tagged
    assert got.tag == "a"
    assert got.tolist() == [1, 1, 1]


class Tagged(torch.Tensor):
    """As MONAI's MetaTensor: data of its own."""

    tag: str


def test_memory_is_used_again_when_the_device_and_the_hooks_are_done_with_it() -> None:
    store = Store(1 << 30, {"fence": 0.0})
    accelerator = FakeAccelerator()
    devices = store.devices = Devices(accelerator)
    big = torch.ones(20_000)

    def capture() -> tuple[Any, Memo, Offload]:
        memo = Memo(store)
        taken = take(big, memo, "x")
        offload = store.launch(memo)
        assert offload is not None
        return taken, memo, offload

    def finish() -> None:
        for stream in (accelerator.kernels, accelerator.copies):
            while stream.able:
                stream.advance()

    taken, memo, offload = capture()
    store.give_back(memo.buffers)  # dropped: nobody reads it, but the device still writes
    devices.reclaim()
    assert devices.nbytes == 0
    finish()
    del taken, memo, offload
    devices.reclaim()
    assert devices.nbytes == big.nbytes
    taken, memo, offload = capture()
    finish()
    offload.check()
    kept = open_value(taken, Scope())
    store.give_back(memo.buffers)
    del taken, memo, offload
    devices.reclaim()
    assert devices.nbytes == 0  # it is the hook's now
    assert accelerator.pinned_count == 1
    capture()
    assert accelerator.pinned_count == 2
    assert kept.eq(1).all()


def test_what_waits_leaves_room_in_the_budget() -> None:
    store = Store(100_000, {"fence": 0.0})
    devices = store.devices = Devices(FakeAccelerator(eager=True))
    for size in (17_000, 18_000):
        memo = Memo(store)
        take(torch.ones(size), memo, "x")
        store.launch(memo)
        store.give_back(memo.buffers)
    devices.reclaim()
    devices.trim(100_000)
    assert devices.nbytes <= 100_000


def test_a_worker_that_waits_leaves_the_processor_alone() -> None:
    accelerator = FakeAccelerator()
    devices = Devices(accelerator)
    memo = Memo(Store(1 << 30, {"fence": 0.0}))
    assert memo.store is not None
    memo.store.devices = devices
    take(torch.tensor(1.0), memo, "x")
    offload = devices.launch(memo, 0)
    began = time.thread_time()
    used = []

    def wait() -> None:
        offload.wait()
        used.append(time.thread_time())

    thread = threading.Thread(target=wait)
    thread.start()
    time.sleep(0.2)
    for stream in (accelerator.kernels, accelerator.copies):
        while stream.able:
            stream.advance()
    thread.join()
    assert used[0] < 0.1
    assert time.thread_time() - began < 0.2
