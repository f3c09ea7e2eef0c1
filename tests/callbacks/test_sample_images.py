"""SampleImages: the pixels that TensorBoard's own reader finds, once per validation."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("tensorboard")

from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from async_trainer import CallbacksHandler, TrainerState, background, inline
from async_trainer.callbacks.sample_images import SampleImages
from async_trainer.errors import ConfigurationError, LaneError
from async_trainer.testing import check_callback


def read(folder: Path) -> dict[str, Any]:
    """By step: the pixels."""
    reader = EventAccumulator(str(folder), size_guidance={"images": 0}).Reload()
    if not reader.Tags()["images"]:
        return {}
    found = reader.Images("samples")
    return {str(one.step): np.asarray(Image.open(io.BytesIO(one.encoded_image_string))) for one in found}


def validate(handler: CallbacksHandler, epoch: int, images: torch.Tensor, *, called: str = "train") -> None:
    state = TrainerState(called=called, current_epoch=epoch, optim_step=10 * epoch)
    handler.call_event("on_validation_start", state=state)
    for _ in range(3):
        handler.call_event("on_metrics_computation_start", state=state, output={"images": images})
        images.fill_(0)  # the next batch, in the same buffer
    handler.call_event("on_validation_end", state=state)


def _images(output: Any) -> Any:
    return output["images"]


@pytest.mark.parametrize("wrap", [inline, background])
def test_the_first_images_of_each_validation_that_every_divides(tmp_path: Path, wrap: Callable[[Any], Any]) -> None:
    handler = CallbacksHandler([wrap(SampleImages(_images, count=2, every=2, folder=tmp_path))])
    handler.call_event("on_train_start", state=TrainerState())
    wanted = {}
    for epoch in range(1, 5):
        images = torch.rand(5, 3, 4, 6)
        images[0, 0, 0, :3] = torch.tensor([2.0, -1.0, torch.nan])
        wanted[epoch] = images.clone()
        validate(handler, epoch, images)
    validate(handler, 6, torch.rand(5, 3, 4, 6), called="validate")
    handler.call_event("on_train_end", state=TrainerState())
    handler.close().raise_for_errors()
    found = read(tmp_path)
    assert set(found) == {"20", "40"}
    pixels = found["20"]
    assert pixels.shape == (4, 12, 3)
    assert pixels[0, :3, 0].tolist() == [255, 0, 0]
    expected = (wanted[2][1].permute(1, 2, 0) * 255).round().numpy()
    assert np.abs(pixels[:, 6:].astype(float) - expected).max() <= 1


def test_bytes_and_images_without_channels_are_taken_as_they_are(tmp_path: Path) -> None:
    images = torch.arange(2 * 4 * 4, dtype=torch.uint8).reshape(2, 4, 4)
    expected = np.concatenate([*images.numpy()], axis=1)
    with CallbacksHandler([SampleImages(_images, folder=tmp_path)]) as handler:
        handler.call_event("on_train_start", state=TrainerState())
        validate(handler, 1, images)
        handler.call_event("on_train_end", state=TrainerState())
    pixels = read(tmp_path)["10"]
    assert (pixels if pixels.ndim == 2 else pixels[..., 0]).tolist() == expected.tolist()


@pytest.mark.slow
def test_it_does_the_same_inline_and_in_the_background_and_after_a_resume() -> None:
    def images(output: Any) -> Any:
        return next(one for one in vars(output).values() if isinstance(one, torch.Tensor)).reshape(-1, 1, 1, 2)

    def either(output: Any) -> Any:
        tensor = next(iter(output.values())) if isinstance(output, dict) else None
        return tensor.reshape(-1, 1, 1, tensor.shape[-1]) if tensor is not None else images(output)

    check_callback(lambda directory: SampleImages(either, folder=directory), read=read)


def test_a_first_batch_without_images_costs_nothing(tmp_path: Path) -> None:
    with CallbacksHandler([SampleImages(_images, folder=tmp_path)]) as handler:
        handler.call_event("on_train_start", state=TrainerState())
        validate(handler, 1, torch.rand(0, 3, 4, 6))
        validate(handler, 2, torch.rand(2, 3, 4, 6))
    assert list(read(tmp_path)) == ["20"]


def test_what_is_no_image_is_told(tmp_path: Path) -> None:
    handler = CallbacksHandler([SampleImages(lambda output: output["images"][0, 0], folder=tmp_path)])
    handler.call_event("on_train_start", state=TrainerState())
    validate(handler, 1, torch.rand(5, 3, 4, 6))
    with pytest.raises(LaneError, match=r"must be a tensor \(samples, channels, height, width\), not \(4, 6\)"):
        handler.close()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"images": 3}, "SampleImages: images must be a function"),
        ({"images": _images, "count": 0}, "count must be"),
        ({"images": _images, "evry": 1}, "did you mean 'every'"),
    ],
)
def test_a_bad_argument_is_refused_by_name(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        SampleImages(**arguments)
