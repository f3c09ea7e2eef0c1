"""A Lightning checkpoint IO that writes in the background."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any, cast

from async_trainer.adapters.disguise import Disguise, end_run
from async_trainer.callback import BackgroundOptions, label, snake_case
from async_trainer.errors import ConfigurationError
from async_trainer.files.atomic import atomic_write
from async_trainer.handler import CallbacksHandler

logger = logging.getLogger("async_trainer")


class BackgroundCheckpointIO(Disguise):
    """A checkpoint IO that writes in the background. Made with Lightning's ``CheckpointIO`` as its base."""

    def __init__(self, io: Any, handler: CallbacksHandler, options: dict[str, Any]) -> None:
        if any(base.__name__ == "_WrappingCheckpointIO" for base in type(io).__mro__):
            raise ConfigurationError(
                f"{label(io)} wraps the checkpoint IO that Lightning gives it later, and writes in its own way: pass "
                "lightning.background(TorchCheckpointIO()) in its place"
            )
        self._live = io
        given = {"name": snake_case(label(io)), "on_error": "raise_at_end", **options}
        self._calls: Any = handler.proxy(Writer(io), **cast(BackgroundOptions, given))
        self.handler = handler

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Captured here, written in the background: there as a whole, on disk, or not at all."""
        self._calls.save(checkpoint, str(path), storage_options)

    def remove_checkpoint(self, path: Any) -> None:
        """Behind what was saved before; not while the newest could not be written."""
        self._calls.remove(str(path))

    def load_checkpoint(self, *args: Any, **kwargs: Any) -> Any:
        """Behind what was saved before. The training thread."""
        self.handler.flush()
        return self._live.load_checkpoint(*args, **kwargs)

    def teardown(self) -> None:
        """The end of a run: what was saved is there."""
        end_run(self.handler)
        self._live.teardown()


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
