"""Tensors: values only, whatever the tensor and whatever the mode."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from async_trainer.snapshot import SMALL, Memo, Scope, capture, open_value, take
from tests.same import same


class Tagged(torch.Tensor):
    """A subclass with an attribute."""


class Wrapped(torch.Tensor):
    """A wrapper subclass: its data is in another tensor."""

    inner: torch.Tensor

    @staticmethod
    def __new__(cls, inner: torch.Tensor) -> Wrapped:
        made = torch.Tensor._make_wrapper_subclass(cls, inner.shape, dtype=inner.dtype)
        made.inner = inner
        return made

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        unwrapped = [arg.inner if isinstance(arg, cls) else arg for arg in args]
        out = func(*unwrapped, **(kwargs or {}))
        return cls(out) if isinstance(out, torch.Tensor) else out


ODD: dict[str, Callable[[], torch.Tensor]] = {
    "0-d": lambda: torch.tensor(2.0),
    "empty": lambda: torch.empty(0, 3),
    "leaf": lambda: torch.ones(2, requires_grad=True),
    "non-leaf": lambda: torch.ones(2, requires_grad=True).exp(),
    "bool": lambda: torch.tensor([True, False]),
    "bfloat16": lambda: torch.ones(3, dtype=torch.bfloat16),
    "complex": lambda: torch.ones(3, dtype=torch.complex64),
    "conjugated": lambda: torch.tensor([1 + 2j]).conj(),
    "negated": lambda: torch.tensor([1 + 2j]).conj().imag,
    "transposed": lambda: torch.arange(6.0).view(2, 3).t(),
    "channels last": lambda: torch.ones(2, 3, 4, 4).to(memory_format=torch.channels_last),
    "view": lambda: torch.arange(10.0)[2:8:3],
    "expanded": lambda: torch.arange(3.0).expand(4, 3),
    "sparse coo": lambda: torch.eye(3).to_sparse(),
    "sparse csr": lambda: torch.eye(3).to_sparse_csr(),
    "sparse csc": lambda: torch.eye(3).to_sparse_csc(),
    "mkldnn": lambda: torch.ones(3).to_mkldnn(),
    "meta": lambda: torch.empty(3, 4, device="meta"),
    "big": lambda: torch.rand(300, 300),
}


@pytest.mark.parametrize(
    "mode", [torch.enable_grad, torch.no_grad, torch.inference_mode], ids=lambda mode: mode.__name__
)
@pytest.mark.parametrize("make", ODD.values(), ids=ODD.keys())
def test_any_tensor_becomes_a_normal_one_with_the_same_value_and_strides(make: Any, mode: Any) -> None:
    with mode():
        live = make()
        taken = take(live, Memo(), "x")
        inside = open_value(taken, Scope())
    outside = open_value(taken, Scope())
    for got in (inside, outside):
        assert same(got, live)
        assert not got.is_inference()
        assert got.grad_fn is None
        assert not got.requires_grad
        assert got is not live
        if live.layout is torch.strided and not live.is_meta:
            assert got.stride() == live.clone().stride()
            assert got.untyped_storage().data_ptr() != live.untyped_storage().data_ptr() or not live.numel()


def test_a_view_is_copied_without_the_rest_of_its_storage() -> None:
    got = capture(torch.zeros(1_000_000)[:3])
    assert got.untyped_storage().nbytes() == 12


def test_small_tensors_are_each_hooks_own_and_big_ones_are_shared() -> None:
    for numel, shared in ((SMALL // 4, False), (SMALL // 4 + 1, True)):
        taken = take(torch.zeros(numel), Memo(), "x")
        first, second = open_value(taken, Scope()), open_value(taken, Scope())
        assert first is not second
        assert (first.data_ptr() == second.data_ptr()) is shared


def test_shells_are_each_hooks_own() -> None:
    taken = take(torch.zeros(100_000), Memo(), "x")
    first, second = open_value(taken, Scope()), open_value(taken, Scope())
    first.requires_grad_()
    first.tag = 1
    assert not second.requires_grad
    assert not hasattr(second, "tag")


def test_a_tensor_met_twice_is_copied_once() -> None:
    big = torch.ones(100_000)
    memo, scope = Memo(), Scope()
    first = open_value(take(big, memo, "a"), scope)
    second = open_value(take([big], memo, "b"), scope)
    assert first is second[0]
    assert memo.nbytes == big.nbytes


def test_an_inference_tensor_becomes_a_normal_one() -> None:
    with torch.inference_mode():
        live = torch.ones(3)
    got = capture(live)
    assert not got.is_inference()
    got.requires_grad_().sum().backward()


def test_a_subclass_keeps_its_class_and_attributes() -> None:
    live = torch.ones(2, requires_grad=True).exp().as_subclass(Tagged)
    live.tags = ["a"]
    got = capture(live)
    assert type(got) is Tagged
    assert got.tags == ["a"]
    assert got.tags is not live.tags
    assert got.grad_fn is None


def test_a_wrapper_subclass_is_copied_by_its_own_dispatch() -> None:
    inner = torch.ones(3)
    live = Wrapped(inner)
    got = capture(live)
    inner.add_(1)
    assert type(got) is Wrapped
    assert torch.equal(got.inner, torch.ones(3))


def test_marks_on_a_parameter_are_kept_and_live_things_are_not() -> None:
    live = torch.nn.Parameter(torch.ones(2))
    live.no_decay = True
    live.main_grad = torch.ones(2)
    got = capture(live)
    assert got.no_decay is True
    assert not hasattr(got, "main_grad")


def test_a_parameter_stays_a_parameter_without_its_gradient() -> None:
    live = torch.nn.Parameter(torch.ones(2))
    live.sum().backward()
    got = capture(live)
    assert isinstance(got, torch.nn.Parameter)
    assert got.requires_grad
    assert got.grad is None
    assert capture(torch.nn.Parameter(torch.ones(2), requires_grad=False)).requires_grad is False


def test_nested_tensors_are_copied() -> None:
    live = torch.nested.nested_tensor([torch.ones(2), torch.ones(3)], layout=torch.jagged)
    got = capture(live)
    assert [part.tolist() for part in got.unbind()] == [[1, 1], [1, 1, 1]]


def test_nothing_is_left_of_the_live_graph() -> None:
    weight = torch.ones(2, requires_grad=True)
    loss = (weight * 2).sum()
    got = capture({"loss": loss})["loss"]
    loss.backward()
    assert got.item() == 4.0
    assert torch.equal(weight.grad, torch.full((2,), 2.0))
