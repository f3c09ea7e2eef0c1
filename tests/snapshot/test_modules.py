"""Replicas of modules: what they compute, what they share, and what they leave alone."""

from __future__ import annotations

import copy
import threading
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils import prune

from async_trainer.snapshot import Memo, Scope, capture, open_value, take
from tests.nets import NETS, ConvNet, Knotted, Picky, Recurrent, Tied, seeded, train_a_step
from tests.same import same

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::UserWarning")

ALL = pytest.mark.parametrize("name", NETS)


def net_and_input(name: str) -> tuple[nn.Module, torch.Tensor]:
    make, make_input = NETS[name]
    return seeded(make), seeded(make_input)


def deep_copy(name: str) -> nn.Module:
    """The same model, by itself: some of these can't be deep copied."""
    return net_and_input(name)[0]


@pytest.fixture
def armed() -> Any:
    Picky.armed = True
    yield
    Picky.armed = False


@ALL
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_a_replica_computes_what_a_deep_copy_does(name: str, training: bool) -> None:
    model, x = net_and_input(name)
    expected = deep_copy(name).train(training)
    model.train(training)
    got = capture(model)
    assert type(got) is type(model)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        output = got(x)
        torch.manual_seed(1)
        assert torch.equal(output, expected(x))


@ALL
def test_a_replica_shows_what_the_model_showed(name: str) -> None:
    model, _ = net_and_input(name)
    got = capture(model)
    assert list(got.state_dict()) == list(model.state_dict())
    assert same(dict(got.state_dict()), dict(model.state_dict()))
    assert [n for n, _ in got.named_parameters()] == [n for n, _ in model.named_parameters()]
    assert [n for n, _ in got.named_modules()] == [n for n, _ in model.named_modules()]
    assert [p.requires_grad for p in got.parameters()] == [p.requires_grad for p in model.parameters()]
    assert repr(got) == repr(model)


@ALL
def test_training_on_leaves_a_replica_unchanged(name: str) -> None:
    model, x = net_and_input(name)
    taken = take(model, Memo(), "model")
    opened_before = open_value(taken, Scope())
    first = next(model.parameters())
    optimizer = torch.optim.SGD(model.parameters(), 0.5)
    if not x.is_floating_point() or name == "a class that minds" or first.requires_grad:
        train_a_step(model, x, optimizer)
    expected = deep_copy(name)
    assert not same(dict(model.state_dict()), dict(expected.state_dict()))
    for got in (opened_before, open_value(taken, Scope())):
        assert same(dict(got.state_dict()), dict(expected.state_dict()))
        assert torch.equal(got.eval()(x), deep_copy(name).eval()(x))


@ALL
def test_using_a_replica_leaves_the_model_and_other_replicas_unchanged(name: str) -> None:
    model, x = net_and_input(name)
    taken = take(model, Memo(), "model")
    first, second = open_value(taken, Scope()), open_value(taken, Scope())
    first.train()
    first(x).sum().backward()
    first.eval()
    first.more_state = 1
    for module in first.modules():
        for buffer in module.buffers(recurse=False):
            buffer.zero_()
        module.register_forward_hook(lambda *_: None)
    expected = deep_copy(name)
    assert same(second, expected)
    assert same(model, expected)
    assert all(p.grad is None for p in [*second.parameters(), *model.parameters()])


@ALL
def test_no_code_of_the_class_runs(name: str, armed: None) -> None:
    Picky.armed = False
    model, _ = net_and_input(name)
    Picky.armed = True
    assert type(capture(model)) is type(model)


def test_tied_and_shared_parts_stay_tied_and_shared() -> None:
    got = capture(seeded(Tied))
    assert got.out.weight is got.embed.weight
    assert got.block is got.again
    assert got.scale is got.block.scale


def test_replicas_share_the_memory_of_parameters_and_not_that_of_buffers() -> None:
    taken = take(seeded(ConvNet), Memo(), "model")
    first, second = open_value(taken, Scope()), open_value(taken, Scope())
    assert first.conv.weight is not second.conv.weight
    assert first.conv.weight.data_ptr() == second.conv.weight.data_ptr()
    assert first.norm.running_mean.data_ptr() != second.norm.running_mean.data_ptr()
    assert first.calls.data_ptr() != second.calls.data_ptr()


def test_a_big_buffer_is_each_replicas_own_even_if_it_was_an_argument_too() -> None:
    model = nn.Module()
    model.register_buffer("queue", torch.zeros(100_000))
    model.table = torch.zeros(100_000)
    memo = Memo()
    take({"queue": model.queue}, memo, "output")
    taken = take(model, memo, "model")
    first, second = open_value(taken, Scope()), open_value(taken, Scope())
    first.queue.add_(1)
    first.table.add_(1)
    assert second.queue.sum() == second.table.sum() == 0


def test_references_into_the_tree_lead_into_the_replica() -> None:
    model = seeded(Knotted)
    got = capture(model)
    assert got.layers == [got.first, got.second]
    assert got.by_name["second"] is got.second
    assert got.by_name["weights"][0] is got.first.weight
    assert got.hidden[0] is not model.hidden[0]
    assert got.first.parent is got
    assert got.bound.__self__ is got.first
    assert got.config == model.config
    assert got.config is not model.config


def test_an_lstm_runs_on_the_weights_that_its_replica_shows() -> None:
    got = capture(seeded(Recurrent)).lstm
    named = dict(got.named_parameters())
    assert all(weight is named[name] for name, weight in zip(got._flat_weights_names, got._flat_weights, strict=True))
    assert [ref() for ref in got._flat_weight_refs] == got._flat_weights


def test_hooks_of_users_are_left_out() -> None:
    model = seeded(ConvNet)
    called: list[str] = []
    lock = threading.Lock()
    handle = model.conv.register_forward_hook(lambda *_: called.append("forward") or (lock and None))
    model.register_forward_pre_hook(lambda *_: called.append("pre"))
    model.register_full_backward_hook(lambda *_: called.append("backward"))
    model.register_state_dict_post_hook(lambda *_: called.append("state"))
    model.handle = handle
    got = capture(model)
    got(torch.randn(2, 1, 8, 8)).sum().backward()
    got.state_dict()
    got.handle.remove()
    assert called == []
    model(torch.randn(2, 1, 8, 8))
    assert called == ["pre", "forward"]


def test_a_hook_added_to_a_replica_is_its_own() -> None:
    model = nn.Linear(2, 2)
    taken = take(model, Memo(), "model")
    first, second = open_value(taken, Scope()), open_value(taken, Scope())
    first.register_forward_hook(lambda *_: torch.zeros(1))
    x = torch.ones(2)
    assert first(x).shape == (1,)
    assert second(x).shape == model(x).shape == open_value(taken, Scope())(x).shape == (2,)


def test_a_handle_of_a_hook_elsewhere_takes_nothing_along() -> None:
    class Watcher:
        def __init__(self) -> None:
            self.lock = threading.Lock()

        def watch(self, *_: Any) -> None:
            return None

    other, model = nn.Linear(2, 2), nn.Linear(2, 2)
    model.handle = other.register_forward_hook(Watcher().watch)
    capture(model).handle.remove()
    assert len(other._forward_hooks) == 1


def test_pruned_weights_stay_pruned() -> None:
    model = nn.Linear(4, 4)
    prune.random_unstructured(model, "weight", 0.5)
    got = capture(model)
    x = torch.randn(2, 4)
    assert torch.equal(got(x), model(x))
    with torch.no_grad():
        got.weight_orig.fill_(1.0)
    got(x)
    assert torch.equal(got.weight, got.weight_mask)


def test_a_lazy_module_can_be_captured_before_and_after_its_first_batch() -> None:
    model = nn.Sequential(nn.LazyLinear(3), nn.LazyBatchNorm1d())
    before = capture(model)
    x = torch.randn(4, 5)
    with torch.random.fork_rng():
        assert before(x).shape == before(x).shape == (4, 3)
    assert type(before[0]) is nn.Linear
    assert type(model[0]) is nn.LazyLinear
    model(x)
    assert same(dict(capture(model).state_dict()), dict(model.state_dict()))


def test_a_replica_can_be_trained_by_its_hook() -> None:
    model = seeded(ConvNet)
    before = copy.deepcopy(dict(model.state_dict()))
    got = capture(model)
    train_a_step(got, torch.randn(4, 1, 8, 8), torch.optim.SGD(got.parameters(), 0.1))
    assert same(dict(model.state_dict()), before)


def test_inside_inference_mode_parameters_keep_requires_grad() -> None:
    model = seeded(ConvNet)
    with torch.inference_mode():
        got = open_value(take(model, Memo(), "model"), Scope())
    got(torch.randn(2, 1, 8, 8)).sum().backward()
    assert all(p.grad is not None for p in got.parameters())
