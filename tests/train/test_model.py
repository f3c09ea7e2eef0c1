"""Model and SupervisedModel: the steps, their defaults, their errors."""

from __future__ import annotations

import functools
from collections import namedtuple
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD, Optimizer

from async_trainer import Model, SupervisedModel
from async_trainer.errors import ConfigurationError

X, Y = torch.randn(4, 3), torch.randn(4, 1)
Pair = namedtuple("Pair", ["image", "label"])


def supervised(**options: Any) -> SupervisedModel:
    torch.manual_seed(0)
    return SupervisedModel(nn.Linear(3, 1), nn.MSELoss(), lambda params: SGD(params, lr=0.1), **options)


class Two(Model):
    """Two losses, and an optimizer for each part."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.encoder, self.decoder = nn.Linear(3, 2), nn.Linear(2, 3)

    def forward_step(self, batch: Tensor) -> dict[str, Tensor]:
        code = self.encoder(batch)
        return {"code": code.square().mean(), "back": (self.decoder(code) - batch).square().mean()}

    def evaluation_step(self, batch: Tensor) -> dict[str, Tensor]:
        return {"preds": self.decoder(self.encoder(batch)), "target": batch}

    def build_optimizers(self) -> dict[str, Optimizer]:
        return {
            "encoder": SGD(self.encoder.parameters(), lr=0.1),
            "decoder": SGD(self.decoder.parameters(), lr=0.2),
        }


def no_scaler() -> torch.amp.GradScaler:
    return torch.amp.GradScaler("cpu", enabled=False)


def gradients(model: nn.Module) -> list[Tensor]:
    return [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None]


# -------------------------------------------------------------------------------------------------------------- Model


def test_a_model_has_its_steps() -> None:
    class Nothing(Model):
        pass

    with pytest.raises(TypeError, match="forward_step"):
        Nothing()  # type: ignore[abstract]


def test_by_default_the_gradients_are_those_of_the_sum_of_the_losses() -> None:
    model = Two()
    model.backward_step(model.forward_step(X), no_scaler())
    found = gradients(model)
    model.zero_grad()
    losses = model.forward_step(X)
    (losses["code"] + losses["back"]).backward()  # type: ignore[no-untyped-call]
    assert len(found) == 4
    torch.testing.assert_close(found, gradients(model))


def test_by_default_each_optimizer_makes_a_step() -> None:
    model = Two()
    optimizers = model.build_optimizers()
    model.backward_step(model.forward_step(X), no_scaler())
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model.optimization_step(optimizers, no_scaler())
    for name, parameter in model.named_parameters():
        rate = 0.1 if name.startswith("encoder") else 0.2
        assert parameter.grad is not None
        torch.testing.assert_close(parameter.detach(), before[name] - rate * parameter.grad)


def test_the_scaler_scales_the_loss_and_the_steps_undo_it() -> None:
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    plain, scaled = supervised(), supervised()
    for model, one in ((plain, no_scaler()), (scaled, scaler)):
        optimizers = model.build_optimizers()
        model.backward_step(model.forward_step((X, Y)), one)
        if model is scaled:
            torch.testing.assert_close(gradients(scaled), [8 * gradient for gradient in gradients(plain)])
        model.optimization_step(optimizers, one)
        one.update()
    torch.testing.assert_close(scaled.state_dict(), plain.state_dict())


def test_by_default_there_are_no_loss_functions() -> None:
    assert Two().get_loss_functions() == {}


# ---------------------------------------------------------------------------------------------------- SupervisedModel


@pytest.mark.parametrize(
    ("batch", "options"),
    [
        ((X, Y), {}),
        ([X, Y], {}),
        ((X, Y, "more"), {}),
        (Pair(X, Y), {}),
        ({"input": X, "target": Y}, {}),
        ({"image": X, "label": Y, "age": 3}, {"keys": ("image", "label")}),
        ({"image": X, "label": Y}, {"keys": ["image", "label"]}),
    ],
)
def test_a_batch_may_be_a_pair_or_a_mapping(batch: Any, options: Any) -> None:
    model = supervised(**options)
    loss = model.forward_step(batch)
    torch.testing.assert_close(loss, (model.network(X) - Y).square().mean())
    assert loss.dim() == 0
    output = model.evaluation_step(batch)
    assert list(output) == ["preds", "target"]
    assert torch.equal(output["preds"], model(X))
    assert output["target"] is Y


def test_the_samples_of_a_mapping_are_named() -> None:
    output = supervised().evaluation_step({"sample": list("abcd"), "input": X, "target": Y})
    assert output["sample"] == list("abcd")


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        ({"image": X, "target": Y}, r"no 'input'; it has: image, target.*keys=\(\"image\", \"label\"\)"),
        ({}, "no 'input'"),
        ((X,), "must start with input and target.* a tuple"),
        (X, "must start with input and target.* a Tensor.*write a Model"),
        ("ab", "a str"),
        (None, "a NoneType"),
    ],
)
def test_another_batch_is_refused_with_what_to_do(batch: Any, message: str) -> None:
    model = supervised()
    for step in (model.forward_step, model.evaluation_step):
        with pytest.raises(ConfigurationError, match=message):
            step(batch)


def adam(params: Any) -> Optimizer:
    return torch.optim.Adam(params)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((nn.Linear, nn.MSELoss(), adam), "network must be a torch.nn.Module"),
        ((lambda x: x, nn.MSELoss(), adam), "network must be a torch.nn.Module"),
        ((nn.Linear(3, 1), "mse", adam), "loss must be a function of predictions and targets, not 'mse'"),
        ((nn.Linear(3, 1), nn.MSELoss, adam), r"MSELoss\(\), an instance"),
        ((nn.Linear(3, 1), nn.MSELoss(), 0.1), "optimizer must be a function that makes one"),
        ((nn.Linear(3, 1), nn.MSELoss(), SGD([nn.Parameter(X)], lr=1.0)), "each training gets a new one"),
    ],
)
def test_another_argument_is_refused(arguments: Any, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        SupervisedModel(*arguments)


@pytest.mark.parametrize("keys", ["it", ("input",), ("a", "b", "c"), None, 2])
def test_keys_are_a_pair(keys: Any) -> None:
    with pytest.raises(ConfigurationError, match="keys must be a pair of names"):
        supervised(keys=keys)


def test_the_optimizer_is_new_each_time_and_has_the_networks_parameters() -> None:
    model = SupervisedModel(nn.Linear(3, 1), nn.MSELoss(), functools.partial(SGD, lr=0.5))
    first, second = model.build_optimizers()["optimizer"], model.build_optimizers()["optimizer"]
    assert first is not second
    assert [id(one) for one in first.param_groups[0]["params"]] == [id(one) for one in model.network.parameters()]
    assert first.param_groups[0]["lr"] == 0.5


def test_its_loss_is_a_metric_and_its_weights_are_the_models() -> None:
    loss = nn.CrossEntropyLoss(weight=torch.ones(3))
    model = SupervisedModel(nn.Linear(3, 3), loss, adam)
    assert model.get_loss_functions() == {"loss": loss}
    assert set(model.state_dict()) == {"network.weight", "network.bias", "loss.weight"}
