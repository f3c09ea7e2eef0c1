"""The public interface as users write it. Type-checked by mypy and pyright (both strict), never run."""

# ruff: noqa: RUF012

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, assert_type

import torch

import async_trainer
from async_trainer import (
    AsyncTrainerError,
    Callback,
    CallbacksHandler,
    Event,
    TrainerState,
    background,
    capture,
    inline,
    keep,
)
from async_trainer.callback import Background, Inline
from async_trainer.runtime.barrier import Barrier
from async_trainer.runtime.stats import Failure, LaneStats, Report, Stats

# ------------------------------------------------------------------------------------------------------------- hooks


class SomeArguments(Callback):
    """Any subset of an event's arguments, typed or not, with or without the rest."""

    background = {"queue_size": 10_000, "overflow": "latest", "every": {"on_batch_end": 50}}

    def on_train_start(self, *, maps: Any, **kwargs: Any) -> None: ...

    def on_epoch_start(self, **kwargs: Any) -> None: ...

    def on_epoch_end(self) -> None: ...

    def on_batch_end(self, *, state: TrainerState) -> None:
        assert_type(state.current_epoch, int)

    def on_backward_step_start(self, *, state: TrainerState, loss: torch.Tensor, event: Any, **kwargs: Any) -> None: ...


class LaterProvided(Callback):
    """Arguments that the start of the run provides, named by later hooks; and optional ones."""

    def on_batch_end(
        self, *, optimizers: dict[str, torch.optim.Optimizer], metrics: Any, extra: float = 0.0
    ) -> None: ...

    def on_exception(self, *, exception: BaseException, group_name: str | None = None, **kwargs: Any) -> None: ...


class Asynchronous(Callback):
    """``async def`` beside plain hooks."""

    async def on_train_start(self, *, split: Any, **kwargs: Any) -> None: ...

    async def on_batch_end(self, *, model: torch.nn.Module, state: TrainerState) -> None: ...

    def on_train_end(self) -> None: ...


class Stateful(Callback):
    """A state, narrower than the base's in what it returns."""

    def __init__(self) -> None:
        self.rows = 0

    def on_batch_end(self, **kwargs: Any) -> None:
        self.rows += 1

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "rows": self.rows}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self.rows = state_dict["rows"]


class MoreStateful(Stateful):
    """A subclass of a user's own callback: its hooks can be called with ``super()``."""

    def on_batch_end(self, **kwargs: Any) -> None:
        super().on_batch_end(**kwargs)

    def state_dict(self) -> dict[str, Any]:
        assert_type(super().state_dict(), dict[str, Any])
        return super().state_dict()


class Annotated(Callback):
    """``background`` as linters want it (ruff's RUF012)."""

    background: ClassVar = {"lane": "files"}


class Plain:
    """No base class."""

    background = {"placement": "thread"}

    def on_batch_end(self, *, state: TrainerState) -> None: ...

    async def on_rollout_end(self, *, reward: float) -> None: ...


# ----------------------------------------------------------------------------------------------- background and inline

assert_type(background(SomeArguments()), Background)
assert_type(background(Plain(), placement="thread", name="plain", queue_size=5), Background)
assert_type(background([Plain(), Stateful()], on_error="disable"), list[Background])
assert_type(background([Plain()]), list[Background])
assert_type(background((Plain(), Plain())), list[Background])
assert_type(inline(SomeArguments()), Inline)
assert_type(inline([SomeArguments(), Plain()]), list[Inline])
assert_type(background(Plain()).options.queue_size, int)


def is_tenth(*, state: TrainerState, **kwargs: Any) -> bool:
    return state.current_train_batch % 10 == 0


def first(output: torch.Tensor) -> torch.Tensor:
    return output[:1]


everything = background(
    Plain(),
    placement="task",
    name=None,
    lane="files",
    queue_size=1024,
    overflow="drop_oldest",
    on_error="raise_at_end",
    retries=3,
    backoff=0.5,
    timeout=10.0,
    every={"on_batch_end": 50, Event.EPOCH_END: 2},
    when=is_tenth,
    select={"output": first, "model": None, "loss": lambda loss: loss.item()},
)


# ---------------------------------------------------------------------------------------------------------- the handler

handler = CallbacksHandler(
    [SomeArguments(), background(Asynchronous()), background([Plain(), Plain()]), inline(LaterProvided())],
    events=["on_rollout_end"],
    max_workers=4,
    max_snapshot_bytes=1 << 30,
    stall_timeout=30.0,
    shutdown_timeout=10.0,
    switch_interval=None,
    synchronous=True,
)
CallbacksHandler()
CallbacksHandler((Plain(), background(Plain())))


def loop(state: TrainerState, loss: torch.Tensor) -> None:
    handler.call_event(Event.BATCH_END, state=state, loss=loss, anything={"at": ["all"]})
    handler.call_event("on_rollout_end", reward=1.0)
    handler.call_event(Event("on_batch_end"))
    handler.fence()
    with CallbacksHandler([Plain()]) as entered:
        assert_type(entered, CallbacksHandler)
        entered.call_event(Event.EPOCH_END)
    handler.add_callbacks([Plain(), background([Plain()])])


def waits() -> None:
    barrier = handler.barrier()
    assert_type(barrier, Barrier)
    assert_type(barrier.done, bool)
    assert_type(barrier.late, tuple[str, ...])
    assert_type(barrier.wait(), dict[str, Any])
    assert_type(handler.barrier().wait(timeout=1.5), dict[str, Any])
    handler.load_state_dict(handler.state_dict())
    handler.load_state_dict({"loss_curve": {"rows": 3}})
    assert_type(handler.flush(), Report)
    assert_type(handler.flush(timeout=1), Report)


def books() -> None:
    report = handler.close(timeout=None)
    assert_type(report, Report)
    assert_type((report.delivered, report.failed, report.dropped, report.lost), tuple[int, int, int, int])
    assert_type(report.errors, tuple[Failure, ...])
    assert_type(report.errors[0].error, BaseException)
    assert_type(report.stalled, tuple[str, ...])
    assert_type(report.ok, bool)
    report.raise_for_errors()
    stats = handler.stats()
    assert_type(stats, Stats)
    assert_type(stats.lanes["plain"], LaneStats)
    assert_type(stats.lanes["plain"].delivered, int)
    assert_type(stats.lanes["plain"].running, str | None)
    assert_type(stats.waits.queue, float)
    print(stats, handler.explain())


# -------------------------------------------------------------------------------------------------------------- proxies


class Writer:
    """A target: what a proxy of it is typed as."""

    closed: bool = False

    def add_scalar(self, tag: str, value: float, step: int | None = None) -> None: ...

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, *error: object) -> None: ...


def save(value: object, path: Path) -> None: ...


def proxies() -> None:
    writer = handler.proxy(Writer(), name="writer", queue_size=10, overflow="latest")
    assert_type(writer, Writer)
    writer.add_scalar("loss", 0.5, 3)
    assert_type(writer.closed, bool)
    with writer as entered:
        assert_type(entered, Writer)
    made = handler.proxy(factory=Writer, on_error="raise_at_end")
    assert_type(made, Writer)
    assert_type(handler.proxy(factory=lambda: Path("x")), Path)
    handler.proxy(save)({"a": 1}, Path("a.pt"))
    handler.proxy(logging).info("a module")
    logging.getLogger().addHandler(handler.proxy(logging.StreamHandler()))


# ------------------------------------------------------------------------------------------------- capturing, keeping


class Net(torch.nn.Module):
    """A type of the user's own."""

    def small(self) -> Net:
        return self


@capture.register(Net)
def take(live: Net) -> Net:
    return live.small()


assert_type(take(Net()), Net)


class Keeper(Callback):
    """Keeps a model beyond its hook."""

    def on_epoch_end(self, *, model: Net, **kwargs: Any) -> None:
        self.model = keep(model)
        assert_type(self.model, Net)


# -------------------------------------------------------------------------------------------------------- the lazy root


def root() -> None:
    assert_type(async_trainer.Event.BATCH_END.arguments, tuple[str, ...])
    assert_type(async_trainer.background(Plain()), Background)
    assert_type(async_trainer.inline(Plain()), Inline)
    assert_type(async_trainer.CallbacksHandler().flush().delivered, int)
    assert_type(async_trainer.TrainerState().optim_step, int)
    assert_type(async_trainer.Callback().state_dict(), Mapping[str, Any])
    assert_type(async_trainer.keep(3), int)
    assert_type(async_trainer.__version__, str)
    async_trainer.capture.register(Net)
    try:
        handler.flush()
    except async_trainer.AsyncTrainerError as error:
        assert_type(error, AsyncTrainerError)
