"""A batch on a device."""

from __future__ import annotations

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
        if value.dim() == 4 and memory_format is torch.channels_last:
            return value.to(device, non_blocking=True, memory_format=memory_format)
        return value.to(device, non_blocking=True)
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(_move(part, device, memory_format) for part in value))
    if isinstance(value, (list, tuple)):
        return type(value)([_move(part, device, memory_format) for part in value])
    if callable(getattr(value, "to", None)):
        return value.to(device)
    if isinstance(value, Mapping):
        moved = {key: _move(part, device, memory_format) for key, part in value.items()}
        return moved if type(value) is dict else _like(value, moved)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        moved = {
            field.name: _move(getattr(value, field.name), device, memory_format)
            for field in dataclasses.fields(value)
            if field.init
        }
        return dataclasses.replace(value, **moved)
    return value


def _like(value: Mapping[Any, Any], moved: dict[Any, Any]) -> Any:
    try:
        return type(value)(moved)  # type: ignore[call-arg]
    except TypeError:
        return moved
