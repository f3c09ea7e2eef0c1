"""Whether two runs did the same, bit by bit."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from async_trainer.demo.run import Run


@dataclass(frozen=True, slots=True)
class Comparison:
    """What differs between the inline run and the background run, and what the latter did not deliver."""

    weights: tuple[str, ...]
    """The weights and buffers that differ in any bit."""
    random: bool
    """Whether torch's generator ended in another state."""
    files: tuple[str, ...]
    """The logs and checkpoints that differ in content, or that one run lacks; paths within the run's folder."""
    compared: int
    """How many logs and checkpoints there are."""
    lost: int
    failed: int
    dropped: int

    @property
    def fine(self) -> bool:
        """Whether nothing differs and every event was delivered."""
        return not (self.weights or self.random or self.files or self.lost or self.failed or self.dropped)


def compare(inline: Run, background: Run) -> Comparison:
    """Compare what the runs have in memory and on disk."""
    names = inline.weights.keys() | background.weights.keys()
    files = sorted(_comparable(inline.folder) | _comparable(background.folder))
    return Comparison(
        weights=tuple(
            sorted(name for name in names if not same(inline.weights.get(name), background.weights.get(name)))
        ),
        random=not same(inline.random, background.random),
        files=tuple(path for path in files if not same_file(inline.folder / path, background.folder / path)),
        compared=len(files),
        lost=sum(lane.lost for lane in background.lanes),
        failed=sum(lane.failed for lane in background.lanes),
        dropped=sum(lane.dropped for lane in background.lanes),
    )


def same(one: Any, other: Any) -> bool:
    """Whether two values of a state dict are equal: tensors bit by bit, containers leaf by leaf."""
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return one.dtype == other.dtype and one.shape == other.shape and torch.equal(_bits(one), _bits(other))
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)) and isinstance(other, (list, tuple)):
        return len(one) == len(other) and all(map(same, one, other))
    return type(one) is type(other) and bool(one == other)


def same_file(one: Path, other: Path) -> bool:
    """Whether both files are there and hold the same: a checkpoint's tensors, any other file's bytes."""
    if not (one.is_file() and other.is_file()):
        return False
    if one.suffix == ".pt":
        return same(torch.load(one, weights_only=True), torch.load(other, weights_only=True))
    return one.read_bytes() == other.read_bytes()


def _bits(tensor: Tensor) -> Tensor:
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8)


def _comparable(folder: Path) -> set[str]:
    """The files of a run that hold no dates: its log and its checkpoints."""
    return {
        path.relative_to(folder).as_posix()
        for pattern in ("metrics.jsonl", "store/epoch-*.pt", "store/step-*.pt")
        for path in folder.glob(pattern)
    }
