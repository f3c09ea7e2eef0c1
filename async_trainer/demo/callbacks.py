"""What slows a training down: a log, figures, checkpoints. Each class works inline and in the background alike."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO, ClassVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from async_trainer import Callback, MetricsHandler, TrainerState
from async_trainer.demo.figure import draw_epoch
from async_trainer.demo.store import Store

Metrics = Mapping[str, float] | MetricsHandler


def last_values(metrics: Metrics) -> Mapping[str, float]:
    """The metrics of this validation: the plain loop has them in a dict, the Trainer in a MetricsHandler."""
    return metrics if isinstance(metrics, Mapping) else metrics.last


class MetricsLog(Callback):
    """A JSON line per training batch and per validation, on disk before the hook returns: a crash loses none.

    Args:
        path: the log. A training that starts replaces it; one that resumes goes on at the offset of the resume state.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: BinaryIO | None = None

    def on_train_start(self, **kwargs: Any) -> None:
        self._file = self.path.open("wb")

    def on_resume(self, **kwargs: Any) -> None:
        self._file = self.path.open("ab")

    def on_backward_step_start(self, *, state: TrainerState, loss: Tensor, **kwargs: Any) -> None:
        self._write({"epoch": state.current_epoch, "batch": state.current_train_batch, "loss": loss.item()})

    def on_validation_end(self, *, state: TrainerState, metrics: Metrics, **kwargs: Any) -> None:
        self._write({"epoch": state.current_epoch, **last_values(metrics)})

    def _write(self, row: Mapping[str, Any]) -> None:
        if self._file is None:
            raise RuntimeError(f"{self.path} is not open: on_train_start or on_resume comes first")
        self._file.write(json.dumps(row).encode() + b"\n")
        self._file.flush()
        os.fsync(self._file.fileno())

    def on_train_end(self, **kwargs: Any) -> None:
        self.close()

    def on_exception(self, **kwargs: Any) -> None:
        self.close()

    def close(self) -> None:
        """Close the file; the rows are on disk already."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def state_dict(self) -> dict[str, int]:
        """``offset``: bytes of the log up to here, all of them synced."""
        if self._file is not None:
            return {"offset": self._file.tell()}
        return {"offset": self.path.stat().st_size if self.path.exists() else 0}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Cut the log back to ``offset``: rows after it belong to batches that will be trained again."""
        os.truncate(self.path, state_dict["offset"])
        if self._file is not None:
            self._file.seek(0, os.SEEK_END)


class Figures(Callback):
    """A figure of each epoch's validation: the confusion matrix and the digits that the net finds hardest.

    Args:
        folder: gets ``epoch-001.png``, ``epoch-002.png`` ...
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._outputs: list[Mapping[str, Tensor]] = []

    def on_validation_start(self, **kwargs: Any) -> None:
        self._outputs = []

    def on_metrics_computation_start(self, *, output: Mapping[str, Tensor], **kwargs: Any) -> None:
        self._outputs.append(output)

    def on_validation_end(self, *, state: TrainerState, **kwargs: Any) -> None:
        images, labels, logits = (
            torch.cat([output[key] for output in self._outputs]) for key in ("images", "labels", "logits")
        )
        self._outputs = []
        self.folder.mkdir(parents=True, exist_ok=True)
        figure = draw_epoch(images, labels, logits, title=f"Held-out digits after epoch {state.current_epoch}")
        figure.savefig(self.folder / f"epoch-{state.current_epoch:03d}.png")


class Checkpoints(Callback):
    """The model and its optimizers, into a store: after each epoch, and after each ``every`` optimization steps.

    Args:
        store: where they go, as ``epoch-001.pt`` and ``step-00030.pt``.
        every: optimization steps. In the background, give ``background()`` the same number for
            ``on_optimization_step_end``, so that nothing is captured at the steps between.
    """

    background: ClassVar[Mapping[str, Any]] = {"on_error": "raise_at_end"}

    def __init__(self, store: Store, *, every: int) -> None:
        self.store = store
        self.every = every

    def on_optimization_step_end(
        self, *, model: nn.Module, optimizers: Mapping[str, Optimizer], state: TrainerState, **kwargs: Any
    ) -> None:
        if state.optim_step % self.every == 0:
            self._save(f"step-{state.optim_step:05d}.pt", model, optimizers, state)

    def on_epoch_end(
        self, *, model: nn.Module, optimizers: Mapping[str, Optimizer], state: TrainerState, **kwargs: Any
    ) -> None:
        self._save(f"epoch-{state.current_epoch:03d}.pt", model, optimizers, state)

    def _save(self, name: str, model: nn.Module, optimizers: Mapping[str, Optimizer], state: TrainerState) -> None:
        content = {
            "epoch": state.current_epoch,
            "optim_step": state.optim_step,
            "model": model.state_dict(),
            "optimizers": {key: optimizer.state_dict() for key, optimizer in optimizers.items()},
        }
        self.store.put(name, lambda file: torch.save(content, file))
