"""What hooks receive."""

from __future__ import annotations

import copy
import enum
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from async_trainer import TrainerState, background, inline
from async_trainer.callback import Placement
from async_trainer.errors import UnnamedArgumentError
from async_trainer.routes import EventInfo
from tests.options.doubles import Loud, Make, NamesRun, Rows

# --------------------------------------------------------------------------------------------------- what hooks receive


class Colour(enum.Enum):
    RED = 1


def test_kwargs_bring_state_maps_event_and_plain_values(placement: Placement, handlers: Make) -> None:
    class Takes:
        def __init__(self) -> None:
            self.got: dict[str, Any] = {}

        def on_batch_end(self, *, named: Any, **kwargs: Any) -> None:
            self.got = {"named": named, **kwargs}

    takes = Takes()
    state = TrainerState(optim_step=3)
    plain = {"a": "text", "b": 1, "c": 0.5, "d": True, "e": None, "f": Colour.RED, "g": Path("x"), "h": np.float32(2)}
    handler = handlers(background(takes, placement=placement))
    with handler._pool.hold():
        handler.call_event("on_batch_end", state=state, maps={"a": [1]}, named=[1], **plain)
        state.optim_step = 4
    handler.close()
    got = takes.got
    assert isinstance(got["state"], TrainerState)
    assert got["state"].optim_step == 3
    assert got["maps"] == {"a": [1]}
    assert got["event"] == EventInfo("on_batch_end", 1, 1, False)
    assert got["named"] == [1]
    assert {name: got[name] for name in plain} == plain
    assert set(got) == {"state", "maps", "event", "named", *plain}


USES: dict[str, Callable[[Any], Any]] = {
    "attribute": lambda loss: loss.item,
    "hasattr": lambda loss: hasattr(loss, "item"),
    "getattr with a default": lambda loss: getattr(loss, "item", None),
    "set attribute": lambda loss: setattr(loss, "x", 1),
    "delete attribute": lambda loss: delattr(loss, "x"),
    "call": lambda loss: loss(),
    "item": lambda loss: loss[0],
    "set item": lambda loss: loss.__setitem__(0, 1),
    "len": len,
    "iter": list,
    "next": next,
    "contains": lambda loss: 1 in loss,
    "bool": bool,
    "not": lambda loss: not loss,
    "float": float,
    "int": int,
    "complex": complex,
    "index": lambda loss: [1, 2][loss],
    "round": round,
    "hash": hash,
    "set": lambda loss: {loss},
    "equal": lambda loss: loss == 1,
    "equal, from the left": lambda loss: loss == 1,
    "in a list": lambda loss: loss in [1, 2],
    "unequal": lambda loss: loss != 1,
    "less": lambda loss: loss < 1,
    "max": lambda loss: max(1, loss),
    "add": lambda loss: loss + 1,
    "sum": lambda loss: sum([loss]),
    "power": lambda loss: loss**2,
    "floor": lambda loss: loss // 2,
    "or": lambda loss: loss | {},
    "matmul": lambda loss: loss @ loss,
    "times, from the left": lambda loss: 2 * loss,
    "torch times": lambda loss: torch.ones(2) * loss,
    "numpy times": lambda loss: np.ones(2) * loss,
    "array": np.asarray,
    "as_tensor": torch.as_tensor,
    "negative": lambda loss: -loss,
    "abs": abs,
    "format": lambda loss: f"{loss:.3f}",
    "unpack": lambda loss: dict(**loss),
    "with": lambda loss: loss.__enter__(),
    "open": lambda loss: open(loss),  # noqa: SIM115
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    "pickle": pickle.dumps,
}


@pytest.mark.parametrize("use", USES.values(), ids=USES.keys())
def test_any_other_value_in_kwargs_raises_where_it_is_used_and_says_what_to_name(
    use: Callable[[Any], Any], handlers: Make
) -> None:
    class Uses:
        def on_batch_end(self, **kwargs: Any) -> None:
            use(kwargs["loss"])

    handler = handlers(background(Uses(), retries=3, backoff=0.0))
    handler.call_event("on_batch_end", loss=torch.ones(()))
    report = handler.close()
    [failure] = report.errors
    assert isinstance(failure.error, UnnamedArgumentError)
    assert str(failure.error) == ("uses.on_batch_end must name 'loss' to use it: def ...(self, *, loss, **kwargs)")
    assert failure.attempt == 1  # it would say the same again


def test_the_stand_in_can_be_printed_and_asked_what_it_is(placement: Placement, handlers: Make) -> None:
    class Prints:
        def on_batch_end(self, **kwargs: Any) -> None:
            self.text = f"{kwargs}"
            self.answers = (kwargs["loss"] is None, isinstance(kwargs["loss"], torch.Tensor), str(kwargs["loss"]))

    prints = Prints()
    handler = handlers(background(prints, placement=placement))
    handler.call_event("on_batch_end", loss=torch.ones(()))
    assert handler.close().ok
    note = "<not captured: prints.on_batch_end must name 'loss' to use it: def ...(self, *, loss, **kwargs)>"
    assert note in prints.text
    assert prints.answers == (False, False, note)


def test_what_only_kwargs_would_bring_is_not_captured(handlers: Make) -> None:
    handler = handlers(background(Rows()))
    handler.call_event("on_batch_end", value=Loud())
    handler.close()
    assert Loud.captured == 0


def test_an_argument_is_captured_once_per_event_however_many_hooks_name_it(
    placement: Placement, handlers: Make
) -> None:
    class Names:
        def on_batch_end(self, *, value: Any) -> None:
            assert value == "captured"

    handler = handlers(background([Names(), Names(), Names()], placement=placement))
    for _ in range(4):
        handler.call_event("on_batch_end", value=Loud())
    assert handler.close().delivered == 12
    assert Loud.captured == 4


def test_a_parameter_with_a_default_is_optional(placement: Placement, handlers: Make) -> None:
    class Optional:
        def __init__(self) -> None:
            self.got: list[Any] = []

        def on_batch_end(self, *, loss: Any = "default", extra: Any = None) -> None:
            self.got.append((loss, extra))

    callbacks = [Optional(), Optional()]
    handler = handlers(background(callbacks[0], placement=placement), inline(callbacks[1]))
    handler.call_event("on_batch_end")
    handler.call_event("on_batch_end", loss=[1])
    handler.call_event("on_batch_end", loss=None, extra=2, more=3)
    assert handler.close().ok
    assert callbacks[0].got == callbacks[1].got == [("default", None), ([1], None), (None, 2)]


def test_event_tells_its_name_its_number_and_the_attempt(placement: Placement, handlers: Make) -> None:
    rows, some = Rows(), Rows()
    live = Rows()
    options: dict[str, Any] = {"placement": placement}
    handler = handlers(background(rows, **options), background(some, every={"on_batch_end": 2}, **options), live)
    handler.call_event("on_batch_end")
    handler.call_event("on_epoch_end")
    handler.call_event("on_batch_end")
    handler.close()
    told = [EventInfo("on_batch_end", 1, 1), EventInfo("on_epoch_end", 2, 1), EventInfo("on_batch_end", 3, 1)]
    assert [row["event"] for row in rows.rows] == told
    assert [row["event"] for row in some.rows] == told[1:]
    assert [row["event"] for row in live.rows] == told
    assert told[0].redelivered is False


# ---------------------------------------------------------------------------------------- what the run's start provides


@pytest.mark.parametrize("start", ["on_train_start", "on_resume", "on_validate_start", "on_test_start"])
def test_later_hooks_may_name_what_a_run_started_with_as_it_is_at_their_event(
    start: str, placement: Placement, handlers: Make
) -> None:
    names, live = NamesRun(), NamesRun()
    metrics: dict[str, Any] = {"losses": []}
    handler = handlers(background(names, placement=placement), live)
    handler.call_event(start, metrics=metrics, computational="cpu")
    with handler._pool.hold():
        for n in range(3):
            metrics["losses"].append(n)
            handler.call_event("on_batch_end")
        metrics["losses"].append("later")
    assert handler.close().ok
    # By **kwargs comes what the event itself brings, inline as in the background.
    assert names.rows == live.rows == [({"losses": list(range(n + 1))}, False) for n in range(3)]


def test_an_argument_of_the_event_itself_goes_before_that_of_the_run(handlers: Make) -> None:
    names, live = NamesRun(), NamesRun()
    handler = handlers(background(names), live)
    handler.call_event("on_train_start", metrics="of the run")
    handler.call_event("on_batch_end", metrics="of the event")
    handler.call_event("on_batch_end")
    handler.close()
    assert [row[0] for row in names.rows] == [row[0] for row in live.rows] == ["of the event", "of the run"]


@pytest.mark.parametrize(
    ("start", "end"),
    [
        ("on_train_start", "on_train_end"), ("on_resume", "on_train_end"), ("on_validate_start", "on_validate_end"),
        ("on_test_start", "on_test_end"), ("on_train_start", "on_exception"),
    ],
)  # fmt: skip
def test_what_a_run_provided_is_gone_after_its_end(start: str, end: str, handlers: Make) -> None:
    class NamesAtEnd(NamesRun):
        def _end(self, *, metrics: Any) -> None:
            self.rows.append("end")

        on_train_end = on_validate_end = on_test_end = on_exception = _end

    names = NamesAtEnd()
    handler = handlers(background(names))
    handler.call_event(start, metrics=1)
    handler.call_event("on_batch_end")
    handler.call_event(end)
    handler.call_event("on_batch_end")
    report = handler.close()
    assert names.rows == [(1, False), "end"]
    assert (report.delivered, report.failed) == (2, 1)
    assert "names_at_end.on_batch_end names 'metrics', which neither" in str(report.errors[0].error)


def test_a_second_run_provides_its_own_and_only_its_own(handlers: Make) -> None:
    class Names:
        def __init__(self) -> None:
            self.rows: list[Any] = []

        def on_batch_end(self, *, metrics: Any = None, optimizers: Any = None) -> None:
            self.rows.append((metrics, optimizers))

    names = Names()
    handler = handlers(background(names))
    handler.call_event("on_train_start", metrics=1, optimizers=[1])
    handler.call_event("on_batch_end")
    handler.call_event("on_train_start", metrics=2)  # as after an exception that nobody told
    handler.call_event("on_batch_end")
    handler.close()
    assert names.rows == [(1, [1]), (2, None)]
