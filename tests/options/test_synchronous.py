"""Synchronous mode: the same, on the spot."""

from __future__ import annotations

import re
import threading
from typing import Any

import pytest
import torch

from async_trainer import Callback, CallbacksHandler, TrainerState, background, inline
from async_trainer.callback import Placement
from async_trainer.routes import EventInfo
from tests.options.doubles import Fails, Make, Rows


class Everything(Callback):
    """Named arguments, kwargs, a state, nested values."""

    def __init__(self) -> None:
        self.log: list[Any] = []

    def on_train_start(self, *, metrics: Any, **kwargs: Any) -> None:
        self.log.append(("start", metrics, sorted(kwargs)))

    def on_batch_end(self, *, batch: Any, metrics: Any, event: EventInfo, state: Any, **kwargs: Any) -> None:
        self.log.append((event, batch["x"].sum().item(), dict(metrics), state.optim_step, repr(kwargs)))
        batch["x"].zero_()  # its own: it shows nowhere else

    def on_epoch_end(self, *, model: Any, n: int = -1) -> None:
        self.log.append((n, model.weight.sum().item(), model(torch.ones(1, 3)).item()))

    def state_dict(self) -> dict[str, Any]:
        return {"rows": len(self.log)}


class EverythingAsync(Everything):
    async def on_epoch_end(self, *, model: Any, n: int = -1) -> None:  # type: ignore[override]
        super().on_epoch_end(model=model, n=n)


def train(callbacks: list[Everything], options: list[dict[str, Any]], **settings: Any) -> tuple[Any, Any]:
    torch.manual_seed(0)
    model = torch.nn.Linear(3, 1)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    state, metrics = TrainerState(), {"loss": 0.0}
    records = [background(callback, **chosen) for callback, chosen in zip(callbacks, options, strict=True)]
    with CallbacksHandler(records, **settings) as handler:
        handler.call_event("on_train_start", metrics=metrics, state=state, model=model, run="a")
        for epoch in range(2):
            for _ in range(6):
                batch = {"x": torch.randn(4, 3)}
                loss = model(batch["x"]).square().mean()
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                state.optim_step += 1
                metrics["loss"] = loss.item()
                handler.call_event("on_batch_end", batch=batch, state=state, model=model, loss=loss, plain=epoch)
            handler.call_event("on_epoch_end", model=model, n=epoch)
        states = handler.state_dict()
    return [parameter.detach().clone() for parameter in model.parameters()], states


OPTIONS: list[dict[str, Any]] = [
    {},
    {"every": {"on_batch_end": 3}, "lane": "shared"},
    {"when": lambda state, **_: state.optim_step % 2 == 0, "lane": "shared"},
    {"select": {"batch": lambda batch: {"x": batch["x"][:1]}}, "retries": 2, "name": "fourth"},
    {"placement": "task"},
    {},
]


def make_all() -> list[Everything]:
    return [*(Everything() for _ in OPTIONS[:-1]), EverythingAsync()]


def test_synchronous_mode_gives_the_same_outputs_states_and_weights(placement: Placement) -> None:
    default = {"placement": placement}
    options = [{**default, **chosen} for chosen in OPTIONS[:-1]] + [{}]
    there, here = make_all(), make_all()
    weights, states = train(there, options)
    weights_here, states_here = train(here, options, synchronous=True)
    plain_weights, _ = train([], [])
    assert [callback.log for callback in there] == [callback.log for callback in here]
    assert len(there[0].log) == 1 + 12 + 2
    assert len(there[1].log) == 1 + 4 + 2
    assert states == states_here
    for one, other, plain in zip(weights, weights_here, plain_weights, strict=True):
        assert torch.equal(one, other)
        assert torch.equal(one, plain)


def test_synchronous_mode_runs_hooks_on_the_spot_and_raises_their_errors_there(
    placement: Placement, handlers: Make
) -> None:
    seen: list[Any] = []

    class Here(Fails):
        def on_batch_end(self, *, n: Any, event: EventInfo, **kwargs: Any) -> None:
            seen.append((n, threading.get_ident()))
            super().on_batch_end(n=n, event=event)

    handler = handlers(background(Here(lambda n, attempt: n == 2), placement=placement, retries=3), synchronous=True)
    handler.call_event("on_batch_end", n=1)
    assert seen == [(1, threading.get_ident())]
    with pytest.raises(ValueError, match="no 2"):
        handler.call_event("on_batch_end", n=2)
    handler.call_event("on_batch_end", n=3)
    assert [n for n, _ in seen] == [1, 2, 3]
    report = handler.close()
    assert (report.delivered, report.failed) == (2, 1)


def test_synchronous_mode_handles_what_a_hook_fires_after_that_hook(within: Placement, handlers: Make) -> None:
    class Fires(Rows):
        def on_batch_end(self, *, n: Any = None, **kwargs: Any) -> None:
            handler.call_event("on_epoch_end", n=n)
            super().on_batch_end(n=n, **kwargs)

    logs = []
    for synchronous in (False, True):
        fires = Fires()
        handler = handlers(background(fires, placement=within), synchronous=synchronous)
        handler.call_event("on_batch_end", n=1)
        handler.flush()
        handler.close()
        logs.append(fires.named)
    assert logs[0] == logs[1] == [("on_batch_end", 1), ("on_epoch_end", 1)]


def test_synchronous_mode_gives_snapshots_not_live_objects(handlers: Make) -> None:
    class Steers:
        def on_batch_end(self, *, state: Any, batch: list[int]) -> None:
            batch.append(9)
            state.should_stop = True

    handler = handlers(background(Steers()), synchronous=True)
    state, batch = TrainerState(), [1]
    with pytest.raises(AttributeError, match=r"make the callback inline\(\.\.\.\) to steer the training"):
        handler.call_event("on_batch_end", state=state, batch=batch)
    assert (state.should_stop, batch) == (False, [1])


def test_explain_and_the_start_line_say_that_it_is_synchronous(
    handlers: Make, caplog: pytest.LogCaptureFixture
) -> None:
    handler = handlers(background(Rows()), background(Rows(), lane="slow"), inline(Rows()), synchronous=True)
    handler.proxy([], name="numbers")
    with caplog.at_level("INFO", "async_trainer"):
        handler.call_event("on_batch_end")
    where = "rows (synchronous); rows_1 (synchronous, lane slow); rows_2 (inline); numbers (synchronous, a proxy)"
    assert caplog.messages == [f"callbacks: {where}"]
    places = {re.split(r"\s{2,}", row)[2] for row in str(handler.explain()).splitlines()[2:]}
    assert places == {"synchronous", "synchronous, lane slow", "inline", "synchronous, a proxy"}
