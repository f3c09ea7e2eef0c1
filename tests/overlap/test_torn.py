"""What a hook receives is what was there at the event, however late the copier is."""

from __future__ import annotations

import copy
import sys
import threading
from typing import Any

import pytest
import torch
from torch import nn

from async_trainer import CallbacksHandler, background
from async_trainer.snapshot.copier import Copier
from async_trainer.snapshot.fence import Fence
from async_trainer.snapshot.store import Store
from tests.endings.waiting import until
from tests.overlap.kit import OPTIMIZERS, WIDTH, BigNorm, Net, PacedCopier, Run, Sees, SeesModel, forward, train


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_each_capture_equals_an_eager_copy(name: str, pace: PacedCopier) -> None:
    model = Net()
    run = Run(model, OPTIMIZERS[name](model.parameters()))
    train(run, 4)
    pace.open()
    run.check()
    assert pace.late > 20
    assert pace.waits >= 3
    run.handler.close()


@pytest.mark.parametrize("name", ["sgd fused", "adamw fused"])
def test_without_the_fence_captures_are_torn(name: str, pace: PacedCopier, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Fence, "wait", lambda fence: None)
    model = Net()
    run = Run(model, OPTIMIZERS[name](model.parameters()))
    train(run, 4)
    pace.open()
    # Fused optimizers change weights unseen; but where there are step counts, these tell, and the hook fails.
    torn = run.torn()
    failed = run.handler.stats().lanes["sees"].failed
    assert torn, "the tests above would show nothing"
    assert len(torn) > 10 or failed > 1
    run.handler.close()


def test_without_the_hooks_captures_are_torn(pace: PacedCopier) -> None:
    model = Net()
    optimizer = OPTIMIZERS["adam fused"](model.parameters())
    run = Run(model, optimizer)
    run.event()
    optimizer._optimizer_step_pre_hooks.clear()
    train(run, 2)
    pace.open()
    assert run.torn()
    run.handler.close()


def train_norm(run: Run) -> None:
    for seed in range(3):
        run.event()
        x = torch.randn(2, 20_000, generator=torch.Generator().manual_seed(seed))
        run.model(x).square().mean().backward()
        run.event()
        run.optimizers.step()


def test_the_buffers_of_a_big_batch_norm_are_copied_at_once(pace: PacedCopier) -> None:
    model = BigNorm()
    run = Run(model, OPTIMIZERS["sgd"](model.parameters()))
    train_norm(run)
    pace.open()
    run.check()
    assert pace.late
    run.handler.close()


def test_buffers_of_a_batch_norm_that_are_copied_late_are_torn(
    pace: PacedCopier, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = BigNorm()
    fenced = Store.fenced

    def with_buffers(store: Store) -> dict[int, Fence]:
        found = fenced(store)
        return found | {id(buffer): fence for buffer in model.buffers() for fence in list(found.values())[:1]}

    monkeypatch.setattr(Store, "fenced", with_buffers)
    run = Run(model, OPTIMIZERS["sgd"](model.parameters()))
    train_norm(run)
    pace.open()
    assert any("running" in name for name in run.torn()), "the test above would show nothing"
    run.handler.close()


def test_weights_of_no_given_optimizer_are_copied_at_once(pace: PacedCopier) -> None:
    model = nn.ModuleDict({"net": Net(), "average": Net().requires_grad_(False), "free": nn.Linear(WIDTH, WIDTH)})
    other = OPTIMIZERS["adam fused"](model["free"].parameters())
    run = Run(model, OPTIMIZERS["adam fused"](model["net"].parameters()))
    for seed in range(4):
        x = torch.randn(4, WIDTH, generator=torch.Generator().manual_seed(seed))
        run.event()
        model["free"](model["net"](x)).square().mean().backward()
        other.step()
        run.event()
        with torch.no_grad():
            for mean, weight in zip(model["average"].parameters(), model["net"].parameters(), strict=True):
                mean.data.lerp_(weight, 0.1)
        run.event()
        run.optimizers.step()
    pace.open()
    run.check()
    run.handler.close()


def test_what_a_user_hangs_on_an_optimizer_is_copied_at_once(pace: PacedCopier) -> None:
    """It may be changed at any time; state and param_groups are changed by steps alone."""
    model = Net()
    optimizer: Any = OPTIMIZERS["adam fused"](model.parameters())
    optimizer.average = torch.zeros(WIDTH, WIDTH)
    seen: list[float] = []

    class Reads:
        def on_batch_end(self, *, optimizers: Any) -> None:
            seen.append(float(optimizers["adam"].average.sum()))

    with CallbacksHandler([background(Reads())]) as handler:
        handler.call_event("on_train_start", optimizers={"adam": optimizer})
        for value in range(3):
            optimizer.average.data.fill_(value)
            handler.call_event("on_batch_end")
        optimizer.average.data.fill_(-1)
        pace.open()
    assert seen == [value * WIDTH * WIDTH for value in range(3)]


def test_gradients_accumulate_while_weights_are_copied(pace: PacedCopier) -> None:
    model = Net()
    run = Run(model, OPTIMIZERS["adamw foreach"](model.parameters()))
    for seed in range(9):
        forward(run, seed).backward()
        run.event()
        if seed % 3 == 2:
            run.optimizers.step()
            run.optimizers.zero_grad()
    pace.open()
    run.check()
    run.handler.close()


@pytest.mark.parametrize("name", ["sgd fused", "adam foreach"])
def test_a_grad_scaler_steps_behind_the_fence(name: str, pace: PacedCopier) -> None:
    model = Net(norm=False)
    run = Run(model, OPTIMIZERS[name](model.parameters()))
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**20, growth_interval=1)
    for seed in range(4):
        run.optimizers.zero_grad()
        with torch.autocast("cpu"):
            loss = forward(run, seed)
        run.event()
        scaler.scale(loss).backward()
        run.event()
        scaler.step(run.optimizers)
        run.event()
        scaler.update()
    pace.open()
    run.check()
    run.handler.close()


def test_events_inside_the_closure_of_lbfgs_are_copied_at_once(pace: PacedCopier) -> None:
    model = Net(norm=False)
    optimizer: Any = torch.optim.LBFGS(model.parameters(), lr=1e-3, max_iter=3)
    run = Run(model, optimizer)

    def closure() -> Any:
        optimizer.zero_grad()
        loss = forward(run, 0)
        loss.backward()
        run.event()
        return loss

    for _ in range(3):
        run.event()
        optimizer.step(closure)
        run.event()
    pace.open()
    run.check()
    assert len(run.references) > 8
    assert pace.late
    run.handler.close()


def test_an_event_in_the_closure_of_a_second_optimizer_of_the_same_weights_is_whole(pace: PacedCopier) -> None:
    model = Net(norm=False)
    lbfgs: Any = torch.optim.LBFGS(model.parameters(), lr=1e-3, max_iter=3)
    adam = OPTIMIZERS["adam fused"](model.parameters())
    for optimizers in ([lbfgs, adam], [adam, lbfgs]):
        run = Run(model, optimizers)

        def closure(run: Run = run) -> Any:
            lbfgs.zero_grad()
            loss = forward(run, 0)
            loss.backward()
            run.event()
            return loss

        run.event()
        lbfgs.step(closure)
        run.event()
        adam.step()
        pace.open()
        run.check()
        run.handler.close()
        pace.pause()


def test_events_in_hooks_of_the_step_are_whole(pace: PacedCopier) -> None:
    model = Net()
    optimizer = OPTIMIZERS["adam fused"](model.parameters())
    run: Run | None = None

    def emit(*_: Any) -> None:
        if run is not None:
            run.event()

    optimizer.register_step_pre_hook(emit)
    optimizer.register_step_post_hook(emit)
    run = Run(model, optimizer)
    optimizer.register_step_pre_hook(emit)
    optimizer.register_step_post_hook(emit)
    train(run, 3)
    pace.open()
    run.check()
    run.handler.close()


def test_an_event_before_the_first_step_and_groups_that_come_later(pace: PacedCopier) -> None:
    model = Net()
    optimizer = OPTIMIZERS["adam fused"](model.first.parameters())
    run = Run(model, optimizer)
    run.event()
    train(run, 2)
    optimizer.add_param_group({"params": list(model.second.parameters()), "lr": 0.01})
    run.event()
    train(run, 3)
    pace.open()
    run.check()
    run.handler.close()


@pytest.mark.parametrize("sees", [Sees, SeesModel])
def test_an_optimizer_that_comes_with_each_event(sees: type[Sees], pace: PacedCopier) -> None:
    model = Net()
    run = Run(model, OPTIMIZERS["adamw fused"](model.parameters()), sees(), each=True)
    train(run, 3)
    pace.open()
    run.check()
    assert pace.late
    run.handler.close()


@pytest.mark.parametrize("each", [True, False])
def test_an_optimizer_that_is_replaced_waits_as_the_old_one_did(each: bool, pace: PacedCopier) -> None:
    model = Net()
    run = Run(model, OPTIMIZERS["sgd fused"](model.parameters()), each=each)
    train(run, 2)
    forward(run, 9).backward()
    run.event()
    old, run.optimizers = run.optimizers, OPTIMIZERS["adam fused"](model.parameters())
    if not each:
        run.handler.call_event("on_train_start", model=model, optimizers=run.optimizers)
    del old
    run.optimizers.step()
    train(run, 2)
    pace.open()
    run.check()
    run.handler.close()


def test_an_optimizer_that_nobody_gave_waits_for_copies_of_the_weights_that_it_shares(pace: PacedCopier) -> None:
    model = Net()
    run = Run(model, OPTIMIZERS["sgd fused"](model.parameters()))
    hidden = OPTIMIZERS["adam fused"](model.second.parameters())
    elsewhere = OPTIMIZERS["adam fused"](nn.Linear(2, 2).parameters())
    for seed in range(3):
        forward(run, seed).backward()
        run.event()
        waits = pace.waits
        elsewhere.step()
        assert pace.waits == waits, "it has nothing to wait for"
        hidden.step()
        run.event()
        run.optimizers.step()
    pace.open()
    run.check()
    run.handler.close()


@pytest.mark.parametrize("shared", [False, True])
def test_two_optimizers_of_a_model(shared: bool, pace: PacedCopier) -> None:
    model = Net()
    parts = [model.first, model.second]
    weights = [[*part.parameters(), *(model.norm.parameters() if shared else ())] for part in parts]
    if shared:
        weights = [[*weights[0], model.second.weight], [*weights[1], model.first.weight]]
    run = Run(model, [OPTIMIZERS["adam fused"](weights[0]), OPTIMIZERS["sgd fused"](weights[1])])
    for seed in range(4):
        forward(run, seed).backward()
        for optimizer in run.optimizers:
            run.event()
            optimizer.step()
    pace.open()
    run.check()
    assert pace.late
    run.handler.close()


class Own(torch.optim.Adam):
    """Of the user's: what it changes, and when, isn't known."""

    def spoil(self) -> None:
        for group in self.param_groups:
            for weight in group["params"]:
                weight.data.mul_(0.5)
        for state in self.state.values():
            state["exp_avg"].data.mul_(0.5)


def test_an_optimizer_of_a_class_of_the_users_is_copied_at_once(pace: PacedCopier) -> None:
    model = Net()
    optimizer = Own(model.parameters(), 0.1, fused=True)
    run = Run(model, optimizer)
    for seed in range(3):
        forward(run, seed).backward()
        run.event()
        optimizer.step()
        run.event()
        optimizer.spoil()
    run.check()
    assert not pace.late
    run.handler.close()


def test_a_scheduler_that_wraps_step_leaves_the_fence_in_place(pace: PacedCopier) -> None:
    model = Net()
    optimizer = OPTIMIZERS["adamw fused"](model.parameters())
    early = torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)
    run = Run(model, optimizer)
    run.event()
    late = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)
    for seed in range(4):
        forward(run, seed).backward()
        run.event()
        optimizer.step()
        early.step()
        late.step()
        run.event()
    pace.open()
    run.check()
    assert pace.late
    run.handler.close()


def test_states_that_are_loaded_while_they_are_copied(pace: PacedCopier) -> None:
    model = Net()
    optimizer = OPTIMIZERS["adam fused"](model.parameters())
    run = Run(model, optimizer)
    train(run, 1)
    saved = copy.deepcopy(optimizer.state_dict())
    train(run, 1)
    run.event()
    optimizer.load_state_dict(saved)
    run.event()
    train(run, 1)
    pace.open()
    run.check()
    run.handler.close()


def test_parameters_that_get_other_memory_while_they_are_copied(pace: PacedCopier) -> None:
    model = Net(norm=False)
    run = Run(model, OPTIMIZERS["sgd fused"](model.parameters()))
    run.event()
    for weight in model.parameters():
        weight.data = torch.randn_like(weight)
    run.event()
    model.double()
    run.event()
    model.float()
    train(run, 2)
    pace.open()
    run.check()
    run.handler.close()


def test_a_step_that_fails_or_is_interrupted_leaves_nothing_torn(pace: PacedCopier) -> None:
    model = Net()
    optimizer = OPTIMIZERS["adam fused"](model.parameters())
    run = Run(model, optimizer)
    train(run, 1)

    def fail() -> float:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        optimizer.step(fail)
    run.event()
    train(run, 3)
    pace.open()
    run.check()
    run.handler.close()


def test_each_optimizer_may_step_in_the_backward_pass(pace: PacedCopier) -> None:
    model = Net()
    each = {weight: torch.optim.SGD([weight], 0.1, fused=True) for weight in model.parameters() if weight.requires_grad}
    weight: Any
    for weight in each:
        weight.register_post_accumulate_grad_hook(lambda weight: each[weight].step())
    run = Run(model, list(each.values()))
    for seed in range(4):
        loss = forward(run, seed)
        run.event()
        loss.backward()
        run.event()
    pace.open()
    run.check()
    assert pace.late
    run.handler.close()


@pytest.mark.slow  # importing the compiler takes seconds
@pytest.mark.parametrize("what", ["model", "step", "loss and step"])
def test_a_compiled_model_and_a_compiled_step(what: str, pace: PacedCopier) -> None:
    model: Any = Net()
    optimizer = OPTIMIZERS["adam foreach"](model.parameters())
    seen: Any = torch.compile(model, backend="eager") if what == "model" else model
    run = Run(seen, optimizer, SeesModel())
    run.sees.seen.clear()

    def step() -> None:
        forward(run, 0).backward()
        optimizer.step()

    def whole() -> None:
        optimizer.step() if what == "step" else step()

    compiled = whole if what == "model" else torch.compile(whole, backend="eager")
    for seed in range(5):
        if what == "step":
            forward(run, seed).backward()
        expected = {f"model.{name}": value.clone() for name, value in model.state_dict().items()}
        run.event()
        run.references[len(run.references) - 1] = expected
        compiled()
    pace.open()
    run.check()
    assert pace.late
    run.handler.close()


def test_the_training_is_bit_for_bit_what_it_is_without_callbacks(pace: PacedCopier) -> None:
    def weights(with_callbacks: bool) -> dict[str, torch.Tensor]:
        torch.manual_seed(1)
        model = Net()
        run = Run(model, OPTIMIZERS["adam fused"](model.parameters()))
        if not with_callbacks:
            run.handler.close()
        train(run, 3)
        run.handler.close(0)
        return model.state_dict()

    with_callbacks, without = weights(True), weights(False)
    assert all(torch.equal(with_callbacks[name], without[name]) for name in without)


def test_the_copier_has_one_thread_that_ends_with_the_handler() -> None:
    model = Net()
    before = set(threading.enumerate())
    run = Run(model, OPTIMIZERS["sgd"](model.parameters()))
    train(run, 2)
    run.check()
    assert copier_threads() == 1
    run.handler.close()
    until(lambda: copier_threads() == 0, "the copier goes on")
    assert set(threading.enumerate()) <= before


def copier_threads() -> int:
    frames: list[Any] = list(sys._current_frames().values())
    found = 0
    for frame in frames:
        while frame is not None and frame.f_code is not Copier._run.__code__:
            frame = frame.f_back
        found += frame is not None
    return found
