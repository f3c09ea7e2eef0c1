"""What a hook may keep: values yes, stand-ins for live objects only with ``keep``."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import pytest
import torch
from torch import nn

from async_trainer.errors import StandInError
from async_trainer.snapshot import Memo, Scope, keep, open_value, take
from tests.nets import ConvNet, Knotted, seeded

HOOK = "loss_curve.on_train_start"


def opened(**live: Any) -> tuple[dict[str, Any], Scope]:
    memo, scope = Memo(), Scope(HOOK)
    return {name: open_value(take(value, memo, name), scope) for name, value in live.items()}, scope


def model_and_optimizers() -> dict[str, Any]:
    model = seeded(ConvNet)
    return {"model": model, "optimizers": {"sgd": torch.optim.SGD(model.parameters(), 0.1)}}


USES: list[Any] = [
    lambda model: model(torch.ones(1, 1, 8, 8)),
    lambda model: model.state_dict(),
    lambda model: model.training,
    lambda model: list(model.parameters()),
    lambda model: setattr(model, "a", 1),
    lambda model: len(model),
    lambda model: model[0],
    lambda model: list(model),
    lambda model: model.to("cpu"),
]


@pytest.mark.parametrize("use", USES)
def test_a_model_used_after_its_hook_says_what_to_do(use: Any) -> None:
    got, scope = opened(model=nn.Sequential(seeded(ConvNet)))
    model, inner, deepest = got["model"], got["model"][0], got["model"][0].conv
    scope.close()
    for stand_in in (model, inner, deepest):
        with pytest.raises(StandInError) as caught:
            use(stand_in)
        assert HOOK in str(caught.value)
        assert "name `model` in each hook that needs it, or keep(model)" in str(caught.value)


def test_optimizers_schedulers_and_scalers_expire_too() -> None:
    live = model_and_optimizers()
    live["scheduler"] = torch.optim.lr_scheduler.StepLR(live["optimizers"]["sgd"], 1)
    live["grad_scaler"] = torch.amp.GradScaler("cpu")
    got, scope = opened(**live)
    scope.close()
    for stand_in, name in (
        (got["optimizers"]["sgd"], "optimizers"),
        (got["scheduler"], "scheduler"),
        (got["grad_scaler"], "grad_scaler"),
    ):
        with pytest.raises(StandInError, match=rf"keep\({name}\)"):
            stand_in.state_dict()


def test_a_hook_that_asks_politely_gets_an_answer() -> None:
    got, scope = opened(model=seeded(ConvNet))
    scope.close()
    assert not hasattr(got["model"], "state_dict")
    assert getattr(got["model"], "state_dict", None) is None
    assert "expired" in repr(got["model"])
    assert HOOK in repr(got["model"])


def test_values_stay_valid() -> None:
    live = model_and_optimizers()
    expected = live["model"].conv.weight.detach().clone()
    got, scope = opened(**live, batch={"x": torch.ones(2)})
    weight, state = got["model"].conv.weight, got["model"].state_dict()
    scope.close()
    with torch.no_grad():
        live["model"].conv.weight.zero_()
    assert torch.equal(weight, expected)
    assert torch.equal(state["conv.weight"], expected)
    assert got["batch"]["x"].sum() == 2
    assert list(got["optimizers"]) == ["sgd"]


def test_what_is_kept_stays_valid_with_all_its_parts() -> None:
    live = model_and_optimizers()
    live["knotted"] = seeded(Knotted)
    got, scope = opened(**live)
    assert keep(got["model"]) is got["model"]
    assert keep(got["knotted"].hidden)
    scope.close()
    assert got["model"](torch.ones(1, 1, 8, 8)).shape == (1, 3)
    with pytest.raises(StandInError):
        got["knotted"](torch.ones(3))
    with pytest.raises(StandInError):
        got["optimizers"]["sgd"].state_dict()


def test_a_dict_of_optimizers_can_be_kept() -> None:
    got, scope = opened(**model_and_optimizers())
    keep(got["optimizers"])
    scope.close()
    assert got["optimizers"]["sgd"].state_dict()["param_groups"]


def test_a_part_that_is_kept_keeps_what_it_leads_to() -> None:
    got, scope = opened(model=seeded(Knotted))
    first, second, act = keep(got["model"].first), got["model"].second, got["model"].act
    scope.close()
    assert first.parent.second is second
    assert act(torch.ones(3)).shape == (3,)


def test_to_keep_a_value_is_allowed_and_does_nothing() -> None:
    for value in (1, [torch.ones(1)], None, torch.ones(2)):
        assert keep(value) is value


def test_what_was_kept_is_forgotten_when_it_goes() -> None:
    from async_trainer.snapshot import standin

    got, scope = opened(model=seeded(ConvNet))
    before = len(standin._kept)
    keep(got["model"])
    scope.close()
    got.clear()
    gc.collect()
    assert len(standin._kept) == before - before


def test_an_expired_model_lets_go_of_its_tensors() -> None:
    got, scope = opened(model=seeded(ConvNet))
    weight = weakref.ref(got["model"].conv.weight)
    scope.close()
    assert weight() is None
    assert got["model"] is not None


def test_a_scope_can_be_closed_twice_and_empty() -> None:
    _, scope = opened(model=seeded(ConvNet))
    scope.close()
    scope.close()
    Scope().close()


def test_stand_ins_inside_other_values_expire_too() -> None:
    model = seeded(ConvNet)
    got, scope = opened(output={"teacher": [model]})
    scope.close()
    with pytest.raises(StandInError, match=r"name `output`"):
        got["output"]["teacher"][0].eval()


def test_a_model_that_cannot_change_class_is_emptied() -> None:
    class Slotted(nn.Linear):
        __slots__ = ("note",)

    live = Slotted(2, 2)
    live.note = "n"
    got, scope = opened(model=live)
    assert got["model"].note == "n"
    scope.close()
    with pytest.raises((StandInError, AttributeError)):
        got["model"](torch.ones(2))


@pytest.mark.parametrize("make", [Knotted, ConvNet], ids=lambda make: make.__name__)
def test_a_snapshot_is_freed_without_the_collector(make: Any) -> None:
    model = make()
    model.big = nn.Parameter(torch.ones(100_000))
    memo = Memo()
    gc.collect()
    gc.disable()
    try:
        taken = {
            name: take(value, memo, name) for name, value in (("model", model), ("part", model), ("list", [model]))
        }
        buffers = memo.buffers
        del memo
        scope = Scope()
        replica = open_value(taken.pop("model"), scope)
        assert replica.big.sum() == 100_000
        scope.close()
        other = open_value(taken.pop("part"), Scope())
        keep(other)
        assert open_value(taken["list"], scope)[0].big.sum() == 100_000
        scope.close()
        taken.clear()
        assert all(buffer() is not None for buffer in buffers)
        assert other.big.sum() == 100_000
        other.__dict__.clear()
        assert all(buffer() is None for buffer in buffers)
    finally:
        gc.enable()
