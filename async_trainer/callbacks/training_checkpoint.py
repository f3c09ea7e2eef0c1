"""TrainingCheckpoint: what a training needs to be resumed."""

from __future__ import annotations

import logging
import math
import signal
import threading
from collections.abc import Mapping
from types import FrameType
from typing import TYPE_CHECKING, Any

from async_trainer.callback import Callback
from async_trainer.callbacks.values import check_counts
from async_trainer.errors import ConfigurationError
from async_trainer.suggest import refuse_unknown_options
from async_trainer.train.state import TrainerState

if TYPE_CHECKING:
    from async_trainer.resume.checkpoint import Checkpoint

logger = logging.getLogger("async_trainer")


class TrainingCheckpoint(Callback):
    """Has the resume state of a :class:`Trainer`'s training written, for :meth:`Trainer.resume`.

    ::

        trainer = Trainer("runs/digits", model, callbacks=[TrainingCheckpoint(every_n_steps=500), ...])

    It asks for it, inline; what is captured holds the event, and is written and committed in the background, while the
    training goes on; while one is under way, another is skipped. Kill the process at any moment: the newest that is
    whole is used. At SIGTERM another is taken, and waited for: after the batch; in a validation, one of its start, from
    where the training then goes on.

    Args:
        every_n_epochs: at the end of each ``every_n_epochs``-th epoch; None: not at epochs.
        every_n_steps: after each ``every_n_steps``-th optimization step, too; None: not at steps.
        keep: how many are kept, 1 or more.
        deadline: seconds for the background callbacks to come to the cut. Those that haven't are taken as they were
            last known, and named in the log: a logger that hangs costs no checkpoint.
        wait: wait each time until it is on disk.
        at_signal: take one, too, after the batch at which this signal comes, such as ``signal.SIGUSR1``, with which
            schedulers warn; the training goes on. In a validation it is one of its start, as at SIGTERM. Only on the
            main thread, and where nobody else has anything to say about it; it is given back at the end of the
            training. None: at no signal.

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
        at_signal: int | None = None,
    ) -> None:
        counts = {"every_n_epochs": every_n_epochs, "every_n_steps": every_n_steps}
        given = {option: value for option, value in counts.items() if value is not None}
        check_counts("TrainingCheckpoint", keep=keep, **given)
        if every_n_epochs is None and every_n_steps is None and at_signal is None:
            raise ConfigurationError(
                "TrainingCheckpoint: give every_n_epochs, every_n_steps or at_signal, else it would do nothing"
            )
        if at_signal is not None and (isinstance(at_signal, bool) or at_signal not in _signals()):
            raise ConfigurationError(
                f"TrainingCheckpoint: at_signal must be a signal such as signal.SIGUSR1, not {at_signal!r} (at "
                "SIGTERM one is always taken)"
            )
        if isinstance(deadline, bool) or not isinstance(deadline, (int, float)) or not 0 < deadline < math.inf:
            raise ConfigurationError(f"TrainingCheckpoint: deadline must be a number of seconds, not {deadline!r}")
        self.every_n_epochs = every_n_epochs
        self.every_n_steps = every_n_steps
        self.keep = keep
        self.deadline = float(deadline)
        self.wait = wait
        self.at_signal = at_signal
        self._step = 0
        self._is_asked = False  # by the signal
        self._listens = False
        self._asked: Checkpoint | None = None

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

    def on_train_start(self, **kwargs: Any) -> None:
        """Listen for the signal."""
        self._listen()

    def on_resume(self, **kwargs: Any) -> None:
        """Listen for the signal."""
        self._listen()

    def on_train_end(self, **kwargs: Any) -> None:
        """Give the signal back."""
        self._give_back()

    def on_exception(self, **kwargs: Any) -> None:
        """Give the signal back."""
        self._give_back()

    def _listen(self) -> None:
        self._is_asked, self._asked = False, None
        if self.at_signal is None:
            return
        if threading.current_thread() is not threading.main_thread() or signal.getsignal(self.at_signal) not in (
            signal.SIG_DFL,
            signal.SIG_IGN,
        ):
            logger.warning(
                "TrainingCheckpoint: signal %d is another's to handle: it takes no checkpoint", self.at_signal
            )
            return
        self._before = signal.signal(self.at_signal, self._note)
        self._listens = True

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._is_asked = True

    def _give_back(self) -> None:
        if self._listens and self.at_signal is not None:
            self._listens = False
            signal.signal(self.at_signal, self._before)

    def on_batch_end(self, *, state: TrainerState, callbacks: Any = None, **kwargs: Any) -> None:
        """After a step, where it is due; and after a batch, of a validation too, where the signal has come."""
        if self._asked is not None and self._asked.done:
            self._is_asked = (
                self._is_asked or self._asked.skipped
            )  # another was under way: its cut was before the signal
            self._asked = None
        if self._is_asked and self._asked is None:
            self._asked = self._ask(callbacks)
            self._is_asked = self._asked is None  # in this validation it can't be: at the end of the epoch
        if self.every_n_steps is None or state.stage != "training" or state.optim_step == self._step:
            return
        self._step = state.optim_step
        if state.optim_step % self.every_n_steps == 0:
            self._ask(callbacks)

    def on_epoch_end(self, *, state: TrainerState, callbacks: Any = None, **kwargs: Any) -> None:
        """At the end of an epoch, where it is due."""
        if self._is_asked or (self.every_n_epochs and state.current_epoch % self.every_n_epochs == 0):
            self._is_asked = False
            self._ask(callbacks)

    def _ask(self, callbacks: Any) -> Checkpoint | None:
        resumable = getattr(callbacks, "resumable", None)
        if resumable is None:  # not a Trainer's
            return None
        asked: Checkpoint | None = resumable.checkpoint(self)
        return asked

    def state_dict(self) -> dict[str, int]:
        """``step``: the last one that was looked at."""
        return {"step": self._step}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Go on from ``state_dict``."""
        self._step = state_dict["step"]


def _signals() -> set[int]:
    """Those that may ask for a checkpoint, and for nothing else."""
    others = ("SIGKILL", "SIGSTOP", "SIGTERM", "SIGINT", "SIGCHLD", "SIGSEGV", "SIGBUS", "SIGFPE", "SIGILL", "SIGABRT")
    return {int(one) for one in signal.valid_signals()} - {int(getattr(signal, name, 0)) for name in others}
