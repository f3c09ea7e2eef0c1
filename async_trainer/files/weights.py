"""Weights in a file: torch's format, or safetensors, by the name's ending. Reading one runs no code."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from async_trainer.errors import AsyncTrainerError, ConfigurationError
from async_trainer.files.atomic import atomic_write

SUFFIXES = (".pt", ".safetensors")
_ABOUT = "about"
_TIED = "tied"


class DamagedFileError(AsyncTrainerError, RuntimeError):
    """A file of weights can't be read."""


def save_weights(path: Path, weights: Mapping[str, Any], about: Mapping[str, Any]) -> None:
    """Write ``weights``, a ``state_dict()``, as a whole or not at all. Any thread.

    Args:
        path: ends in ``.pt`` or ``.safetensors``.
        weights: tensors by name. A ``.pt`` may hold whatever ``torch.load(weights_only=True)`` reads.
        about: a few plain values: epoch, metrics.

    Raises:
        ConfigurationError: another ending; no tensor in a ``.safetensors``; safetensors is not installed.
        OSError: the file can't be written; what was there before is still there.
    """
    if path.suffix == ".safetensors":
        _save_safetensors(path, weights, about)
        return
    _check_suffix(path)
    with atomic_write(path) as file:
        torch.save({"weights": dict(weights), _ABOUT: dict(about)}, file)


def load_weights(path: Path, device: torch.device | str = "cpu") -> tuple[dict[str, Any], dict[str, Any]]:
    """Read what :func:`save_weights` wrote: the weights, on ``device``, and what was said about them.

    Raises:
        FileNotFoundError: there is no such file.
        DamagedFileError: it can't be read, or holds something else.
    """
    _check_suffix(path)
    try:
        if path.suffix == ".safetensors":
            return _load_safetensors(path, device)
        content = torch.load(path, map_location=device, weights_only=True)
        return content["weights"], content[_ABOUT]
    except (FileNotFoundError, ConfigurationError):
        raise
    except Exception as error:
        raise DamagedFileError(f"{path} holds no weights that async_trainer has written: {error}") from error


def _check_suffix(path: Path) -> None:
    if path.suffix not in SUFFIXES:
        raise ConfigurationError(f"{path.name}: weights are written to files that end in {' or '.join(SUFFIXES)}")


def _save_safetensors(path: Path, weights: Mapping[str, Any], about: Mapping[str, Any]) -> None:
    library = _safetensors()
    kept: dict[str, Tensor] = {}
    homes: dict[Any, str] = {}
    tied: dict[str, str] = {}
    for name, value in weights.items():
        if not isinstance(value, Tensor):
            raise ConfigurationError(f"{path.name}: {name} is a {type(value).__name__}; safetensors hold tensors only")
        home = homes.setdefault(_identity(value), name)
        if home == name:
            kept[name] = value.detach().contiguous()
        else:
            tied[name] = home
    # What shares memory without being the same: each its own.
    storages: set[int] = set()
    for name, value in kept.items():
        storage = value.untyped_storage()
        if storage.data_ptr() in storages or storage.nbytes() != value.nbytes:
            kept[name] = value.clone()
        storages.add(storage.data_ptr())
    with atomic_write(path) as file:
        file.write(library.save(kept, {_ABOUT: json.dumps(about), _TIED: json.dumps(tied)}))


def _identity(value: Tensor) -> Any:
    if value.numel() == 0:
        return id(value)
    return value.device, value.data_ptr(), value.shape, value.stride(), value.dtype


def _load_safetensors(path: Path, device: torch.device | str) -> tuple[dict[str, Any], dict[str, Any]]:
    _safetensors()
    import safetensors

    with safetensors.safe_open(path, "pt", device=str(device)) as file:
        described = file.metadata() or {}
        weights: dict[str, Any] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    for name, home in json.loads(described[_TIED]).items():
        weights[name] = weights[home]
    return weights, json.loads(described[_ABOUT])


def _safetensors() -> Any:
    try:
        import safetensors.torch
    except ImportError:
        raise ConfigurationError(
            "a .safetensors file needs safetensors: pip install 'async_trainer[safetensors]'"
        ) from None
    return safetensors.torch
