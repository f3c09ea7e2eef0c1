"""Models, optimizers, schedulers and scalers, for the table of all kinds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from tests.case import Case, Mutation, add, at, set_to
from tests.nets import NETS, seeded, train_a_step
from tests.same import same


def _trained(make: Callable[[Any], Any], steps: int = 2) -> Callable[[], Any]:
    def trained() -> Any:
        model, x = seeded(NETS["conv and batch norm"][0]), seeded(NETS["conv and batch norm"][1])
        optimizer = make(model.parameters())
        for _ in range(steps):
            train_a_step(model, x, optimizer)
        optimizer.trainee = model
        return optimizer

    return trained


def _train(model: Any) -> None:
    train_a_step(model, seeded(NETS["conv and batch norm"][1], 1), torch.optim.SGD(model.parameters(), 0.1))


def _state_of(optimizer: Any) -> dict[str, Any]:
    return next(state for state in optimizer.state.values() if state)


def _each_state(optimizer: Any) -> None:
    for state in optimizer.state.values():
        for value in state.values():
            if isinstance(value, torch.Tensor):
                add(value)


def _same_optimizer(received: Any, before: Any) -> bool:
    return isinstance(received, type(before)) and same(received, before) and repr(received) == repr(before)


_OPTIMIZER_MUTATIONS: tuple[Mutation, ...] = (
    lambda live: live.param_groups[0].__setitem__("lr", 99.0),
    lambda live: live.defaults.__setitem__("lr", 99.0),
    lambda live: live.param_groups[0]["params"].reverse(),
    lambda live: add(live.param_groups[0]["params"][0]),
    lambda live: _state_of(live).__setitem__("new", 1),
    _each_state,
    lambda live: live.state.clear(),
    lambda live: live.add_param_group({"params": [torch.zeros(2, requires_grad=True)]}),
)

_MODEL_MUTATIONS: tuple[Mutation, ...] = (
    lambda live: add(live.conv.weight),
    lambda live: live.head.bias.data.zero_(),
    lambda live: live.norm.running_mean.add_(1),
    lambda live: live.norm.num_batches_tracked.add_(1),
    lambda live: live.calls.add_(1),
    lambda live: live.conv.eval(),
    lambda live: live.head.__setattr__("extra", 1),
    lambda live: live.head.weight.requires_grad_(False),
    _train,
    lambda live: live.conv.__setattr__("stride", (2, 2)),
    lambda live: live.__setattr__("head", torch.nn.Identity()),
)


def _same_model(received: Any, before: Any) -> bool:
    grads = [p.requires_grad for p in received.parameters()] == [p.requires_grad for p in before.parameters()]
    return grads and same(received, before)


def _step(scheduler: Any) -> None:
    scheduler.optimizer.step()
    scheduler.step()


def _scheduler(make: Callable[[Any], Any]) -> Callable[[], Any]:
    def made() -> Any:
        scheduler = make(_trained(lambda p: torch.optim.SGD(p, 0.1))())
        _step(scheduler)
        return scheduler

    return made


def _scaler() -> Any:
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    scaler.scale(torch.ones(()))
    return scaler


LIVE = (
    Case("model", lambda: seeded(NETS["conv and batch norm"][0]), _MODEL_MUTATIONS, _same_model),
    Case("SGD", _trained(lambda p: torch.optim.SGD(p, 0.1, momentum=0.9)), _OPTIMIZER_MUTATIONS, _same_optimizer),
    Case("Adam", _trained(torch.optim.Adam), _OPTIMIZER_MUTATIONS, _same_optimizer),
    Case("AdamW", _trained(lambda p: torch.optim.AdamW(p, amsgrad=True)), _OPTIMIZER_MUTATIONS, _same_optimizer),
    Case(
        "optimizers",
        lambda: {"a": _trained(torch.optim.Adam)()},
        (*(at(lambda live: live["a"], mutation) for mutation in _OPTIMIZER_MUTATIONS), lambda live: live.clear()),
        lambda received, before: received.keys() == before.keys() and _same_optimizer(received["a"], before["a"]),
    ),
    Case(
        "scheduler",
        _scheduler(lambda optimizer: torch.optim.lr_scheduler.MultiStepLR(optimizer, [1, 3])),
        (_step, lambda live: live.milestones.update([9]), lambda live: live.base_lrs.append(1.0)),
    ),
    Case(
        "scaler",
        _scaler,
        (lambda live: live._scale.fill_(2.0), lambda live: live._growth_tracker.add_(1), set_to("_growth_factor", 3.0)),
    ),
)
