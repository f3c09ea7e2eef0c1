"""Modules around modules: wrapped, compiled, scripted, traced."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from async_trainer.errors import StandInError
from async_trainer.snapshot import Memo, Scope, capture, open_value, take
from tests.nets import ConvNet, Tied, seeded

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::UserWarning")


def test_wrappers_are_left_out(tmp_path: Any) -> None:
    inner = seeded(ConvNet)
    torch.distributed.init_process_group("gloo", f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        wrapped = [nn.parallel.DistributedDataParallel(inner), nn.DataParallel(inner), torch.compile(inner)]
        for wrapper in [*wrapped, torch.compile(wrapped[0])]:
            got = capture({"model": wrapper, "inner": inner, "same": [wrapper]})
            assert type(got["model"]) is ConvNet
            assert got["model"] is got["inner"] is got["same"][0]
            assert list(got["model"].state_dict()) == list(inner.state_dict())
    finally:
        torch.distributed.destroy_process_group()


def test_a_model_compiled_in_place_is_captured_uncompiled() -> None:
    model = seeded(ConvNet)
    model.compile()
    assert capture(model)._compiled_call_impl is None


@pytest.mark.parametrize(
    "make", [torch.jit.script, lambda m: torch.jit.trace(m, torch.ones(1, 3))], ids=["script", "trace"]
)
def test_a_scripted_module_is_copied_whole(make: Any) -> None:
    live = make(nn.Linear(3, 200_000 // 3))
    x = torch.randn(2, 3)
    expected = live(x)
    memo = Memo()
    taken = take({"m": live}, memo, "model")
    with torch.no_grad():
        live.weight.zero_()
    scope = Scope("hook")
    got = open_value(taken, scope)["m"]
    assert torch.equal(got(x), expected)
    assert memo.nbytes == sum(p.nbytes for p in live.parameters() if p.nbytes > 65536)
    with torch.no_grad():
        got.weight.zero_()
    assert torch.equal(open_value(taken, Scope())["m"](x), expected)
    scope.close()
    with pytest.raises(StandInError, match="hook"):
        got(x)


def test_a_traced_graph_module_is_replicated() -> None:
    live = torch.fx.symbolic_trace(Tied().block)
    x = torch.randn(2, 5)
    assert torch.equal(capture(live)(x), live(x))
