"""A batch on a device."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from async_trainer.train.config import ComputationalConfig


def to_device(batch: Any, computational: ComputationalConfig) -> Any:
    """``batch`` with its tensors on the device: mappings, sequences and dataclasses are rebuilt, and what has a
    ``to`` of its own moves itself. From pinned memory the copy doesn't wait. The training thread."""
    return _move(batch, computational.torch_device, computational.memory_format)


def _move(value: Any, device: torch.device, memory_format: torch.memory_format) -> Any:
    if isinstance(value, Tensor):
        waits = device.type == "cpu"  # nothing would say when the values are there
        if value.dim() == 4 and memory_format is torch.channels_last:
            return value.to(device, non_blocking=not waits, memory_format=memory_format)
        return value.to(device, non_blocking=not waits)
    if callable(getattr(value, "to", None)) and not isinstance(value, type):
        moved = value.to(device)  # a PackedSequence, which is a tuple too, leaves its lengths on the CPU
        return value if moved is None else moved
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(_move(part, device, memory_format) for part in value))
    if isinstance(value, (list, tuple)):
        return type(value)([_move(part, device, memory_format) for part in value])
    if isinstance(value, Mapping):
        parts = {key: _move(part, device, memory_format) for key, part in value.items()}
        return parts if type(value) is dict else _like(value, parts)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        rebuilt = copy.copy(value)  # what it does when it is made, it has done
        for field in dataclasses.fields(value):
            part = getattr(value, field.name)
            object.__setattr__(rebuilt, field.name, _move(part, device, memory_format))
        return rebuilt
    return value


def _like(value: Mapping[Any, Any], moved: dict[Any, Any]) -> Any:
    try:
        return type(value)(moved)  # type: ignore[call-arg]
    except TypeError:
        return moved
