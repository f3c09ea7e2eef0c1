"""TensorBoard: losses, learning rates and metrics as event files."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from async_trainer.callbacks.event_files import EventFiles, check_installed
from async_trainer.callbacks.run_folder import given_folder, split_folder
from async_trainer.callbacks.scalars import ScalarLog
from async_trainer.suggest import refuse_unknown_options
from async_trainer.train.state import TrainerState

if TYPE_CHECKING:
    from async_trainer.routes import EventInfo


class TensorBoard(ScalarLog):
    """Writes the loss and learning rate of each training batch, and the metrics of each validation, for TensorBoard.

    The tags are ``loss`` (``loss/<key>`` of a loss that is a dict), ``lr`` (``lr/<optimizer>``,
    ``lr/<optimizer>/<group>`` where there are several) and ``validation/<metric>``. The step of a batch is that of the
    optimization step that it is for, counted from 1; the step of a validation is the number of optimization steps made.

    A point is in its file before its hook returns, and survives kill -9; it survives a power cut after at most a second
    of training, at each validation, and whenever the callback's state is taken. A training that starts replaces the
    event files that an earlier one has written in that folder (not those of other writers); one that is resumed cuts
    off what was written after the state that it goes on from, and a TensorBoard that runs meanwhile forgets it too.

    It runs in the background unless wrapped in ``inline()``: on its lane's thread.

    Args:
        folder: the log directory; made if need be. Default: ``tensorboard`` in the logs of the split that is trained.
        every: write only each ``every``-th training batch. Validations are all written.

    Raises:
        ConfigurationError: an argument that can't work; tensorboard is not installed. At the start of a training: no
            folder is given, and the run has no maps.
    """

    @refuse_unknown_options
    def __init__(self, folder: str | os.PathLike[str] | None = None, *, every: int = 1) -> None:
        super().__init__(every)
        check_installed("TensorBoard")
        self.folder = given_folder(self, folder)
        self._files: EventFiles | None = None
        self._state: Mapping[str, Any] | None = None  # while no file is open: of the last training, or as loaded

    def __repr__(self) -> str:
        return f"<TensorBoard: {self._files.folder if self._files else self.folder}>"

    def check_training(self, **arguments: Any) -> None:
        """Refuse a training without a place to write to."""
        self._find(arguments.get("maps"), arguments.get("state"))

    def on_train_start(self, *, maps: Any = None, state: TrainerState | None = None, **kwargs: Any) -> None:
        """Replace the files."""
        self._open(self._find(maps, state), {})

    def on_resume(self, *, maps: Any = None, state: TrainerState | None = None, **kwargs: Any) -> None:
        """Go on with the files, from :meth:`load_state_dict`, before or after this."""
        self._open(self._find(maps, state), self._state if self._files is None else None)

    def _open(self, folder: Path, state: Mapping[str, Any] | None) -> EventFiles:
        self._close()
        self._files = EventFiles(folder, state)
        return self._files

    def _find(self, maps: Any, state: TrainerState | None) -> Path:
        if self.folder is not None:
            return self.folder
        logs: Path = split_folder(self, maps, state).logs
        return logs / "tensorboard"

    def _begin(self, maps: Any, state: TrainerState, event: EventInfo | None) -> None:
        files = self._files
        if files is None:
            if self._state is None:
                raise RuntimeError("TensorBoard: no file is open: on_train_start or on_resume comes first")
            files = self._open(self._find(maps, state), self._state)
        if event is not None and event.attempt > 1:
            files.rewind()
        files.mark()

    def _log(self, state: TrainerState, values: Mapping[str, float], *, batch: bool) -> None:
        assert self._files is not None
        self._files.write_scalars(values, state.optim_step + batch)

    def _settle(self) -> None:
        assert self._files is not None
        self._files.sync()

    def on_train_end(self, **kwargs: Any) -> None:
        """Close the file, synced."""
        self._close()

    def on_exception(self, **kwargs: Any) -> None:
        """Close the file, synced."""
        self._close()

    def _close(self) -> None:
        files, self._files = self._files, None
        if files is not None:
            try:
                self._state = files.state()
            finally:
                files.close()

    def state_dict(self) -> Mapping[str, Any]:
        """``records``: how many there are, all of them on disk; ``step``: the last one written."""
        if self._files is not None:
            return self._files.state()
        return self._state or {"records": 0, "step": -1}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Cut the files back to the state: at once, or when :meth:`on_resume` opens them."""
        self._state = dict(state_dict)
        if self._files is not None:
            folder = self._files.folder
            self._files.close()
            self._files = EventFiles(folder, self._state)
