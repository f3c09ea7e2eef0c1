"""Where a callback's files are: the folder that it was given, else the one of the split."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from async_trainer.callback import label
from async_trainer.errors import ConfigurationError


def given_folder(callback: object, folder: Any) -> Path | None:
    """``folder=`` as it was given to a constructor; absolute, since the working directory may change.

    Raises:
        ConfigurationError: it is no path.
    """
    if folder is None:
        return None
    if not isinstance(folder, (str, os.PathLike)) or not os.fspath(folder):
        raise ConfigurationError(f"{label(callback)}: folder must be a path, not {folder!r}")
    return Path(folder).absolute()


def split_folder(callback: object, maps: Any, state: Any) -> Any:
    """``maps.split(state.split_idx)``: a ``SplitMaps``.

    Raises:
        ConfigurationError: the run has no maps with splits; names the remedy.
    """
    index = getattr(state, "split_idx", None)
    if not hasattr(maps, "split") or index is None:
        raise ConfigurationError(
            f"{label(callback)} writes to the folder of the split, and this run has no maps with splits: give a "
            "folder=, such as folder='runs/1'"
        )
    return maps.split(index)
