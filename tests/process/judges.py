"""What is looked at in the child: each is given a value there, and raises where something is wrong with it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from async_trainer import keep
from async_trainer.errors import ElsewhereError, StandInError
from async_trainer.snapshot.frames import copies_on_write
from async_trainer.train.state import FrozenTrainerState
from tests.kinds import KINDS
from tests.nets import NETS, seeded
from tests.same import same

NAMED = {case.name: case for case in KINDS}


def case(name: str, received: Any) -> bool:
    return NAMED[name].equal(received, NAMED[name].make())


def net(name: str, received: nn.Module) -> bool:
    """It is the same, computes the same, and isn't made of one tensor where the live one has two."""
    make, make_input = NETS[name]
    expected, x = seeded(make), seeded(make_input, 1)
    assert same(received, expected)
    assert len(list(received.parameters())) == len(list(expected.parameters()))
    return same(received.eval()(x), expected.eval()(x))


# ------------------------------------------------------------------------------------------------------ what is shared


def address_of(value: Any) -> int:
    return int(value.data_ptr() if isinstance(value, torch.Tensor) else value.__array_interface__["data"][0])


def is_shared(value: Any) -> bool:
    """Whether it is memory of the parent's, not a copy."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        start, end = (int(part, 16) for part in re.split(r"[- ]", line)[:2])
        if start <= address_of(value) < end:
            return "memfd:async_trainer" in line
    return False


def everything_big_is_shared(value: dict[str, Any]) -> None:
    if not copies_on_write():  # pandas 2: each hook gets a deep copy
        value.pop("frame")
    for name, one in value.items():
        assert is_shared(one if isinstance(one, (torch.Tensor, np.ndarray)) else one.to_numpy()), name


def the_net_is_shared(value: Any) -> None:
    model, optimizer = value
    state = optimizer.state[model.weight]
    assert is_shared(model.weight)
    assert is_shared(state["exp_avg"])
    assert optimizer.param_groups[0]["params"][0] is model.weight
    assert int(state["step"]) == 1


def nothing_small_is_shared(value: list[torch.Tensor]) -> None:
    assert value[0] is value[1]
    assert not is_shared(value[0])
    value[0].fill_(7)


# ------------------------------------------------------------------------------------------------------ what is special


def a_lazy_net(value: nn.Module) -> None:
    with pytest.raises(RuntimeError, match="uninitialized"):
        _ = value[0].weight.shape  # type: ignore[index]
    assert value(torch.ones(2, 5)).shape == (2, 3)


def gradients(value: nn.Module) -> None:
    assert torch.equal(value.weight.grad, torch.full((2, 3), 2.0))  # type: ignore[arg-type]
    assert value.bias.grad is None


def tied(value: Any) -> None:
    assert value.out.weight is value.embed.weight
    assert value.again is value.block


def expires(value: nn.Module) -> None:
    kept.append(value)


def kept_ones_tell(value: nn.Module) -> None:
    with pytest.raises(StandInError, match="keep"):
        kept[0].state_dict()
    kept[:] = [keep(value)]


def a_kept_one_works(value: nn.Module) -> None:
    assert torch.equal(kept[0].weight, torch.full((2, 3), 2.0))


kept: list[Any] = []


def a_view_refuses_to_change(value: torch.optim.Optimizer) -> None:
    with pytest.raises(StandInError, match="snapshot"):
        value.step()
    with pytest.raises(StandInError, match="snapshot"):
        value.add_param_group({"params": []})


def a_frozen_state(value: Any) -> None:
    assert type(value) is FrozenTrainerState
    assert value.optim_step == 3
    with pytest.raises(StandInError, match="inline"):
        value.optim_step = 4


class Awkward(Exception):
    """Can't be made from its ``args``."""

    def __init__(self, code: int, *, reason: str) -> None:
        super().__init__(f"{code}: {reason}")
        self.code = code


def an_exception(value: BaseException) -> None:
    assert type(value) is OSError
    assert value.args == (28, "disk full")
    assert value.errno == 28
    assert str(value) == "[Errno 28] disk full"
    assert type(value.__cause__) is ValueError
    assert value.__cause__.args == ("no 3",)
    assert isinstance(value.__cause__.__cause__, ElsewhereError)
    assert 'raise ValueError("no 3")' in str(value.__cause__.__cause__)


def an_awkward_exception(value: BaseException) -> None:
    assert type(value) is Awkward
    assert value.args == ("3: full",)
    assert value.code == 3
    assert str(value) == "3: full"


def metrics(value: Any) -> None:
    assert value.get_metric_value("loss") == 0.5
    assert list(value.df["loss"]) == [0.5]
    with pytest.raises(StandInError):
        value.reset()


def maps(path: Path, value: Any) -> None:
    assert value.path == path


def is_types(value: Any) -> bool:
    import types

    return value is types
