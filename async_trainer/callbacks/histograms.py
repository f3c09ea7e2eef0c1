"""Histograms: how weights and gradients are distributed, as TensorBoard shows them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from async_trainer.callbacks.event_log import EventLog
from async_trainer.callbacks.model_checkpoint import unwrapped
from async_trainer.callbacks.values import check_counts
from async_trainer.snapshot.gradients import with_gradients
from async_trainer.suggest import refuse_unknown_options
from async_trainer.train.state import TrainerState

if TYPE_CHECKING:
    from async_trainer.routes import EventInfo


class Histograms(EventLog):
    """Writes histograms of all weights, and of their gradients, every so many optimization steps, for TensorBoard.

    The tags are ``weights/<name>`` and ``gradients/<name>``. They are taken when the gradients of a step are whole,
    before they are clipped; the step is that of the optimization step that they are for, counted from 1. What is not
    finite is left out, and counted in ``nonfinite/weights/<name>``, ``nonfinite/gradients/<name>``, where there is any.

    The loop pays a copy of the model each time; the rest is done in the background, on its lane's thread, unless it is
    wrapped in ``inline()``. The files are as those of :class:`TensorBoard`: replaced at a start, cut back at a resume.

    Args:
        folder: made if need be, and no other callback's. Default: ``tensorboard-histograms`` in the logs of the split.
        every: of optimization steps.
        bins: of each histogram.
        gradients: whether to write those of the gradients too.

    Raises:
        ConfigurationError: an argument that can't work; tensorboard is not installed. At the start of a training: no
            folder is given, and the run has no maps.
    """

    place: ClassVar[str] = "tensorboard-histograms"

    @refuse_unknown_options
    def __init__(
        self,
        folder: str | os.PathLike[str] | None = None,
        *,
        every: int = 100,
        bins: int = 64,
        gradients: bool = True,
    ) -> None:
        super().__init__(folder)
        check_counts("Histograms", every=every, bins=bins)
        self.every = every
        self.bins = bins
        self.gradients = gradients

    @property
    def background(self) -> Mapping[str, Any]:  # type: ignore[override]  # each instance has its own ``when``
        """In the background by default; what can't be written is raised at the end."""
        return {
            "on_error": "raise_at_end",
            "when": {"on_optimization_step_start": self._is_due},
            "select": {"model": with_gradients} if self.gradients else None,
        }

    def _is_due(self, *, state: TrainerState, **live: Any) -> bool:
        return (state.optim_step + 1) % self.every == 0

    def on_optimization_step_start(
        self, *, model: nn.Module, state: TrainerState, maps: Any = None, event: EventInfo | None = None
    ) -> None:
        """Write the histograms of a step."""
        if not self._is_due(state=state):
            return
        self._begin(maps, state, event)
        assert self._files is not None
        failed: dict[str, Exception] = {}
        for name, parameter in unwrapped(model).named_parameters():
            for tag, tensor in ((f"weights/{name}", parameter.detach()), (f"gradients/{name}", parameter.grad)):
                if tensor is None or (tensor is parameter.grad and not self.gradients):
                    continue
                try:
                    self._write(tag, tensor, state.optim_step + 1)
                except OSError:  # the disk: nor will the next be written
                    raise
                except Exception as error:  # of a tensor of an odd kind
                    failed[tag] = error
        if failed:
            tag, first = next(iter(failed.items()))
            more = f"; nor {len(failed) - 1} others" if len(failed) > 1 else ""
            raise ValueError(f"Histograms: {tag} can't be written ({type(first).__name__}: {first}){more}") from first

    def _write(self, tag: str, tensor: Tensor, step: int) -> None:
        from torch.utils.tensorboard.summary import histogram_raw

        assert self._files is not None
        dense = tensor.to_dense() if tensor.is_sparse else tensor
        parts = torch.view_as_real(dense.resolve_conj()) if dense.is_complex() else dense  # both, in one histogram
        values = parts.double().cpu().numpy().ravel()
        finite = values[np.isfinite(values)]
        if finite.size < values.size:
            self._files.write_scalars({f"nonfinite/{tag}": float(values.size - finite.size)}, step)
        if finite.size:
            counts, edges = _histogram(finite, self.bins)
            with np.errstate(over="ignore"):  # then they are infinite
                total, squares = float(finite.sum()), float(np.square(finite).sum())
            self._files.write(
                histogram_raw(  # type: ignore[no-untyped-call]
                    tag, float(finite.min()), float(finite.max()), finite.size, total, squares, edges[1:].tolist(),
                    counts.tolist(),
                ),
                step,
            )  # fmt: skip


def _histogram(finite: Any, bins: int) -> tuple[Any, Any]:
    """Counts and edges; of values that lie closer together than ``bins`` numbers could, in a range that has room."""
    low, high = float(finite.min()), float(finite.max())
    numbers = np.finfo(np.float64)
    if high / 4 - low / 4 > numbers.max / 8:  # the width of their range may be no number
        counts, edges = _histogram(finite / 8, bins)
        return counts, np.clip(edges, -numbers.max / 8, numbers.max / 8) * 8
    room = bins * max(4 * numbers.eps * max(abs(low), abs(high)), float(numbers.tiny))
    if high - low >= room or (high == low and room < 0.5):  # one value goes into the middle of a range of 1
        return np.histogram(finite, bins=bins)
    return np.histogram(finite, bins=bins, range=(low - room, high + room))
