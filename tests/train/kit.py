"""A small study, and a callback that writes down all that it is told."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from async_trainer import Callback, Event, OptimizationConfig, Split, SupervisedModel, Trainer


class Subjects(Dataset[dict[str, Any]]):
    """``sub-010``, ``sub-011`` ...: their features and a target."""

    def __init__(self, first: int, size: int) -> None:
        self.first = first
        features = torch.randn(100, 3, generator=torch.Generator().manual_seed(7))
        self.features, self.targets = features, features.sum(1, keepdim=True)
        self.size = size

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, place: int) -> dict[str, Any]:
        number = self.first + place
        if not 0 <= place < self.size:
            raise IndexError(place)
        return {"sample": f"sub-{number:03d}", "input": self.features[number], "target": self.targets[number]}


def loader(first: int, size: int, *, batch_size: int = 2) -> DataLoader[dict[str, Any]]:
    return DataLoader(Subjects(first, size), batch_size=batch_size)


def split(index: int = 0, *, batches: int = 5, val: int | None = 2) -> Split:
    return Split(index, loader(0, 2 * batches), None if val is None else loader(2 * batches, 2 * val))


def net() -> SupervisedModel:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.1), nn.Linear(8, 1))
    return SupervisedModel(network, nn.MSELoss(), lambda params: torch.optim.Adam(params, lr=0.01))


def trainer(folder: Path, callbacks: Any = (), *, model: Any = None, **optimization: Any) -> Trainer:
    return Trainer(
        folder / "maps",
        model if model is not None else net(),
        optimization=OptimizationConfig(**{"num_epochs": 2, **optimization}),
        callbacks=callbacks,
    )


class Recorder:
    """Writes down each event: its arguments' types, the state's fields, the model's mode."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []

    @property
    def names(self) -> list[str]:
        return [row["event"] for row in self.rows]

    def take(self) -> list[dict[str, Any]]:
        rows, self.rows = self.rows, []
        return rows

    def note(self, event: str, arguments: Mapping[str, Any]) -> None:
        row: dict[str, Any] = {
            "event": event,
            "kwargs": {name: _described(value) for name, value in arguments.items()},
            "state": dict(vars(arguments["state"])),
            "training": arguments["model"].training,
            "grad_enabled": torch.is_grad_enabled(),
        }
        if "batch" in arguments:
            row["batch"] = list(arguments["batch"]["sample"])
        if "exception" in arguments:
            row["exception"] = repr(arguments["exception"])
        if "model_checkpoint" in arguments:
            row["model_checkpoint"] = arguments["model_checkpoint"]
        self.rows.append(row)


def _described(value: Any) -> str:
    if isinstance(value, Mapping) and value and all(isinstance(one, torch.optim.Optimizer) for one in value.values()):
        return f"dict[{type(next(iter(value.values()))).__name__}]"
    return type(value).__name__


def _hook(event: str) -> Any:
    def hook(self: Recorder, **kwargs: Any) -> None:
        kwargs.pop("event", None)
        self.note(event, kwargs)

    return hook


for _event in Event:
    setattr(Recorder, _event.value, _hook(_event.value))


class Boom(Exception):
    pass


class FailsAt(SupervisedModel):
    """Raises ``error`` in its ``call``-th forward (or evaluation) step."""

    def __init__(self, error: BaseException, *, forward: int = 0, evaluation: int = 0) -> None:
        torch.manual_seed(0)
        super().__init__(nn.Linear(3, 1), nn.MSELoss(), lambda params: torch.optim.Adam(params, lr=0.01))
        self.error, self.left = error, {"forward": forward, "evaluation": evaluation}

    def forward_step(self, batch: Any) -> Tensor:
        self._count("forward")
        return super().forward_step(batch)

    def evaluation_step(self, batch: Any) -> dict[str, Any]:
        self._count("evaluation")
        return super().evaluation_step(batch)

    def _count(self, step: str) -> None:
        self.left[step] -= 1
        if self.left[step] == 0:
            raise self.error


class Stops(Callback):
    """Asks to stop at the end of epoch ``epoch``."""

    def __init__(self, epoch: int) -> None:
        self.epoch = epoch

    def on_epoch_end(self, *, state: Any) -> None:
        if state.current_epoch == self.epoch:
            state.should_stop = True


# The words of spec: T a batch that steps, t one that only accumulates, V one of an evaluation.
T = [
    "on_batch_start", "on_forward_step_start", "on_backward_step_start", "on_backward_step_end",
    "on_optimization_step_start", "on_optimization_step_end", "on_batch_end",
]  # fmt: skip
t = [name for name in T if "optimization" not in name]
V = [
    "on_batch_start", "on_evaluation_step_start", "on_metrics_computation_start", "on_metrics_computation_end",
    "on_batch_end",
]  # fmt: skip
INIT, TS, TE = ["on_trainer_init"], ["on_train_start"], ["on_train_end"]
ES, EE = ["on_epoch_start"], ["on_epoch_end"]
VS, VE = ["on_validation_start"], ["on_validation_end"]
VaS, VaE = ["on_validate_start"], ["on_validate_end"]
TeS, TeE = ["on_test_start"], ["on_test_end"]
EXC = ["on_exception"]
