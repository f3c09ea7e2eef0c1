"""A training whose checkpoints can be taken: what is kept of it, and from which place on."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from async_trainer.handler import CallbacksHandler
from async_trainer.resume import cut
from async_trainer.resume.checkpoint import Checkpoint
from async_trainer.train.run import TrainingRun, count
from async_trainer.train.split import Split

logger = logging.getLogger("async_trainer")


class Asked(Protocol):
    """A ``TrainingCheckpoint``."""

    keep: int
    deadline: float
    wait: bool


@dataclass(frozen=True, slots=True)
class Place:
    """The start of a validation, for checkpoints that are taken within it."""

    cut: cut.Cut
    extra: dict[str, Any]
    weights: dict[str, Any]
    """What they come to: they must not have changed since."""


class Resumable:
    """A training under way, for ``TrainingCheckpoint``: takes its checkpoints. The training thread."""

    def __init__(self, run: TrainingRun, handler: CallbacksHandler, folder: Path, split: Split) -> None:
        self._run = run
        self._handler = handler
        self._folder = folder
        self._split = split
        self._place: Place | None = None
        self._validates = False

    def checkpoint(self, asked: Asked, *, wait: bool | None = None) -> Checkpoint | None:
        """Take one: within an inline hook, after the event; in a validation, as of its start. None: it can't be."""
        if self._validates and not self._is_as_at_start():
            return None
        place = self._place
        return cut.take(
            self._handler, self._folder, self._content, keep=asked.keep, deadline=asked.deadline,
            wait=asked.wait if wait is None else wait, loaders=self._run.loaders,
            at=None if place is None else place.cut,
        )  # fmt: skip

    def at_termination(self) -> None:
        """SIGTERM: take one, and wait for it, if they are taken at all."""
        asked = self._asked()
        if asked is not None:
            self._handler._settle_checkpoint(asked.deadline)
            self.checkpoint(asked, wait=True)

    @contextmanager
    def validation(self) -> Iterator[None]:
        """Within it a checkpoint is one of its start: the validation is then done anew.

        So nothing of a metric that is half counted has to be kept, which no interface of theirs gives, and the weights
        are those of now. It costs a mark in the lanes.
        """
        self._validates = True  # also for who is added within it, and asks
        try:
            if self._asked() is not None:
                self._place = self._here()
            yield
        finally:
            self._place, self._validates = None, False

    def _here(self) -> Place | None:
        run = self._run
        try:
            marked = cut.mark(self._handler, run.loaders)
        except Exception:  # of a state_dict(): it costs the checkpoint, not the training
            logger.exception("in this validation no checkpoint can be taken")
            return None
        return Place(marked, self._extra(validates=True), sums(run.model, run.optimizers))

    def _is_as_at_start(self) -> bool:
        if self._place is None:  # it was told why, once
            return False
        now = sums(self._run.model, self._run.optimizers)
        changed = [name for name, value in self._place.weights.items() if not same(value, now.get(name))]
        if changed:
            logger.warning(
                "no checkpoint is taken in this validation: a hook, or the model, has changed %s in it; the newest one "
                "is what there is", changed[0],
            )  # fmt: skip
            self._place = None
        return not changed

    def _asked(self) -> Asked | None:
        found = (one.callback for one in self._handler.attached)
        return next((one for one in found if getattr(type(one), "takes_checkpoints", False)), None)

    def _content(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """Objects with states, and plain values, of the place that is kept, or as they are now."""
        run = self._run
        kept: dict[str, Any] = {
            "model": run.model, "optimizers": run.optimizers, "grad_scaler": run.grad_scaler, "metrics": run.metrics,
        }  # fmt: skip
        if has_state(run.train_loader):
            kept["loader"] = run.train_loader
        return kept, self._extra() if self._place is None else self._place.extra

    def _extra(self, *, validates: bool = False) -> dict[str, Any]:
        run = self._run
        return {
            "state": dict(vars(run.state)),
            "loop": {
                "accumulated": run.accumulated, "divisor": run.divisor, "in_epoch": run.in_epoch,
                "validates": validates,
            },
            "epoch_rng": run.epoch_rng,
            "split": fingerprint(self._split),
        }  # fmt: skip


def fingerprint(split: Split) -> dict[str, Any]:
    """What tells one split from another, as far as it is known."""
    val = split.val_loader
    return {
        "train": _lengths(split.train_loader),
        "val": None if val is None else _lengths(val),
    }


def _lengths(loader: Any) -> list[int]:
    try:
        samples = len(loader.dataset)
    except (AttributeError, TypeError):
        samples = 0
    return [count(loader), samples]


def has_state(loader: Any) -> bool:
    """Whether it knows where it is."""
    return callable(getattr(loader, "state_dict", None)) and callable(getattr(loader, "load_state_dict", None))


def sums(model: nn.Module, optimizers: dict[str, Optimizer]) -> dict[str, Any]:
    """What weights and buffers come to, and the numbers of the optimizers' groups: cheap, and on the device.

    A tensor's version would tell less: ``parameter.data.copy_(average)`` leaves it as it is.
    """
    found: dict[str, Any] = {}
    named: Iterable[tuple[str, Tensor]] = [*model.named_parameters(), *model.named_buffers()]
    for name, tensor in named:
        try:
            found[name] = _integers(tensor.detach()).sum()
        except (KeyError, RuntimeError, TypeError, ValueError):  # not of plain numbers: it isn't looked at
            continue
    for key, optimizer in optimizers.items():
        for place, group in enumerate(optimizer.param_groups):
            for name, value in group.items():
                if isinstance(value, (int, float, Tensor)):  # a tensor is changed in place
                    found[f"{name} of {key}, group {place}"] = value.clone() if isinstance(value, Tensor) else value
    return found


_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def _integers(tensor: Tensor) -> Tensor:
    """Its bits: their sum is the same however it is computed, nan or not; and of whole words it is a fast one."""
    size = tensor.element_size()
    if tensor.is_contiguous() and tensor.numel() * size % 8 == 0:
        return tensor.reshape(-1).view(torch.int64)
    return tensor.view(_INTEGERS[size])


def same(one: Any, other: Any) -> bool:
    """Whether two of :func:`sums` are; nan is."""
    return other is not None and bool(torch.as_tensor(one == other).all() or torch.as_tensor(one != one).all())
