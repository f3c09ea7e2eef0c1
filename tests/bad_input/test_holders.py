"""Background callbacks that hold the run's own weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from async_trainer import background, inline
from tests.bad_input.doubles import Make, Rows, Writer, message_of


@pytest.fixture
def run() -> dict[str, Any]:
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.ReLU())
    return {"model": model, "optimizers": {"sgd": torch.optim.SGD(model.parameters(), 0.1)}, "state": {"epoch": 1}}


HOLDING: list[tuple[Callable[[Any, Any], dict[str, Any]], str]] = [
    (lambda model, optimizer: {"model": model}, "self.model"),
    (lambda model, optimizer: {"optimizer": optimizer}, "self.optimizer"),
    (lambda model, optimizer: {"weight": model[0].weight}, "self.weight"),
    (lambda model, optimizer: {"nets": {"a": [model[0]]}}, "self.nets['a'][0]"),
]


@pytest.mark.parametrize(("make", "path"), HOLDING, ids=[path for _, path in HOLDING])
@pytest.mark.parametrize("event", ["on_train_start", "on_batch_end"])
def test_a_background_callback_that_holds_the_runs_weights_is_refused(
    make: Any, path: str, event: str, run: dict[str, Any], handlers: Make
) -> None:
    holder = Rows(**make(run["model"], run["optimizers"]["sgd"]))
    handler = handlers(background(holder, name="plots"))
    for _ in range(2):  # at each event, not only once
        assert message_of(lambda: handler.call_event(event, **run)) == (
            f"plots runs in the background, and holds the run's own weights or optimizer as {path}: it would see them "
            "while they change. Let its hooks name `model` or `optimizers` and use what they get, or make it "
            "inline(...)"
        )
    assert handler.close().delivered == 0


def test_the_first_event_that_shows_the_weights_is_the_one_that_raises(run: dict[str, Any], handlers: Make) -> None:
    handler = handlers(background(Rows(model=run["model"])))
    handler.call_event("on_batch_end", state=run["state"])
    handler.call_event("on_epoch_end", **run)  # which no hook of it hears
    assert "as self.model" in message_of(lambda: handler.call_event("on_batch_end", **run))


def test_a_callback_that_is_added_later_is_looked_into_as_well(run: dict[str, Any], handlers: Make) -> None:
    handler = handlers(background(Rows()))
    handler.call_event("on_train_start", **run)
    handler.call_event("on_batch_end", state=run["state"])
    handler.add_callbacks([background(Rows(model=run["model"]))])
    assert "as self.model" in message_of(lambda: handler.call_event("on_batch_end", state=run["state"]))


def test_a_module_of_its_own_is_fine_and_so_is_an_inline_holder(run: dict[str, Any], handlers: Make) -> None:
    own = Rows(net=torch.nn.Linear(2, 2), saved=[p.detach().clone() for p in run["model"].parameters()])
    handler = handlers(background(own), Rows(model=run["model"]), inline(Rows(optimizer=run["optimizers"]["sgd"])))
    handler.call_event("on_train_start", **run)
    handler.call_event("on_batch_end", **run)
    assert handler.close().ok
    assert len(own.rows) == 1


def test_what_is_no_weight_may_be_held_though_the_run_shows_it(run: dict[str, Any], handlers: Make) -> None:
    shown = {"state": run["state"], "stage": "training", "step": 1, "flag": True, "nothing": None, "loader": [1, 2]}
    handler = handlers(background(Rows(**{f"my_{name}": value for name, value in shown.items()})))
    handler.call_event("on_train_start", **shown)
    handler.call_event("on_batch_end", **shown)
    assert handler.close().ok


def test_a_callback_may_hold_its_handler_and_its_proxies(run: dict[str, Any], handlers: Make) -> None:
    rows = Rows()
    handler = handlers(background(rows), inline(Rows(optimizer=run["optimizers"]["sgd"])))
    rows.handler, rows.emit = handler, handler.call_event  # type: ignore[attr-defined]
    rows.writer = handler.proxy(Writer())  # type: ignore[attr-defined]
    handler.call_event("on_train_start", **run)
    handler.call_event("on_batch_end", **run)
    assert handler.close().ok
