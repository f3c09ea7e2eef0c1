"""A Lightning checkpoint IO that writes in the background."""

from __future__ import annotations

import logging
import sys
import types
from pathlib import Path
from typing import Any, cast

from async_trainer.adapters.disguise import Disguise, end_run
from async_trainer.adapters.lightning_steering import PACKAGES, REMEDY
from async_trainer.callback import BackgroundOptions, label, snake_case
from async_trainer.errors import ConfigurationError
from async_trainer.files.atomic import atomic_write
from async_trainer.handler import CallbacksHandler

logger = logging.getLogger("async_trainer")


class BackgroundCheckpointIO(Disguise):
    """A checkpoint IO that writes in the background. Made with Lightning's ``CheckpointIO`` as its base."""

    _elsewhere = REMEDY

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
        """Captured here, written in the background: there as a whole, on disk, or not at all. A save that somebody has
        called ``trainer.save_checkpoint`` for is waited for: the file is read next.

        Raises:
            Exception: what the write raised, of a save that is waited for.
        """
        self._refuse_fork()
        handle = self._calls.save(checkpoint, str(path), storage_options)
        if asked_by_hand():
            handle.wait()

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


def asked_by_hand() -> bool:
    """Whether ``trainer.save_checkpoint`` is under way, and its caller is none of Lightning's own."""
    frame: types.FrameType | None = sys._getframe(1)
    while frame is not None:
        caller = frame.f_back
        if caller is not None and frame.f_code.co_name == "save_checkpoint" and _of_lightning(frame, "Trainer"):
            return caller.f_globals.get("__name__", "").partition(".")[0] not in PACKAGES
        frame = caller
    return False


def _of_lightning(frame: types.FrameType, name: str) -> bool:
    there = type(frame.f_locals.get("self"))
    return any(base.__name__ == name and base.__module__.partition(".")[0] in PACKAGES for base in there.__mro__)


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
