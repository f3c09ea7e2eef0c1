"""Mistakes that mypy and pyright must both see: each line with ``# E`` is an error, and no other line is."""

# pyright: reportUnusedExpression=false
# ruff: noqa: B018, F401, I001

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

import async_trainer
from async_trainer import Calback  # E: misspelt
from async_trainer import Callback, CallbacksHandler, Event, TrainerState, background, inline, keep
from async_trainer import ComputationalConfig, MetricsHandler, OptimizationConfig
from async_trainer import Model, Split, SupervisedModel, Trainer
from async_trainer.callbacks import EarlyStoping  # E: misspelt
from async_trainer.callbacks import EarlyStopping, LRScheduler, MetricsLog, ModelCheckpoint, Upload


class Hooks(Callback):
    def on_batch_end(self, *, state: TrainerState) -> None:
        state.optim_stp  # E: no such field

    def state_dict(self) -> int:  # E: not a mapping
        return 3

    def load_state_dict(self, state_dict: str) -> None: ...  # E: given a mapping


class Bare(Callback):
    background = 3  # E: not options


class Writer:
    def add_scalar(self, tag: str, value: float) -> None: ...


def save(value: object, path: Path) -> None: ...


handler = CallbacksHandler()

async_trainer.Evnt  # E: the lazy root knows its names

background(Hooks(), placment="task")  # E: unknown option
background(Hooks(), placement="proces")  # E: no such placement
background(Hooks(), overflow="drop")  # E: no such policy
background(Hooks(), on_error="ignore")  # E: no such choice
background(Hooks(), queue_size="many")  # E: a number
background(Hooks(), queue_size=None)  # E: a number
background(Hooks(), retries=0.5)  # E: whole
background(Hooks(), backoff="1 s")  # E: a number
background(Hooks(), timeout="1 s")  # E: a number or None
background(Hooks(), name=3)  # E: text
background(Hooks(), every=50)  # E: of which event?
background(Hooks(), every={"on_batch_end": "50"})  # E: a number
background(Hooks(), when=True)  # E: a function
background(Hooks(), select=["model"])  # E: a mapping
background(Hooks(), select={"model": 3})  # E: a function or None
background(Hooks(), "thread")  # E: options are keywords
background(Hooks()).queue_size  # E: it is in .options
background([Hooks()]).callback  # E: a list of records
background([Hooks()], placement="proces")  # E: no such placement
background()  # E: of what?
inline(Hooks(), placement="task")  # E: inline has no options
inline([Hooks()]).callback  # E: a list of records

CallbacksHandler(Hooks())  # E: a list
CallbacksHandler([Hooks()], ["on_rollout_end"])  # E: events is a keyword
CallbacksHandler(events=[3])  # E: names
CallbacksHandler(max_worker=3)  # E: no such setting
CallbacksHandler(max_workers="3")  # E: a number
CallbacksHandler(switch_interval="fast")  # E: a number or None
CallbacksHandler(synchronous="yes")  # E: a bool
handler.call_event()  # E: which event?
handler.call_event(3)  # E: an event or its name
handler.call_event(Event.BATCH_ENDS)  # E: no such event
handler.call_event(Event.BATCH_END, {"state": 1})  # E: arguments are keywords
handler.add_callbacks(Hooks())  # E: a list
handler.flush("1 s")  # E: a number
handler.flush().delivred  # E: no such count
handler.close().ok()  # E: a property
handler.barrier().wait(timeout="1 s")  # E: a number
handler.barrier().done()  # E: a property
handler.stats().lanes["a"].deliverd  # E: no such count
handler.stats().lanes["a"].delivered = 3  # E: immutable
handler.stats().captures = 3  # E: immutable
handler.flush().failed = 0  # E: immutable
handler.load_state_dict([1])  # E: a mapping

writer = handler.proxy(Writer())
writer.add_scaler("loss", 0.5)  # E: no such method
writer.add_scalar("loss")  # E: no value
writer.add_scalar("loss", "0.5")  # E: a number
writer.colour  # E: no such attribute
handler.proxy(factory=Writer).add_scalar(3, 0.5)  # E: text
handler.proxy(save)({}, "a.pt")  # E: a path
handler.proxy(Writer(), overflow="newest")  # E: no such policy
handler.proxy(Writer(), factory=Writer)  # E: one or the other
handler.proxy(factory=Writer())  # E: a function
handler.proxy()  # E: of what?


class NoSteps(Model):
    def forward_step(self, batch: torch.Tensor) -> torch.Tensor:
        return batch

    def evaluation_step(self, batch: torch.Tensor) -> torch.Tensor:  # E: a mapping
        return batch


net = torch.nn.Linear(1, 1)
adam = torch.optim.Adam
model = SupervisedModel(net, torch.nn.MSELoss(), adam)

NoSteps()  # E: no optimizers
SupervisedModel(net, torch.nn.MSELoss(), adam(net.parameters()))  # E: a function that makes it
SupervisedModel(net, torch.nn.MSELoss, adam)  # E: an instance
SupervisedModel(net, torch.nn.MSELoss(), adam, keys="x")  # E: a pair
Trainer("runs", net)  # E: a Model
Trainer(3, model)  # E: a path
Trainer("runs", model, optimisation=None)  # E: misspelt
Trainer("runs", model, callbacks=MetricsLog())  # E: a list
Trainer("runs", model, optimization={"num_epochs": 3})  # E: an OptimizationConfig
Trainer("runs", model).train([1, 2])  # E: a Split
Trainer("runs", model).train(Split(0, []), {"seed": 0})  # E: a ComputationalConfig
Trainer("runs", model).validate("split-0")  # E: a number
Trainer("runs", model).test("split-0_final")  # E: on what?
Trainer.from_maps("runs", module=model)  # E: misspelt
Split("0", [])  # E: a number
OptimizationConfig(5)  # E: keywords
OptimizationConfig(epochs=5)  # E: no such field
OptimizationConfig().num_epochs = 3  # E: immutable
ComputationalConfig(device=0)  # E: text
MetricsHandler().get_metric_value()  # E: which?
EarlyStopping(mode="lowest")  # E: no such mode
EarlyStopping("loss", 5)  # E: keywords
LRScheduler(torch.optim.lr_scheduler.StepLR(adam(net.parameters()), 3))  # E: a function
LRScheduler(lambda optimizer: torch.optim.lr_scheduler.StepLR(optimizer, 3), interval="batch")  # E: no such interval
MetricsLog(every="10")  # E: a number
ModelCheckpoint("loss", epochs=3)  # E: several
ModelCheckpoint("loss", lst=True)  # E: misspelt
Upload()  # E: where to?


def kept(model: Hooks) -> Any:
    number: int = keep(model)  # E: what it was given
    return number
