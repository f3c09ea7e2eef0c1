"""Progress: how far a run is, for people who watch it."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from typing import Any, TextIO

from torch import Tensor

from async_trainer.callback import Callback
from async_trainer.callbacks.status_line import StatusLine
from async_trainer.callbacks.values import last_values
from async_trainer.errors import ConfigurationError, what_ended
from async_trainer.suggest import refuse_unknown_options
from async_trainer.train.state import TrainerState

ACCELERATOR_SECONDS = 1.0
"""Between two readings of a loss that is on an accelerator: each waits for all that the device has to do before it."""

BAR_WIDTH = 24
clock = time.monotonic


class Progress(Callback):
    """Shows epochs and batches, the last loss, validation metrics, and the time that is left.

    On a terminal, one line that is drawn over and over, ten times a second at most, and above it a line for each
    epoch that is done; elsewhere only those::

        split 0, epoch 1 of 3: loss 0.6931, validation: loss 0.5121, accuracy 0.75, 12 s, 25 s left
        split 0, epoch 2 of 3  ━━━━━━━━━───────────────   37/100  loss 0.4417  20 s left

    Validate and test runs are shown too. The time that is left is reckoned for all epochs: early stopping shortens it.
    The terminal needs nothing put back, however the run ends. If the stream can't be written to any more, that is
    logged and the training goes on. Inline, on the training thread, where a batch costs some microseconds.

    Args:
        file: a text stream; default: ``sys.stderr`` as it is when a run starts.

    Raises:
        ConfigurationError: ``file`` is no text stream.
    """

    @refuse_unknown_options
    def __init__(self, *, file: TextIO | None = None) -> None:
        if file is not None and not callable(getattr(file, "write", None)):
            raise ConfigurationError(f"Progress: file must be a text stream such as sys.stdout, or None, not {file!r}")
        self.file = file
        self._line: StatusLine | None = None  # while a run goes on
        self._title = ""
        self._loss: Any = None
        self._loss_text = ""
        self._loss_read_at: float | None = None
        self._metrics = ""
        self._began = self._epoch_began = 0.0
        self._done_before: int | None = None  # batches, by the run that this one resumes

    def __repr__(self) -> str:
        return f"<Progress: {self._line or 'not running'}>"

    def _start(self, title: str = "") -> None:
        self._line = StatusLine(self.file if self.file is not None else sys.stderr)
        self._title = title
        self._loss, self._loss_text, self._loss_read_at, self._metrics = None, "", None, ""
        self._began = self._epoch_began = clock()
        self._done_before = None

    def _say(self, start: str, *parts: str) -> None:
        if self._line is not None:
            self._line.say(": ".join(part for part in (start, ", ".join(part for part in parts if part)) if part))

    def _end(self, start: str, *parts: str) -> None:
        self._say(start, *parts)
        self._line, self._loss = None, None

    # -------------------------------------------------------------------------------------------------- a training

    def on_train_start(self, **kwargs: Any) -> None:
        """Begin to show a training."""
        self._start()

    def on_resume(self, **kwargs: Any) -> None:
        """Begin to show the rest of a training."""
        self._start()

    def on_epoch_start(self, **kwargs: Any) -> None:
        """An epoch begins."""
        self._epoch_began, self._metrics = clock(), ""

    def on_backward_step_start(self, *, loss: Any = None, **kwargs: Any) -> None:
        """Remember the loss; it is read when it is shown."""
        losses = loss if isinstance(loss, Mapping) else {"": loss}
        # Detached, else the autograd graph would be held.
        self._loss = {name: one.detach() if isinstance(one, Tensor) else one for name, one in losses.items()}

    def on_batch_end(self, *, state: TrainerState, **kwargs: Any) -> None:
        """Draw the line anew, if the last time is long enough ago."""
        if self._done_before is None and state.stage != "evaluation":
            self._done_before = _batches_done(state) - 1
        if self._line is not None and self._line.is_due:
            self._line.draw(self._text(state, self._line.is_unicode))

    def on_validation_end(self, *, metrics: Any = None, **kwargs: Any) -> None:
        """Read the metrics of a validation."""
        self._metrics = _texts(metrics)

    def on_epoch_end(self, *, state: TrainerState, **kwargs: Any) -> None:
        """Write the line of an epoch."""
        validation = f"validation: {self._metrics}" if self._metrics else ""
        spent = _duration(clock() - self._epoch_began)
        self._say(_epoch(state), self._read_loss(at_once=True), validation, spent, self._left(state))

    def on_train_end(self, *, state: TrainerState | None = None, callbacks: Any = None, **kwargs: Any) -> None:
        """Write a last line; of a training that was stopped early, with the callback's ``stop_reason``."""
        epochs = f"{state.current_epoch} epoch{'s' if state.current_epoch != 1 else ''}" if state is not None else ""
        stopped = state is not None and state.should_stop and state.current_epoch < state.num_epochs
        self._end("trained", epochs, _duration(clock() - self._began), _stopped(callbacks) if stopped else "")

    # ------------------------------------------------------------------------------------------- validate and test

    def on_validate_start(self, *, model_checkpoint: Any = "", **kwargs: Any) -> None:
        """Begin to show the validation of a checkpoint."""
        self._start(f"validate {model_checkpoint}".strip())

    def on_test_start(self, *, model_checkpoint: Any = "", group_name: Any = "", **kwargs: Any) -> None:
        """Begin to show a test."""
        self._start(" ".join(str(part) for part in ("test", group_name, model_checkpoint) if part))

    def on_validate_end(self, *, metrics: Any = None, **kwargs: Any) -> None:
        """Write its metrics."""
        self._end(self._title, _texts(metrics), _duration(clock() - self._began))

    def on_test_end(self, *, metrics: Any = None, **kwargs: Any) -> None:
        """Write its metrics."""
        self._end(self._title, _texts(metrics), _duration(clock() - self._began))

    def on_exception(self, *, state: TrainerState | None = None, exception: Any = None, **kwargs: Any) -> None:
        """Write where the run was interrupted, on a line of its own."""
        where = self._title
        if not where and state is not None:
            where = f"{_epoch(state)}, batch {state.current_train_batch}"
        self._end(where, f"interrupted by {what_ended(exception)}" if exception is not None else "interrupted")

    # ---------------------------------------------------------------------------------------------------- the text

    def _text(self, state: TrainerState, is_unicode: bool) -> str:
        number, total = _place(state)
        bar = f"{_bar(number, total, is_unicode)}  " if total else ""
        count = f"{number:>{len(str(total))}}/{total}" if total else f"batch {number}"
        if self._title:
            parts = [self._title, bar + count]
        elif state.stage == "evaluation":
            parts = [_epoch(state), bar + count, "validation"]
        else:
            parts = [_epoch(state), bar + count, self._read_loss(at_once=False), self._left(state)]
        return "  ".join(part for part in parts if part)

    def _read_loss(self, *, at_once: bool) -> str:
        losses: Mapping[str, Any] = self._loss or {}
        if any(isinstance(loss, Tensor) and loss.device.type != "cpu" for loss in losses.values()):
            now = clock()
            if not at_once and self._loss_read_at is not None and now - self._loss_read_at < ACCELERATOR_SECONDS:
                return self._loss_text
            self._loss_read_at = now
        texts = (f"loss {name} {_number(loss)}" if name else f"loss {_number(loss)}" for name, loss in losses.items())
        self._loss_text = ", ".join(texts)
        return self._loss_text

    def _left(self, state: TrainerState) -> str:
        """The time that the training still takes, if the batches to come are as slow as those before."""
        total, done = state.num_epochs * state.num_train_batches, _batches_done(state)
        if self._done_before is None or not self._done_before < done < total:
            return ""
        pace = (clock() - self._began) / (done - self._done_before)
        return f"{_duration(pace * (total - done))} left"


def _number(value: Any) -> str:
    number = value.item() if isinstance(value, Tensor) and value.numel() == 1 else value
    return f"{number:.4g}" if isinstance(number, (int, float)) else "?"


def _texts(metrics: Any) -> str:
    return ", ".join(f"{name} {_number(value)}" for name, value in last_values(metrics).items())


def _stopped(callbacks: Any) -> str:
    attached = (one.callback for one in getattr(callbacks, "attached", ()))
    reasons = [reason for one in attached if (reason := getattr(one, "stop_reason", None))]
    return f"stopped early: {'; '.join(reasons)}" if reasons else "stopped early"


def _epoch(state: TrainerState) -> str:
    split = f"split {state.split_idx}, " if state.split_idx is not None else ""
    return f"{split}epoch {state.current_epoch}" + (f" of {state.num_epochs}" if state.num_epochs else "")


def _batches_done(state: TrainerState) -> int:
    return (state.current_epoch - 1) * state.num_train_batches + state.current_train_batch


def _place(state: TrainerState) -> tuple[int, int]:
    """The number of the batch, and of how many; 0: nobody knows."""
    if state.stage != "evaluation":
        return state.current_train_batch, state.num_train_batches
    if state.called == "test":
        return state.current_test_batch, state.num_test_batches
    return state.current_val_batch, state.num_val_batches


def _bar(number: int, total: int, is_unicode: bool) -> str:
    full, rest = ("━", "─") if is_unicode else ("#", "-")
    filled = min(BAR_WIDTH, BAR_WIDTH * number // total)
    return full * filled + rest * (BAR_WIDTH - filled)


def _duration(seconds: float) -> str:
    """``0.3 s``, ``42 s``, ``3:05 min``, ``2:03:05 h``."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    if hours:
        return f"{hours}:{minute:02}:{second:02} h"
    return f"{minute}:{second:02} min" if minute else f"{second} s"
