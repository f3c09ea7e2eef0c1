"""Weights in a file: torch's format, or safetensors, by the name's ending. Reading one runs no code."""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from async_trainer.errors import AsyncTrainerError, ConfigurationError
from async_trainer.files.atomic import atomic_write
from async_trainer.files.loadable import check_loadable

SUFFIXES = (".pt", ".safetensors")
_WEIGHTS = "weights"
_ABOUT = "about"
_TIED = "tied"


class DamagedFileError(AsyncTrainerError, RuntimeError):
    """A file of weights can't be read."""


def save_weights(path: str | os.PathLike[str], weights: Mapping[str, Any], about: Mapping[str, Any]) -> None:
    """Write ``weights``, a ``state_dict()``, as a whole or not at all. Any thread.

    Args:
        path: ends in ``.pt`` or ``.safetensors``.
        weights: tensors by name. A ``.pt`` may hold whatever ``torch.load(weights_only=True)`` reads.
            Tied ones stay tied; of a view into something bigger only what it shows is written.
        about: a few plain values: epoch, metrics.

    Raises:
        ConfigurationError: another ending; a value that the format can't hold, or that reading would refuse;
            safetensors is not installed. Nothing is written.
        OSError: the file can't be written; what was there before is still there.
    """
    path = Path(path)
    _check_suffix(path)
    described = _plain(path, about)
    if path.suffix == ".safetensors":
        _save_safetensors(path, weights, described)
        return
    _check_readable(path, {name: value for name, value in weights.items() if not isinstance(value, Tensor)})
    with atomic_write(path) as file:
        torch.save({_WEIGHTS: _compact(weights), _ABOUT: json.loads(described)}, file)


def load_weights(
    path: str | os.PathLike[str], device: torch.device | str = "cpu"
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Read what :func:`save_weights` wrote: the weights, on ``device``, and what was said about them.

    Raises:
        FileNotFoundError, PermissionError: there is no such file, or it may not be read.
        DamagedFileError: it is damaged, or holds something else.
    """
    path = Path(path)
    _check_suffix(path)
    try:
        if path.suffix == ".safetensors":
            return _load_safetensors(path, device)
        content = torch.load(path, map_location=device, weights_only=True)
        weights, about = content[_WEIGHTS], content[_ABOUT]
        if not isinstance(weights, dict) or not isinstance(about, dict):
            raise TypeError("its weights are no dict")
        return weights, about
    except (FileNotFoundError, PermissionError, ConfigurationError):
        raise
    except pickle.UnpicklingError as error:  # torch's message advises to run the code in it
        raise DamagedFileError(f"{path} is damaged, or holds other things than tensors and plain values") from error
    except Exception as error:
        raise DamagedFileError(f"{path} holds no weights that async_trainer has written: {error}") from error


def _check_suffix(path: Path) -> None:
    if path.suffix not in SUFFIXES:
        raise ConfigurationError(f"{path.name}: weights are written to files that end in {' or '.join(SUFFIXES)}")


def _plain(path: Path, about: Mapping[str, Any]) -> str:
    """As JSON, which has no types that reading would refuse (a NumPy number is one)."""
    try:
        return json.dumps(dict(about))
    except (TypeError, ValueError) as error:
        raise ConfigurationError(f"{path.name}: about must hold plain values: {error}") from error


def _check_readable(path: Path, values: Mapping[str, Any]) -> None:
    """A file that can't be read back is worse than none."""
    for name, value in values.items():
        check_loadable(value, f"{path.name}: {name}")


def _compact(weights: Mapping[str, Any]) -> dict[str, Any]:
    """With views into bigger storages copied, as the whole storage would be written; those that are tied stay tied."""
    shown: dict[int, dict[Any, int]] = {}
    dense = {name: value for name, value in weights.items() if isinstance(value, Tensor) and _is_dense(value)}
    for value in dense.values():
        shown.setdefault(value.untyped_storage().data_ptr(), {})[_identity(value)] = value.nbytes
    copies: dict[Any, Tensor] = {}
    compact = dict(weights)
    for name, value in dense.items():
        storage = value.untyped_storage()
        if sum(shown[storage.data_ptr()].values()) < storage.nbytes():
            identity = _identity(value)
            if identity not in copies:
                copies[identity] = value.detach().clone()
            compact[name] = copies[identity]
    return compact


def _is_dense(value: Tensor) -> bool:
    return value.layout == torch.strided and not value.is_meta and not value.is_quantized


def _save_safetensors(path: Path, weights: Mapping[str, Any], about: str) -> None:
    library = _safetensors()
    kept: dict[str, Tensor] = {}
    homes: dict[Any, str] = {}
    tied: dict[str, str] = {}
    for name, value in weights.items():
        if not isinstance(value, Tensor):
            raise ConfigurationError(f"{path.name}: {name} is a {type(value).__name__}; safetensors hold tensors only")
        if not _is_dense(value):
            raise ConfigurationError(f"{path.name}: {name} is no dense tensor; safetensors hold these only: use .pt")
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
        file.write(library.save(kept, {_ABOUT: about, _TIED: json.dumps(tied)}))


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
