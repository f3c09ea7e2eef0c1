"""How a training optimizes, and what it computes on."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Self, TypeVar

import numpy as np
import torch

from async_trainer.errors import ConfigurationError
from async_trainer.suggest import refuse_unknown_options, suggestion

C = TypeVar("C")


@contextlib.contextmanager
def kept_random() -> Iterator[None]:
    """Leave the generators of python, NumPy and torch's CPU as they were: what follows is unchanged."""
    before = random.getstate(), np.random.get_state(), torch.get_rng_state()
    try:
        yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])
        torch.set_rng_state(before[2])


def _with_hints(cls: type[C]) -> type[C]:
    cls.__init__ = refuse_unknown_options(cls.__init__)  # type: ignore[method-assign]
    return cls


@dataclass(frozen=True, kw_only=True)
class _Config:
    def to_dict(self) -> dict[str, Any]:
        """The fields, as JSON has them."""
        return asdict(self)

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Self:
        """What :meth:`to_dict` gave.

        Raises:
            ConfigurationError: a field that this version doesn't know, or a value out of range.
        """
        known = [field.name for field in fields(cls)]
        for name in content:
            if name not in known:
                raise ConfigurationError(f"{cls.__name__} has no field {name!r}{suggestion(name, known)}")
        return cls(**content)


@_with_hints
@dataclass(frozen=True, kw_only=True)
class OptimizationConfig(_Config):
    """How a training optimizes.

    Args:
        num_epochs: epochs, at most: a callback may stop the training before.
        accumulation_steps: batches whose gradients are accumulated for one optimization step. The loss of each is
            divided by their number, so that the step sees the mean. The batches that are left at the end of an epoch
            have a step of their own.
        evaluation_interval: epochs from one validation to the next.
        clip_grad_norm: the largest norm of all gradients together; ``torch.nn.utils.clip_grad_norm_``. None: no limit.
        clip_grad_value: the largest absolute value of a gradient's element; ``torch.nn.utils.clip_grad_value_``,
            before the norm. None: no limit.

    Raises:
        ConfigurationError: a value out of range.
    """

    num_epochs: int = 10
    accumulation_steps: int = 1
    evaluation_interval: int = 1
    clip_grad_norm: float | None = None
    clip_grad_value: float | None = None

    def __post_init__(self) -> None:
        for name in ("num_epochs", "accumulation_steps", "evaluation_interval"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ConfigurationError(f"{name} must be a whole number, 1 or more, not {value!r}")
        for name in ("clip_grad_norm", "clip_grad_value"):
            value = getattr(self, name)
            if value is not None and (isinstance(value, bool) or not isinstance(value, (int, float)) or not value > 0):
                raise ConfigurationError(f"{name} must be a number above 0, or None for no limit, not {value!r}")


@_with_hints
@dataclass(frozen=True, kw_only=True)
class ComputationalConfig(_Config):
    """What a run computes on, and how.

    Args:
        device: ``"cpu"``, ``"cuda"``, ``"cuda:1"``, ``"mps"`` ... None: the accelerator if there is one, else the CPU.
        amp: whether forward and evaluation steps run under autocast, in the device's default type (float16 with a
            GradScaler on CUDA, bfloat16 on the CPU).
        channels_last: whether the model and 4-d batches are laid out in ``torch.channels_last``.
        seed: for the generators of python, NumPy and torch, at the start of the run. None: they go on as they are.
        deterministic: whether torch must use deterministic algorithms, and fail where it has none.

    Raises:
        ConfigurationError: a value out of range, or a device that isn't there.
    """

    device: str | None = None
    amp: bool = False
    channels_last: bool = False
    seed: int | None = None
    deterministic: bool = False

    def __post_init__(self) -> None:
        if isinstance(self.device, torch.device):
            object.__setattr__(self, "device", str(self.device))
        for name in ("amp", "channels_last", "deterministic"):
            if not isinstance(getattr(self, name), bool):
                raise ConfigurationError(f"{name} must be True or False, not {getattr(self, name)!r}")
        if self.seed is not None and (
            isinstance(self.seed, bool) or not isinstance(self.seed, int) or not 0 <= self.seed < 2**32
        ):
            raise ConfigurationError(f"seed must be a whole number from 0 to 2**32 - 1, or None, not {self.seed!r}")
        if self.device is not None:
            self._check_device(self.device)

    @staticmethod
    def _check_device(name: str) -> None:
        there = ["cpu"]
        if torch.accelerator.is_available():
            kind = torch.accelerator.current_accelerator()
            assert kind is not None
            there += [kind.type, *(f"{kind.type}:{number}" for number in range(torch.accelerator.device_count()))]
        try:
            device = torch.device(name)
        except (RuntimeError, TypeError):
            device = None
        if device is None or not (device.type == "cpu" or str(device) in there):
            raise ConfigurationError(f"device={name!r}: there is no such device here; there are: {', '.join(there)}")

    @property
    def torch_device(self) -> torch.device:
        """The device that is used."""
        if self.device is not None:
            return torch.device(self.device)
        accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
        return accelerator or torch.device("cpu")

    @property
    def memory_format(self) -> torch.memory_format:
        """The layout of the model and of 4-d batches."""
        return torch.channels_last if self.channels_last else torch.contiguous_format

    def autocast(self) -> torch.autocast:
        """The context of forward and evaluation steps."""
        return torch.autocast(self.torch_device.type, enabled=self.amp)

    def grad_scaler(self) -> torch.amp.GradScaler:
        """A scaler, enabled where autocast uses float16: its gradients would underflow."""
        kind = self.torch_device.type
        return torch.amp.GradScaler(kind, enabled=self.amp and torch.get_autocast_dtype(kind) == torch.float16)

    @contextlib.contextmanager
    def applied(self) -> Iterator[None]:
        """Seed the generators; within it torch is as deterministic as asked for."""
        if self.seed is not None:
            random.seed(self.seed)
            np.random.seed(self.seed)
            torch.manual_seed(self.seed)
        before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
        benchmark = torch.backends.cudnn.benchmark
        if self.deterministic:
            torch.use_deterministic_algorithms(True)
            torch.backends.cudnn.benchmark = False
        try:
            yield
        finally:
            if self.deterministic:
                torch.use_deterministic_algorithms(before[0], warn_only=before[1])
                torch.backends.cudnn.benchmark = benchmark
