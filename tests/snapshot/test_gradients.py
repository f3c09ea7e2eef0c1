"""Gradients, for the hooks that ask for them."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from async_trainer import CallbacksHandler, background, with_gradients
from async_trainer.testing import hold


class Looks:
    def __init__(self) -> None:
        self.seen: list[dict[str, torch.Tensor | None]] = []

    def on_backward_step_end(self, *, model: nn.Module) -> None:
        self.seen.append({name: None if p.grad is None else p.grad.clone() for name, p in model.named_parameters()})


class LooksAtOptimizers(Looks):
    """The optimizer's parameters are those of the model, and are captured first."""

    def on_backward_step_end(self, *, optimizers: Any, model: nn.Module) -> None:  # type: ignore[override]
        names = {id(parameter): name for name, parameter in model.named_parameters()}
        found = {names[id(p)]: p.grad for group in optimizers["sgd"].param_groups for p in group["params"]}
        self.seen.append({name: None if grad is None else grad.clone() for name, grad in found.items()})


def test_they_are_those_of_the_event_whatever_becomes_of_the_live_ones() -> None:
    model = nn.Sequential(nn.Linear(200, 200), nn.Linear(200, 2, bias=False))
    model[1].weight.requires_grad_(False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    asked, optimizers_too = Looks(), LooksAtOptimizers()
    records = [background(one, select={"model": with_gradients}) for one in (asked, optimizers_too)]
    expected = []
    with CallbacksHandler(records) as handler:
        handler.call_event("on_train_start", optimizers={"sgd": optimizer})
        for _ in range(3):
            model(torch.randn(8, 200)).square().mean().backward()
            with hold(handler):
                handler.call_event("on_backward_step_end", model=model, optimizers={"sgd": optimizer})
                expected.append({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})
                optimizer.step()
                for parameter in model.parameters():
                    if parameter.grad is not None:
                        parameter.grad.fill_(7)
                optimizer.zero_grad()
            handler.flush()
    for seen, wanted in (*zip(asked.seen, expected, strict=True), *zip(optimizers_too.seen, expected, strict=True)):
        assert seen["1.weight"] is None
        assert all(torch.equal(seen[name], gradient) for name, gradient in wanted.items())  # type: ignore[arg-type]
        assert len(wanted) == 2


def test_where_nobody_asks_there_are_none() -> None:
    model, looks = nn.Linear(3, 3), Looks()
    model(torch.randn(2, 3)).sum().backward()
    with CallbacksHandler([background(looks)]) as handler:
        handler.call_event("on_backward_step_end", model=model)
    assert looks.seen == [{"weight": None, "bias": None}]


def test_big_ones_count_in_the_budget_and_each_hook_has_a_gradient_of_its_own() -> None:
    model = nn.Linear(300, 300)
    model(torch.randn(2, 300)).sum().backward()
    bumped = []

    class Bumps:
        def on_backward_step_end(self, *, model: nn.Module) -> None:
            assert model.weight.grad is not None
            bumped.append(float(model.weight.grad.sum()))
            model.weight.grad = None

    first, second = (background(Bumps(), select={"model": with_gradients}, name=name) for name in ("one", "two"))
    handler = CallbacksHandler([first, second])
    with handler, hold(handler):
        handler.call_event("on_backward_step_end", model=model)
        assert handler.stats().snapshot_bytes == 2 * model.weight.nbytes
    assert len(bumped) == 2
    assert bumped[0] == bumped[1]
