"""Writing and removing Lightning's checkpoints, in their lane."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from async_trainer.files.atomic import atomic_write

logger = logging.getLogger("async_trainer")


class Writer:
    """Calls a checkpoint IO; Lightning's own way of writing, to a local path, is replaced by a commit.

    Args:
        io: the checkpoint IO.
    """

    def __init__(self, io: Any) -> None:
        self.io = io
        self.failed = ""  # the path of the newest checkpoint, while that could not be written

    def save(self, checkpoint: dict[str, Any], path: str, storage_options: Any) -> None:
        """Write ``checkpoint``. The lane's thread."""
        self.failed = path
        if type(self.io).__name__ == "TorchCheckpointIO" and storage_options is None and "://" not in path:
            import torch

            with atomic_write(Path(path)) as file:
                torch.save(checkpoint, file)
        else:
            self.io.save_checkpoint(checkpoint, path, storage_options=storage_options)
        self.failed = ""

    def remove(self, path: str) -> None:
        """Remove a checkpoint that a newer one has replaced. The lane's thread."""
        if self.failed:
            logger.warning("%s is kept, since %s could not be written", path, self.failed)
            return
        self.io.remove_checkpoint(path)
