"""TrainingCheckpoint: what a training needs to be resumed."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from typing import Any

from async_trainer.callback import Callback
from async_trainer.errors import ConfigurationError
from async_trainer.suggest import refuse_unknown_options
from async_trainer.train.state import TrainerState

logger = logging.getLogger("async_trainer")


class TrainingCheckpoint(Callback):
    """Has the resume state of a :class:`Trainer`'s training written, for :meth:`Trainer.resume`.

    ::

        trainer = Trainer("runs/digits", model, callbacks=[TrainingCheckpoint(every_n_steps=500), ...])

    It asks for it, inline; what is captured holds the event, and is written and committed in the background, while the
    training goes on. Kill the process at any moment: the newest that is whole is used. At SIGTERM another is taken, and
    waited for.

    Args:
        every_n_epochs: at the end of each ``every_n_epochs``-th epoch; None: not at epochs.
        every_n_steps: after each ``every_n_steps``-th optimization step, too; None: not at steps.
        keep: how many are kept, 1 or more.
        deadline: seconds for the background callbacks to come to the cut. Those that haven't are taken as they were
            last known, and named in the log: a logger that hangs costs no checkpoint.
        wait: wait each time until it is on disk.

    Raises:
        ConfigurationError: an argument that can't work.
    """

    steers = True  # inline only: it captures the live objects
    takes_checkpoints = True

    @refuse_unknown_options
    def __init__(
        self,
        every_n_epochs: int | None = 1,
        every_n_steps: int | None = None,
        keep: int = 2,
        deadline: float = 60.0,
        wait: bool = False,
    ) -> None:
        for name, value in (("every_n_epochs", every_n_epochs), ("every_n_steps", every_n_steps), ("keep", keep)):
            if value is None and name != "keep":
                continue
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ConfigurationError(f"TrainingCheckpoint: {name} must be a whole number, 1 or more, not {value!r}")
        if every_n_epochs is None and every_n_steps is None:
            raise ConfigurationError(
                "TrainingCheckpoint: give every_n_epochs or every_n_steps, else it would do nothing"
            )
        if isinstance(deadline, bool) or not isinstance(deadline, (int, float)) or not 0 < deadline < math.inf:
            raise ConfigurationError(f"TrainingCheckpoint: deadline must be a number of seconds, not {deadline!r}")
        self.every_n_epochs = every_n_epochs
        self.every_n_steps = every_n_steps
        self.keep = keep
        self.deadline = float(deadline)
        self.wait = wait
        self._step = 0

    def __repr__(self) -> str:
        return f"TrainingCheckpoint(every_n_epochs={self.every_n_epochs}, every_n_steps={self.every_n_steps})"

    def check_training(self, *, split: Any = None, **arguments: Any) -> None:
        """Tell of what can't be resumed exactly."""
        for name in ("train_loader", "val_loader"):
            if getattr(getattr(split, name, None), "persistent_workers", False):
                logger.warning(
                    "TrainingCheckpoint: the %s of the split has persistent_workers=True: torch draws their seeds once "
                    "only, so that a resumed training draws other random numbers; without it, it is exact", name
                )  # fmt: skip

    def on_batch_end(self, *, state: TrainerState, callbacks: Any = None, **kwargs: Any) -> None:
        """After a step, where it is due."""
        if self.every_n_steps is None or state.stage != "training" or state.optim_step == self._step:
            return
        self._step = state.optim_step
        if state.optim_step % self.every_n_steps == 0:
            self._ask(callbacks)

    def on_epoch_end(self, *, state: TrainerState, callbacks: Any = None, **kwargs: Any) -> None:
        """At the end of an epoch, where it is due."""
        if self.every_n_epochs and state.current_epoch % self.every_n_epochs == 0:
            self._ask(callbacks)

    def _ask(self, callbacks: Any) -> None:
        resumable = getattr(callbacks, "resumable", None)
        if resumable is not None:  # a Trainer's
            resumable.checkpoint(self)

    def state_dict(self) -> dict[str, int]:
        """``step``: the last one that was looked at."""
        return {"step": self._step}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Go on from ``state_dict``."""
        self._step = state_dict["step"]
