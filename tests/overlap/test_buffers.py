"""Buffers are used again when nobody holds them any more, and never before."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from async_trainer import CallbacksHandler, background
from async_trainer.runtime.job import Job
from async_trainer.snapshot import transfer as transfers
from async_trainer.snapshot.buffers import Buffers
from async_trainer.snapshot.kind import SMALL
from async_trainer.snapshot.tensors import SealedTensor
from async_trainer.snapshot.transfer import Transfer
from tests.endings.child import run as run_child
from tests.overlap.kit import OPTIMIZERS, WIDTH, Net, PacedCopier, Run, train

SIZE = 100_000  # elements: 400 kB
MEGA = 1_000_000


class Keeps:
    """Keeps what ``what`` makes of its tensor, and notes where each was."""

    def __init__(self, what: Any = lambda x: None) -> None:
        self.what = what
        self.where: list[int] = []
        self.kept: list[Any] = []

    def on_batch_end(self, *, x: Any) -> None:
        self.where.append(x.data_ptr())
        self.kept.append(self.what(x))


def send(handler: CallbacksHandler, *several: Any) -> None:
    for x in several:
        handler.call_event("on_batch_end", x=x)
        handler.flush(10)


def test_a_buffer_that_nobody_holds_is_used_again() -> None:
    keeps = Keeps()
    with CallbacksHandler([background(keeps)]) as handler:
        send(handler, *(torch.full((SIZE,), float(n)) for n in range(5)))
        assert len(set(keeps.where)) == 1
        assert handler.stats().kept_bytes == 0


KEEPING: dict[str, Any] = {
    "tensor": lambda x: x,
    "view": lambda x: x[7:9],
    "array": lambda x: x.numpy()[:SIZE],
    "view of an array": lambda x: memoryview(x.numpy()),
    "storage": lambda x: x.untyped_storage(),
    "typed storage": lambda x: x.storage(),
    "graph": lambda x: (x.requires_grad_() * x).sum(),
    "exchange": lambda x: x.__dlpack__(),
    "dict": lambda x: {"state": [x]},
}


@pytest.mark.filterwarnings("ignore:TypedStorage")
@pytest.mark.parametrize("how", KEEPING)
def test_what_a_hook_keeps_is_its_own_from_then_on(how: str) -> None:
    keeps = Keeps(KEEPING[how])
    with CallbacksHandler([background(keeps)]) as handler:
        send(handler, *(torch.full((SIZE,), float(n)) for n in range(3)))
        assert len(set(keeps.where)) == 3
        assert handler.stats().kept_bytes == 3 * SIZE * 4
        assert handler.stats().snapshot_bytes == 0
        keeps.kept.clear()
        assert handler.stats().kept_bytes == 0


def test_kept_states_stay_as_they_were(pace: PacedCopier) -> None:
    kept: list[Any] = []

    class KeepsStates:
        def on_batch_end(self, *, model: Any, optimizers: Any) -> None:
            kept.append((model.state_dict(), optimizers.state_dict()["state"]))

    model = Net()
    optimizer = OPTIMIZERS["adam fused"](model.parameters())
    run = Run(model, optimizer)
    run.handler.add_callbacks([background(KeepsStates(), name="keeps")])
    train(run, 3)
    pace.open()
    run.check()
    for (states, of_optimizer), reference in zip(kept, run.references.values(), strict=True):
        for name, value in states.items():
            assert torch.equal(value, reference[f"model.{name}"])
        for place, state in of_optimizer.items():
            for name, value in state.items():
                assert torch.equal(value, reference[f"optimizer 0.state.{place}.{name}"])
    run.handler.close()


def test_a_buffer_that_went_to_another_process_or_was_resized_is_not_used_again() -> None:
    for spoil in (lambda x: [x.share_memory_()].clear(), lambda x: [x.untyped_storage().resize_(0)].clear()):
        keeps = Keeps(spoil)
        with CallbacksHandler([background(keeps)]) as handler:
            for n in range(3):
                send(handler, torch.full((SIZE,), float(n)))
                handler._store.reclaim(0)
                assert handler._store.waiting_bytes == 0
            assert not handler.stats().errors


def test_the_last_of_several_lanes_gives_a_buffer_back() -> None:
    gate = threading.Event()

    class Slow(Keeps):
        def on_batch_end(self, *, x: Any) -> None:
            gate.wait(10)
            self.kept.append(x.clone())

    slow, quick = Slow(), Keeps()
    with CallbacksHandler([background(slow, name="slow"), background(quick, name="quick")]) as handler:
        for n in range(3):
            handler.call_event("on_batch_end", x=torch.full((SIZE,), float(n)))
        while len(quick.where) < 3:
            pass
        handler._store.reclaim(0)
        assert handler._store.waiting_bytes == 0
        assert len(set(quick.where)) == 3
        gate.set()
        handler.flush()
        assert [float(x[0]) for x in slow.kept] == [0.0, 1.0, 2.0]
        handler._store.reclaim(0)
        assert handler._store.waiting_bytes == 3 * SIZE * 4


def test_a_buffer_that_the_copier_writes_to_is_not_used_again_until_it_is_full(pace: PacedCopier) -> None:
    class Forgets:
        def on_batch_end(self, *, model: Any) -> None:
            model.first.weight.sum()

    model = Net()
    handler = CallbacksHandler([background(Forgets(), queue_size=1, overflow="drop_oldest")])
    run: dict[str, Any] = {"model": model, "optimizers": OPTIMIZERS["sgd"](model.parameters())}
    store = handler._store
    with handler._pool.hold():
        handler.call_event("on_batch_end", **run)
        (waiting,) = handler._pool.lanes["forgets"]._queue
        assert isinstance(waiting, Job)
        transfer = waiting.payload.lease.transfer
        while not transfer.copies:  # the copier has chosen a buffer, and waits
            pass
        handler.call_event("on_batch_end", **run)  # the event before it is dropped
        store.reclaim(0)
        assert store.waiting_bytes == 0
        handler.fence()
        while not transfer.done:
            pass
        store._copier.tidy()
        handler.call_event("on_batch_end", **run)  # the copier has come past what it had to tidy up
        handler.fence()
        store.reclaim(0)
        assert store.waiting_bytes > 0
    handler.close(0)


@pytest.mark.parametrize("overflow", ["latest", "drop_oldest", "drop_newest"])
def test_what_was_dropped_takes_no_more_than_the_budget_has(overflow: Any, pace: PacedCopier) -> None:
    class Slow:
        def on_batch_end(self, *, model: Any) -> None:
            model.weight.sum()

    model = torch.nn.Linear(500, 500)  # 1 MB
    handler = CallbacksHandler(
        [background(Slow(), queue_size=1, overflow=overflow)], max_snapshot_bytes=3_500_000, stall_timeout=5
    )
    run: dict[str, Any] = {"model": model, "optimizers": OPTIMIZERS["sgd"](model.parameters())}
    with handler._pool.hold():
        for _ in range(30):
            handler.call_event("on_batch_end", **run)
            buffers = handler._store._buffers
            assert buffers is not None
            alive = sum(pooled.nbytes for event in buffers._returned for pooled in event)
            alive += sum(pooled.nbytes for transfer in buffers._unsettled for pooled in transfer.copies)
            assert handler.stats().snapshot_bytes + handler._store.waiting_bytes + alive <= 3_500_000
    pace.open()
    handler.close(10)


def test_in_use_and_waiting_stay_within_the_budget_whatever_the_shapes() -> None:
    limit = 4_000_000
    with CallbacksHandler([background(Keeps())], max_snapshot_bytes=limit) as handler:
        for n in range(300):
            handler.call_event("on_batch_end", x=torch.zeros(20 + n % 97, 1000 + n % 89))
            assert handler.stats().snapshot_bytes + handler._store.waiting_bytes <= limit
        handler.flush()
        send(handler, torch.zeros(2 * limit // 4))  # larger than all of it: alone
        send(handler, torch.zeros(SIZE))
        assert handler.stats().snapshot_bytes + handler._store.waiting_bytes <= limit


def test_arrays_and_tensors_of_one_event_come_and_go() -> None:
    class Both:
        seen = 0

        def on_batch_end(self, *, x: Any, y: Any, z: Any) -> None:
            assert float(x[0]) == float(y[0]) == float(z[0][0])
            self.seen += 1

    both = Both()
    with CallbacksHandler([background(both)]) as handler:
        for n in range(5):
            z = torch.full((300, 1), float(n)).expand(300, 300)
            handler.call_event("on_batch_end", x=torch.full((SIZE,), float(n)), y=np.full(SIZE, n), z=z)
            handler.flush()
    assert both.seen == 5


def strange() -> dict[str, torch.Tensor]:
    c = torch.randn(SIZE, dtype=torch.complex64)
    return {
        "channels last": torch.randn(4, 16, 40, 40).to(memory_format=torch.channels_last),
        "transposed": torch.randn(400, 300).T,
        "with holes": torch.randn(600, 600)[::2, ::2],
        "expanded": torch.randn(400, 1).expand(400, 400),
        "overlapping": torch.randn(SIZE).unfold(0, 10, 5),
        "non-leaf": torch.randn(SIZE, requires_grad=True) * 2,
        "empty": torch.zeros(0, MEGA),
        "complex": c,
        "conjugate": c.conj(),
        "negative": c.conj().imag,
        "float16": torch.randn(SIZE).half(),
        "bfloat16": torch.randn(SIZE).bfloat16(),
        "bool": torch.randn(SIZE) > 0,
        "sparse": torch.eye(300).to_sparse(),
        "parameter": torch.nn.Parameter(torch.randn(SIZE)),
    }


@pytest.mark.parametrize("name", strange())
def test_strange_tensors_come_through_twice(name: str) -> None:
    live = strange()[name]
    keeps = Keeps(lambda x: (x.detach().to_dense().clone(), x.stride() if x.layout is torch.strided else None))
    keeps.where = []
    with CallbacksHandler([background(Dense(keeps))]) as handler:
        send(handler, live, live)
        assert not handler.stats().errors
    for copied, stride in keeps.kept:
        assert torch.equal(copied, live.detach().to_dense())
        assert stride is None or len(stride) == live.dim()
    assert len(keeps.kept) == 2


class Dense:
    def __init__(self, keeps: Keeps) -> None:
        self.keeps = keeps

    def on_batch_end(self, *, x: Any) -> None:
        self.keeps.kept.append(self.keeps.what(x))


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested")
def test_nested_and_quantized_tensors_come_through() -> None:
    nested = torch.nested.nested_tensor([torch.ones(SIZE), torch.ones(9)])
    seen: list[Any] = []

    class Hook:
        def on_batch_end(self, *, x: Any) -> None:
            seen.append(x.is_nested)

    with CallbacksHandler([background(Hook())]) as handler:
        send(handler, nested, nested)
        assert not handler.stats().errors
    assert seen == [True, True]


@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad, lambda: torch.autocast("cpu")])
def test_modes_of_the_training_thread_change_nothing(mode: Any, pace: PacedCopier) -> None:
    model = Net()
    run = Run(model, OPTIMIZERS["adam fused"](model.parameters()))
    for seed in range(3):
        with mode():
            run.event()
        torch.manual_seed(seed)
        for weight in model.parameters():
            weight.grad = torch.randn_like(weight)
        run.optimizers.step()
        with mode():
            run.event()
    pace.open()
    run.check()
    run.handler.close()


def test_weights_made_in_inference_mode_are_copied_at_once(pace: PacedCopier) -> None:
    model = Net()
    with torch.inference_mode():
        made = torch.nn.Linear(200, 200).requires_grad_(False)
    model.made = made
    run = Run(model, OPTIMIZERS["sgd"](model.parameters()))
    run.event()
    pace.open()
    run.check()
    run.handler.close()


def test_nothing_is_held_after_close() -> None:
    keeps = Keeps()
    handler = CallbacksHandler([background(keeps)])
    send(handler, torch.zeros(SIZE))
    before = handler._store._buffers
    assert before is not None
    (pooled,) = (one for event in before._returned for one in event)
    handler.close()
    assert pooled._tensor is None


def test_returned_buffers_are_poisoned_in_debug_mode(tmp_path: Path) -> None:
    script = """
    import torch, ctypes
    class Hook(Callback):
        background = {}
        where = 0
        def on_batch_end(self, *, x):
            self.where = x.data_ptr()
    hook = Hook()
    handler = CallbacksHandler([hook])
    handler.call_event("on_batch_end", x=torch.zeros(100_000))
    handler.flush()
    handler._store.reclaim(0)
    held = handler._store._buffers._free
    (buffer,) = next(iter(held.values()))
    assert buffer.data_ptr() == hook.where
    assert (buffer.view(torch.uint8) == 0xA5).all() == (sys.flags.dev_mode == 1)
    handler.close()
    """
    for mode in ("", "1"):
        ended = run_child(tmp_path, script, PYTHONDEVMODE=mode)
        ended.check()


def test_what_was_copied_of_an_event_that_is_dropped_meanwhile_comes_back_once(monkeypatch: pytest.MonkeyPatch) -> None:
    buffers = Buffers()
    transfer = Transfer(buffers, 1 << 30)
    sealed = [SealedTensor(torch.Tensor, False) for _ in range(3)]
    assert transfer.add_sealed([(one, torch.zeros(SIZE), SIZE * 4, None, "x") for one in sealed]) == 3 * SIZE * 4
    monkeypatch.setattr(transfers, "CHUNK", 1)
    monkeypatch.setattr(transfers, "copy_all", lambda pairs: buffers.give_back([transfer]))  # the event is over
    transfer.make()
    assert [one.copied is None for one in sealed] == [False, True, True]  # it went no further
    for _ in range(2):
        buffers.give_back([transfer])
        buffers.settle(0)
        assert buffers.nbytes == SIZE * 4


def test_warm_memory_is_used_again_event_after_event() -> None:
    model = Net()
    run: dict[str, Any] = {"model": model, "optimizers": OPTIMIZERS["adam"](model.parameters())}
    run["optimizers"].zero_grad()
    model(torch.zeros(4, WIDTH)).sum().backward()
    run["optimizers"].step()
    memory: list[set[int]] = []

    class Sees:
        def on_batch_end(self, *, model: Any, optimizers: Any) -> None:
            states = optimizers.state_dict()["state"].values()
            tensors = [*model.parameters(), *(value for state in states for value in state.values())]
            memory.append({tensor.data_ptr() for tensor in tensors if tensor.nbytes > SMALL})

    with CallbacksHandler([background(Sees())]) as handler:
        for _ in range(6):
            handler.call_event("on_batch_end", **run)
            handler.flush()
            handler._store.reclaim(0)
    assert len(memory[0]) == 9
    assert all(later == memory[0] for later in memory[1:])
