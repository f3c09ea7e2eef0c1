"""SampleImages: a few images of each validation, as TensorBoard shows them."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from async_trainer.callbacks.event_log import EventLog
from async_trainer.callbacks.values import check_counts
from async_trainer.errors import ConfigurationError
from async_trainer.suggest import refuse_unknown_options
from async_trainer.train.state import TrainerState

if TYPE_CHECKING:
    from async_trainer.routes import EventInfo


class SampleImages(EventLog):
    """Writes the first images of each validation, for TensorBoard: the tag is ``samples``, the step that of the
    validation.

    ::

        SampleImages(lambda output: output["reconstruction"])

    Only those few are captured, of the first batch of a validation; encoding them is done in the background, on its
    lane's thread, unless it is wrapped in ``inline()``. The files are as those of :class:`TensorBoard`: replaced at a
    start, cut back at a resume.

    Args:
        images: makes of what the evaluation step returned the images: a tensor of shape (samples, channels, height,
            width) with 1, 3 or 4 channels, or without the channels; of bytes, or of floats from 0 to 1 (what is beyond
            is cut off). The training thread calls it.
        count: how many of them.
        every: in the epochs that this divides.
        folder: made if need be, and no other callback's. Default: ``tensorboard-samples`` in the logs of the split.

    Raises:
        ConfigurationError: an argument that can't work; tensorboard is not installed. At the start of a training: no
            folder is given, and the run has no maps.
    """

    place: ClassVar[str] = "tensorboard-samples"

    @refuse_unknown_options
    def __init__(
        self,
        images: Callable[[Any], Tensor],
        *,
        count: int = 8,
        every: int = 1,
        folder: str | os.PathLike[str] | None = None,
    ) -> None:
        super().__init__(folder)
        if not callable(images) or inspect.isclass(images) or inspect.iscoroutinefunction(images):
            raise ConfigurationError(f"SampleImages: images must be a function of the output, not {images!r}")
        check_counts("SampleImages", count=count, every=every)
        self.images = images
        self.count = count
        self.every = every
        self._validates = False  # a validation has begun, of which there are no images yet
        self._may_begin = False  # the same, as the training thread knows it

    @property
    def background(self) -> Mapping[str, Any]:  # type: ignore[override]  # each instance has its own ``when``
        """In the background by default; what can't be written is raised at the end."""
        return {
            "on_error": "raise_at_end",
            "when": {"on_validation_start": self._begins, "on_metrics_computation_start": self._is_first},
            "select": {"output": self.take},
        }

    # ----------------------------------------------------------------- the training thread, if run in the background

    def _begins(self, *, state: TrainerState, **live: Any) -> bool:
        self._may_begin = self._is_due(state)
        return self._may_begin

    def _is_first(self, **live: Any) -> bool:
        first, self._may_begin = self._may_begin, False
        return first

    def take(self, output: Any) -> Samples:
        """The first images of an output."""
        images = self.images(output)
        if not isinstance(images, Tensor) or images.ndim not in (3, 4):
            shape = tuple(images.shape) if isinstance(images, Tensor) else type(images).__name__
            raise TypeError(
                f"SampleImages: images(output) must be a tensor (samples, channels, height, width), not {shape}"
            )
        return Samples(images.detach()[: self.count].clone())

    # ------------------------------------------------------------------------------------------------------ the hooks

    def _is_due(self, state: TrainerState) -> bool:
        return state.current_epoch % self.every == 0 and getattr(state, "called", None) not in ("validate", "test")

    def on_validation_start(self, *, state: TrainerState) -> None:
        """The next images are the first."""
        self._validates = self._is_due(state)

    def on_metrics_computation_start(
        self, *, output: Any, state: TrainerState, maps: Any = None, event: EventInfo | None = None
    ) -> None:
        """Write those of the first batch."""
        if not self._validates:
            return
        from torch.utils.tensorboard.summary import image

        self._begin(maps, state, event)
        assert self._files is not None
        samples = output if isinstance(output, Samples) else self.take(output)
        self._validates = False
        if len(samples.images):  # else the first batch has none
            row = _row(samples.images)
            self._files.write(image("samples", row, dataformats="HWC"), state.optim_step)  # type: ignore[no-untyped-call]


class Samples:
    """A few images; told apart from an output that happens to be a tensor."""

    def __init__(self, images: Tensor) -> None:
        self.images = images


def _row(images: Tensor) -> Tensor:
    """The images beside one another, as bytes: (height, width, channels)."""
    if images.ndim == 3:
        images = images.unsqueeze(1)
    if images.dtype != torch.uint8:
        images = images.double().nan_to_num(0.0).clamp(0, 1).mul(255).round().to(torch.uint8)
    return torch.cat([*images.cpu()], dim=2).permute(1, 2, 0).contiguous()
