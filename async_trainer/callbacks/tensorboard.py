"""TensorBoard: losses, learning rates and metrics as event files."""

from __future__ import annotations

import os
from collections.abc import Mapping

from async_trainer.callbacks.event_log import EventLog
from async_trainer.callbacks.scalars import ScalarLog
from async_trainer.suggest import refuse_unknown_options
from async_trainer.train.state import TrainerState


class TensorBoard(EventLog, ScalarLog):
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
        ScalarLog.__init__(self, every)
        EventLog.__init__(self, folder)

    def _log(self, state: TrainerState, values: Mapping[str, float], *, batch: bool) -> None:
        assert self._files is not None
        self._files.write_scalars(values, state.optim_step + batch)

    def _settle(self) -> None:
        assert self._files is not None
        self._files.sync()
