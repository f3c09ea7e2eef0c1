"""Views of optimizers, schedulers and scalers."""

from __future__ import annotations

import copy
import threading
from typing import Any

import pytest
import torch
from torch.optim import lr_scheduler

from async_trainer.errors import CaptureError, StandInError
from async_trainer.snapshot import Memo, Scope, capture, open_value, take
from tests.nets import ConvNet, seeded, train_a_step
from tests.same import same

MAKE: dict[str, Any] = {
    "SGD": lambda p: torch.optim.SGD(p, 0.1, momentum=0.9),
    "Adam": lambda p: torch.optim.Adam(p, amsgrad=True),
    "AdamW fused": lambda p: torch.optim.AdamW(p, fused=True),
    "tensor lr": lambda p: torch.optim.Adam(p, lr=torch.tensor(0.1)),
    "RMSprop": torch.optim.RMSprop,
    "Adafactor": torch.optim.Adafactor,
    "groups": lambda p: torch.optim.SGD([{"params": [x], "lr": 0.1 * i, "tag": [i]} for i, x in enumerate(p, 1)], 0.1),
}
ALL = pytest.mark.parametrize("name", MAKE)


def trained(name: str) -> tuple[ConvNet, Any]:
    model = seeded(ConvNet)
    optimizer = MAKE[name](list(model.parameters()))
    for _ in range(2):
        train_a_step(model, seeded(lambda: torch.randn(4, 1, 8, 8)), optimizer)
    return model, optimizer


def lbfgs() -> Any:
    model = seeded(lambda: torch.nn.Linear(3, 3))
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=3)
    x = seeded(lambda: torch.randn(4, 3))

    def closure() -> Any:
        optimizer.zero_grad()
        loss = model(x).square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    return optimizer, closure


@ALL
def test_a_view_shows_what_the_optimizer_showed(name: str) -> None:
    model, live = trained(name)
    got = capture(live)
    assert isinstance(got, type(live))
    assert isinstance(got, torch.optim.Optimizer)
    assert same(got.state_dict(), live.state_dict())
    assert same(got.defaults, live.defaults)
    assert repr(got) == repr(live)
    assert [len(group["params"]) for group in got.param_groups] == [len(group["params"]) for group in live.param_groups]
    assert len(model.state_dict()) > 0


@ALL
def test_a_view_does_not_change_when_training_goes_on(name: str) -> None:
    model, live = trained(name)
    before = copy.deepcopy(live.state_dict())
    taken = take(live, Memo(), "optimizer")
    opened_before = open_value(taken, Scope())
    for group in live.param_groups:
        group["lr"] *= 0.5
    train_a_step(model, torch.randn(4, 1, 8, 8), live)
    assert not same(live.state_dict(), before)
    assert same(open_value(taken, Scope()).state_dict(), before)
    assert same(opened_before.state_dict(), before)


@ALL
def test_what_a_view_gives_out_can_be_loaded(name: str) -> None:
    model, live = trained(name)
    other, _ = trained(name)
    fresh = MAKE[name](list(other.parameters()))
    fresh.load_state_dict(capture(live).state_dict())
    assert same(fresh.state_dict(), live.state_dict())
    assert model is not other


def test_lbfgs_is_shown_and_isolated() -> None:
    live, closure = lbfgs()
    before = copy.deepcopy(live.state_dict())
    taken = take(live, Memo(), "optimizer")
    live.step(closure)
    assert same(open_value(taken, Scope()).state_dict(), before)
    assert not same(live.state_dict(), before)


def test_a_model_and_its_optimizer_share_parameters_in_a_hook_whatever_comes_first() -> None:
    model, live = trained("Adam")
    for order in ((model, live), (live, model)):
        memo, scope = Memo(), Scope()
        got = [open_value(take(value, memo, "x"), scope) for value in order]
        replica, view = got if isinstance(got[0], ConvNet) else got[::-1]
        assert all(a is b for a, b in zip(replica.parameters(), view.param_groups[0]["params"], strict=True))
        assert view.state[replica.conv.weight]["step"] == 2


@pytest.mark.parametrize(
    ("method", "arguments"),
    [("step", ()), ("zero_grad", ()), ("add_param_group", ({},)), ("load_state_dict", ({},))],
)
def test_a_view_changes_nothing_and_says_what_to_do(method: str, arguments: tuple[Any, ...]) -> None:
    got = capture(trained("SGD")[1])
    with pytest.raises(StandInError, match=rf"SGD\.{method}: background hooks see a snapshot.*inline\(\.\.\.\)"):
        getattr(got, method)(*arguments)


def test_a_scheduler_that_patches_the_optimizer_does_not_open_a_way_around() -> None:
    _, live = trained("SGD")
    lr_scheduler.StepLR(live, 1)
    with pytest.raises(StandInError):
        capture(live).step()


def test_hooks_of_the_optimizer_are_left_out() -> None:
    _, live = trained("SGD")
    live.register_state_dict_post_hook(lambda *_: pytest.fail("a hook of the live optimizer ran"))
    live.register_step_post_hook(lambda *_: None)
    assert capture(live).state_dict()["param_groups"]


def test_what_a_users_optimizer_has_besides_is_shown_if_it_can_be_and_named_if_not() -> None:
    class Custom(torch.optim.SGD):
        pass

    live = Custom([torch.nn.Parameter(torch.ones(2))], 0.1)
    live.history = [1, 2]
    live.group = threading.Lock()
    got = capture(live)
    assert got.history == [1, 2]
    with pytest.raises(StandInError, match=r"Custom\.group is not part of the snapshot"):
        _ = got.group


def test_a_state_that_cannot_be_copied_is_an_error() -> None:
    _, live = trained("SGD")
    live.state[live.param_groups[0]["params"][0]]["lock"] = threading.Lock()
    with pytest.raises(CaptureError, match=r"optimizers\['a'\]\.state\[Parameter\]\['lock'\]: a _thread\.lock"):
        take({"a": live}, Memo(), "optimizers")


SCHEDULERS: dict[str, Any] = {
    "StepLR": lambda o: lr_scheduler.StepLR(o, 2),
    "MultiStepLR": lambda o: lr_scheduler.MultiStepLR(o, [1, 3]),
    "LambdaLR": lambda o: lr_scheduler.LambdaLR(o, lambda epoch: 0.9**epoch),
    "CosineAnnealingWarmRestarts": lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 3),
    "OneCycleLR": lambda o: lr_scheduler.OneCycleLR(o, 0.1, total_steps=10),
    "CyclicLR": lambda o: lr_scheduler.CyclicLR(o, 0.01, 0.1),
    "ReduceLROnPlateau": lambda o: lr_scheduler.ReduceLROnPlateau(o, patience=0),
    "SequentialLR": lambda o: lr_scheduler.SequentialLR(
        o, [lr_scheduler.ConstantLR(o, 0.1), lr_scheduler.ExponentialLR(o, 0.9)], [2]
    ),
    "ChainedScheduler": lambda o: lr_scheduler.ChainedScheduler(
        [lr_scheduler.ConstantLR(o), lr_scheduler.StepLR(o, 2)]
    ),
}


@pytest.mark.parametrize("name", SCHEDULERS)
def test_a_scheduler_is_shown_as_of_the_event(name: str) -> None:
    def step(scheduler: Any) -> None:
        scheduler.optimizer.step()
        scheduler.step(*([1.0] if name == "ReduceLROnPlateau" else []))

    _, optimizer = trained("SGD")
    live = SCHEDULERS[name](optimizer)
    step(live)
    before, rates = copy.deepcopy(live.state_dict()), list(live.get_last_lr())
    memo = Memo()
    taken = take(live, memo, "scheduler")
    step(live)
    step(live)
    got = open_value(taken, Scope())
    assert isinstance(got, type(live))
    assert same(got.state_dict(), before)
    assert got.get_last_lr() == rates
    assert getattr(got, "last_epoch", 1) == 1
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = got.nothing
    assert id(optimizer) not in memo.copies
    with pytest.raises(StandInError, match="inline"):
        got.step()
    with pytest.raises(StandInError, match=r"optimizer is not part of the snapshot"):
        _ = got.optimizer


@pytest.mark.parametrize("enabled", [True, False])
def test_a_scaler_is_shown_as_of_the_event(enabled: bool) -> None:
    live = torch.amp.GradScaler("cpu", init_scale=8.0, enabled=enabled)
    for _ in range(2):
        before = copy.deepcopy(live.state_dict())
        taken = take(live, Memo(), "grad_scaler")
        weight = torch.nn.Parameter(torch.ones(2))
        optimizer = torch.optim.SGD([weight], 0.1)
        live.scale(weight.sum() * torch.inf).backward()
        live.step(optimizer)
        live.update()
        got = open_value(taken, Scope())
        assert isinstance(got, torch.amp.GradScaler)
        assert got.is_enabled() is enabled
        assert got.state_dict() == before
        assert got.get_scale() == before.get("scale", 1.0)
    for method in ("scale", "step", "update", "unscale_", "load_state_dict"):
        with pytest.raises(StandInError, match=rf"GradScaler\.{method}"):
            getattr(got, method)()


def test_capturing_a_scaler_reads_no_tensor(monkeypatch: pytest.MonkeyPatch) -> None:
    live = torch.amp.GradScaler("cpu")
    live.scale(torch.ones(()))
    monkeypatch.setattr(torch.Tensor, "item", lambda _: pytest.fail("item() waits for the device"))
    take(live, Memo(), "grad_scaler")
