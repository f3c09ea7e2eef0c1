"""The end, whatever it is, while copies are under way."""

from __future__ import annotations

import copy
import gc
import pickle
import threading
from pathlib import Path
from typing import Any

import pytest

from async_trainer import CallbacksHandler, background
from tests.endings.child import run as run_child
from tests.endings.waiting import until
from tests.overlap.kit import OPTIMIZERS, Net, PacedCopier, Run, Sees, differences, forward, train, values


def hooks_of(optimizer: Any) -> int:
    return len(optimizer._optimizer_step_pre_hooks) + len(optimizer._optimizer_step_post_hooks)


def test_closing_lets_the_copies_be_made_and_takes_the_hooks_from_the_optimizer(pace: PacedCopier) -> None:
    model = Net()
    run = Run(model, OPTIMIZERS["adam fused"](model.parameters()))
    train(run, 1)
    assert hooks_of(run.optimizers) == 2
    pace.open()
    assert run.handler.close().ok
    assert not hooks_of(run.optimizers)
    assert not [name for step, seen in run.sees.seen.items() for name in differences(seen, run.references[step])]
    run.optimizers.step()
    run.event()  # after the end: counted as lost
    assert not hooks_of(run.optimizers)


def test_closing_without_patience_while_copies_are_under_way(pace: PacedCopier) -> None:
    model = Net()
    run = Run(model, OPTIMIZERS["adam fused"](model.parameters()))
    train(run, 1)
    threading.Timer(0.1, pace.open).start()
    report = run.handler.close(0)
    assert report.lost + report.delivered == 3
    run.optimizers.step()


def test_a_handler_that_is_dropped_drains_and_leaves_the_training_alone(pace: PacedCopier) -> None:
    model = Net()
    optimizer = OPTIMIZERS["adam fused"](model.parameters())
    run = Run(model, optimizer)
    run.event()
    optimizer.register_step_pre_hook(lambda *_: None)  # after ours: hooks that change now would break the step
    sees, references = run.sees, run.references
    forward(run, 0).backward()
    del run
    gc.collect()
    optimizer.step()
    until(lambda: len(sees.seen) == 1, "it has not drained")
    assert not differences(sees.seen[0], references[0])
    for _ in range(20):
        optimizer.step()


def test_a_handler_that_ends_while_a_step_waits_breaks_no_step(pace: PacedCopier) -> None:
    model = Net()
    run = Run(model, OPTIMIZERS["adam fused"](model.parameters()))
    run.event()
    run.optimizers.register_step_pre_hook(lambda *_: None)  # after ours
    forward(run, 0).backward()
    make = pace._copy

    def close_and_make(pairs: Any) -> None:
        run.handler._store.close(0.0)
        make(pairs)

    pace._copy = close_and_make
    run.optimizers.step()  # hooks that are removed while it goes through them would be an error
    run.check()
    run.handler.close()


def test_two_handlers_of_one_optimizer(pace: PacedCopier) -> None:
    model = Net()
    optimizer = OPTIMIZERS["adam fused"](model.parameters())
    first, second = Run(model, optimizer), Run(model, optimizer)
    for seed in range(3):
        forward(first, seed).backward()
        first.event()
        second.event()
        optimizer.step()
    pace.open()
    first.check()
    first.handler.close()
    assert hooks_of(optimizer) == 2
    pace.pause()
    second.event()
    optimizer.step()
    pace.open()
    second.check()
    second.handler.close()
    assert not hooks_of(optimizer)


def test_optimizers_and_handlers_are_copied_and_pickled_without_what_is_under_way(pace: PacedCopier) -> None:
    model = Net()
    run = Run(model, OPTIMIZERS["adam fused"](model.parameters()))
    run.event()
    assert not hooks_of(copy.deepcopy(run.optimizers))
    assert not hooks_of(pickle.loads(pickle.dumps(run.optimizers)))
    for other in (copy.copy(run.handler), pickle.loads(pickle.dumps(run.handler))):
        assert other._store is not run.handler._store
        other.close()
    forward(run, 0).backward()
    run.optimizers.step()
    pace.open()
    run.check()
    run.handler.close()


def test_a_hook_that_hangs_blocks_no_step(pace: PacedCopier) -> None:
    never = threading.Semaphore(0)
    model = Net()
    run = Run(model, OPTIMIZERS["adam fused"](model.parameters()), Sees(never), stall_timeout=0.1)
    train(run, 4)
    assert len(run.references) == 12
    for _ in range(12):
        never.release()
    pace.open()
    run.check()
    run.handler.close()


@pytest.mark.parametrize(
    "end",
    ["del handler", *(pytest.param(end, marks=pytest.mark.slow) for end in ("", "sys.exit(0)", "handler.close()"))],
)
def test_a_process_that_exits_while_copies_are_under_way(end: str, tmp_path: Path) -> None:
    script = f"""
    import torch
    class Hook(Callback):
        background = {{}}
        def on_batch_end(self, *, model, optimizers):
            write_row(int(all((p == 1).all() for p in model.parameters())))
    model = torch.nn.ModuleList([torch.nn.Linear(2000, 2000) for _ in range(8)])
    for p in model.parameters():
        p.data.fill_(1)
        p.grad = torch.ones_like(p)
    optimizer = torch.optim.SGD(model.parameters(), 0.1, fused=True)
    handler = CallbacksHandler([Hook()])
    handler.call_event("on_batch_end", model=model, optimizers=optimizer)
    {end or "pass"}
    """
    ended = run_child(tmp_path, script)
    ended.check()
    assert ended.rows == ["1"]


@pytest.mark.parametrize("how", ["kept", pytest.param("dropped", marks=pytest.mark.slow)])
def test_a_forked_child_steps_without_waiting_for_its_parents_copies(how: str, tmp_path: Path) -> None:
    script = """
    import torch
    from async_trainer.snapshot import big, transfer
    gate = threading.Event()
    original = transfer.copy_all
    transfer.copy_all = lambda pairs: (gate.wait(), original(pairs))
    class Hook(Callback):
        background = {}
        def on_batch_end(self, *, model, optimizers):
            write_row(int(all((p == 1).all() for p in model.parameters())))
    torch.set_num_threads(1)
    model = torch.nn.Linear(300, 300)
    for p in model.parameters():
        p.data.fill_(1)
        p.grad = torch.ones_like(p)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    handler = CallbacksHandler([Hook()])
    handler.call_event("on_batch_end", model=model, optimizers=optimizer)
    if sys.argv[1] == "dropped":
        del handler
    child = os.fork()
    if child == 0:
        optimizer.step()
        if sys.argv[1] != "dropped":
            handler.call_event("on_batch_end", model=model, optimizers=optimizer)
            handler.fence()
        os._exit(7)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    gate.set()
    optimizer.step()
    """
    ended = run_child(tmp_path, script, how)
    ended.check()
    assert ended.rows == ["1"]


def test_a_copy_of_the_handler_works_on_the_same_optimizer(pace: PacedCopier) -> None:
    model = Net()
    optimizer = OPTIMIZERS["sgd fused"](model.parameters())
    sees = Sees()
    handler = CallbacksHandler([background(sees)])
    pace.open()
    for step in range(2):
        reference = values(model, optimizer)
        handler.call_event("on_batch_end", step=step, model=model, optimizers=optimizer)
        handler.close()
        assert not differences(sees.seen[step], reference)
        handler = copy.copy(handler)
