"""Finding out that a callback holds live objects of the run."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import nn

from async_trainer.snapshot import held_by
from tests.nets import ConvNet


class Callback:
    def __init__(self, **attributes: Any) -> None:
        self.__dict__.update(attributes)

    @property
    def trap(self) -> None:
        raise AssertionError("a property must not run")


class Slotted:
    __slots__ = ("model", "unset")

    def __init__(self, model: Any) -> None:
        self.model = model


class Base:
    """What its subclass has as an attribute of the class."""

    nets: Any = ()


def of_class(model: Any) -> Any:
    return type("Plots", (Base,), {"model": model})()


def of_base(model: Any) -> Any:
    return type("Plots", (type("Nets", (Base,), {"nets": [model.head]}),), {})()


@dataclass
class Config:
    held: Any


@pytest.fixture
def run() -> dict[str, Any]:
    model = ConvNet()
    return {"model": model, "optimizers": {"a": torch.optim.SGD(model.parameters(), 0.1)}}


HOLDING: list[tuple[Any, str]] = [
    (lambda model, _: Callback(model=model), "self.model"),
    (lambda _, optimizer: Callback(opt=optimizer), "self.opt"),
    (lambda model, _: Callback(name="x", nets={"a": [1, model.head]}), "self.nets['a'][1]"),
    (lambda model, _: Callback(weights={model.head.weight}), "self.weights[...]"),
    (lambda model, _: Callback(config=Config((0, model.conv))), "self.config.held[1]"),
    (lambda model, _: Callback(probe=nn.Sequential(model.conv)), "self.probe.0"),
    (lambda model, _: Callback(predict=model.forward), "self.predict.__self__"),
    (lambda model, _: Callback(predict=functools.partial(print, model)), "self.predict.args[0]"),
    (lambda model, _: Callback(deep=Slotted(model)), "self.deep.model"),
    (lambda model, _: Slotted(model.norm), "self.model"),
    (lambda model, _: of_class(model), "self.model"),
    (lambda model, _: of_base(model), "self.nets[0]"),
    (lambda model, _: Callback(callback=of_class(model)), "self.callback.model"),
]


@pytest.mark.parametrize(("make", "path"), HOLDING, ids=[path for _, path in HOLDING])
def test_the_attribute_that_holds_a_live_object_is_named(run: dict[str, Any], make: Any, path: str) -> None:
    assert held_by(make(run["model"], run["optimizers"]["a"]), run.values()) == path


@pytest.mark.parametrize(
    "make",
    [
        lambda model: Callback(),
        lambda model: Callback(model=ConvNet()),
        lambda model: Callback(weights=[p.detach().clone() for p in model.parameters()], text="model", n=3),
        lambda model: Callback(kind=type(model), function=ConvNet.forward),
        lambda model: Slotted(None),
    ],
)
def test_a_callback_with_things_of_its_own_is_fine(run: dict[str, Any], make: Any) -> None:
    assert held_by(make(run["model"]), run.values()) is None


def test_a_parameter_of_an_optimizer_alone_is_found() -> None:
    weight = nn.Parameter(torch.ones(2))
    optimizer = torch.optim.SGD([weight], 0.1)
    assert held_by(Callback(w=weight), [optimizer]) == "self.w"


def test_the_look_is_bounded(run: dict[str, Any]) -> None:
    deep: Any = run["model"]
    for _ in range(20):
        deep = [deep]
    wide = list(range(1_000_000))
    callback = Callback(deep=deep, wide=wide)
    callback.me = callback
    assert held_by(callback, run.values()) is None


def test_modules_that_a_wrapper_hides_are_found(run: dict[str, Any]) -> None:
    wrapped = nn.DataParallel(run["model"])
    assert held_by(Callback(model=run["model"]), [wrapped]) == "self.model"
