"""All tensors of an event are found first; then room is reserved for them; then they are copied."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

from async_trainer import CallbacksHandler, background, capture
from async_trainer.snapshot import big
from tests.options.doubles import PATIENCE, Gate
from tests.overlap.kit import WIDTH

NBYTES = WIDTH * WIDTH * 4


class Keeps:
    def __init__(self) -> None:
        self.got: list[dict[str, Any]] = []

    def on_batch_end(self, *, model: Any = None, other: Any = None) -> None:
        weight = None if model is None else model.weight.detach().clone()
        self.got.append({"weight": weight, "other": other})


def linear() -> nn.Linear:
    return nn.Linear(WIDTH, WIDTH, bias=False)


def test_what_is_reserved_is_what_is_copied_however_often_it_is_met(monkeypatch: pytest.MonkeyPatch) -> None:
    model = linear()
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.randn(1, WIDTH)).sum().backward()
    optimizer.step()
    keeps = Keeps()
    with CallbacksHandler([background(keeps)]) as handler:
        reserved: list[int] = []
        reserve = handler._pool.reserve

        def noting(nbytes: int, *, essential: bool) -> Any:
            reserved.append(nbytes)
            return reserve(nbytes, essential=essential)

        monkeypatch.setattr(handler._pool, "reserve", noting)
        with handler._pool.hold():
            handler.call_event("on_batch_end", model=model, other=[optimizer, model.weight])
            assert reserved == [3 * NBYTES]
            assert handler.stats().snapshot_bytes == 3 * NBYTES
    assert len(keeps.got) == 1


def test_nothing_big_is_copied_for_an_event_that_finds_no_room(monkeypatch: pytest.MonkeyPatch) -> None:
    gate, copied = Gate(), []
    real = big.copy_all

    def noting(pairs: Any) -> None:
        copied.append(len(pairs))
        real(pairs)

    monkeypatch.setattr(big, "copy_all", noting)
    handler = CallbacksHandler([background(gate)], max_snapshot_bytes=NBYTES, stall_timeout=0.1)
    handler.call_event("on_batch_end", n=0, output=torch.ones(WIDTH, WIDTH))
    assert gate.entered.wait(PATIENCE)
    arrays = torch.ones(WIDTH, WIDTH).numpy()
    for output in (linear(), torch.ones(WIDTH, WIDTH), [torch.ones(WIDTH, WIDTH), arrays], [arrays, linear()]):
        handler.call_event("on_batch_end", n=1, output=output)
    assert copied == [1]
    assert handler.stats().lanes["gate"].dropped == 4
    assert handler.stats().snapshot_bytes == NBYTES
    gate.go_on.set()
    handler.close()
    assert gate.rows == [0]


def test_one_tensor_that_can_t_be_copied_spoils_no_other_argument() -> None:
    model, freed = linear(), torch.ones(WIDTH, WIDTH)
    freed.untyped_storage().resize_(0)
    keeps, asks = Keeps(), []

    class Asks:
        def on_batch_end(self, *, model: Any) -> None:
            asks.append(torch.equal(model.weight, weight))

    weight = model.weight.detach().clone()
    with CallbacksHandler([background(keeps), background(Asks())]) as handler:
        handler.call_event("on_batch_end", model=model, other={"a": [freed]})
        handler.flush()
        (failure,) = handler.stats().errors
        assert "other['a'][0]: " in str(failure)
        assert "was freed" in str(failure)
        assert handler.stats().snapshot_bytes == 0
    assert asks == [True]
    assert not keeps.got


def test_an_argument_that_fails_half_way_takes_no_room() -> None:
    class Asks:
        def on_batch_end(self, *, other: Any) -> None: ...

    model, keeps = linear(), Keeps()

    def reads(*, model: Any) -> None:
        keeps.on_batch_end(model=model)

    class Reads:
        def on_batch_end(self, *, model: Any) -> None:
            reads(model=model)

    with CallbacksHandler([background(Asks()), background(Reads())]) as handler:
        with handler._pool.hold():
            handler.call_event("on_batch_end", other=[torch.ones(WIDTH, WIDTH), (n for n in ())], model=model)
            assert handler.stats().snapshot_bytes == NBYTES  # the model's
        handler.flush()
        assert handler.stats().lanes["asks"].failed == 1
    assert torch.equal(keeps.got[0]["weight"], model.weight)


class Deep:
    """Copied by its own method, with a tensor that the model has too."""

    def __init__(self, weight: Tensor) -> None:
        self.weight = weight

    def __deepcopy__(self, memo: dict[int, Any]) -> Deep:
        return Deep(copy.deepcopy(self.weight, memo))


def test_a_deep_copy_shares_what_was_found_before_it_and_isn_t_torn() -> None:
    model = linear()
    optimizer = torch.optim.SGD(model.parameters(), 1.0)
    before = model.weight.detach().clone()
    keeps = Keeps()
    with CallbacksHandler([background(keeps)]) as handler:
        handler.call_event("on_train_start", optimizers={"sgd": optimizer})
        with handler._pool.hold():
            handler.call_event("on_batch_end", model=model, other=Deep(model.weight))
            assert handler.stats().snapshot_bytes == NBYTES  # once
            model(torch.randn(1, WIDTH)).sum().backward()
            optimizer.step()
    (got,) = keeps.got
    assert torch.equal(got["weight"], before)
    assert torch.equal(got["other"].weight, before)


class Counted:
    taken = 0


@capture.register(Counted)
def _take_counted(live: Counted) -> int:
    Counted.taken += 1
    return Counted.taken


def test_a_registered_function_runs_once_also_where_an_array_has_room_counted_half_way() -> None:
    Counted.taken = 0
    keeps = Keeps()
    with CallbacksHandler([background(keeps)]) as handler:
        handler.call_event("on_batch_end", model=linear(), other=[Counted(), torch.ones(WIDTH, WIDTH).numpy()])
    assert Counted.taken == 1
    assert keeps.got[0]["other"][0] == 1


class NetConfig(BaseModel):
    model_config = ConfigDict(arbitrary_types_allowed=True)
    net: nn.Module


class Configured(nn.Module):
    """A model whose settings hold its net, as those of ClinicaDL do."""

    def __init__(self) -> None:
        super().__init__()
        self.config = NetConfig(net=linear())
        self.net = self.config.net


def test_a_net_that_settings_of_pydantic_hold_is_copied_while_the_training_goes_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = Configured()
    weight = model.net.weight.detach().clone()
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    model.net(torch.randn(1, WIDTH)).sum().backward()
    at_once: list[int] = []
    real = big.copy_all
    monkeypatch.setattr(big, "copy_all", lambda pairs: (at_once.append(len(pairs)), real(pairs)))
    seen: list[Any] = []

    class Sees:
        def on_batch_end(self, *, model: Any) -> None:
            seen.append((model.config.net is model.net, model.net.weight.detach().clone()))

    with CallbacksHandler([background(Sees())]) as handler:
        handler.call_event("on_train_start", model=model, optimizers=optimizer)
        handler.call_event("on_batch_end", model=model)
        optimizer.step()
    assert at_once == []
    ((shared, got),) = seen
    assert shared
    assert torch.equal(got, weight)
    assert not torch.equal(model.net.weight, weight)
