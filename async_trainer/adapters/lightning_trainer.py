"""What background hooks see of a Lightning ``Trainer``."""

from __future__ import annotations

import types
from typing import Any

from async_trainer.adapters.view import SealedViews, optimizer_views, take_view
from async_trainer.errors import StandInError
from async_trainer.snapshot import Kind, Memo, Scope, Sealed, capture

SHOWN = (
    "current_epoch", "global_step", "max_epochs", "min_epochs", "max_steps", "min_steps", "should_stop",
    "is_last_batch", "num_training_batches", "num_val_batches", "num_sanity_val_batches", "num_test_batches",
    "num_predict_batches", "state", "training", "validating", "testing", "predicting", "evaluating",
    "sanity_checking", "interrupted", "received_sigterm", "callback_metrics", "logged_metrics",
    "progress_bar_metrics", "log_every_n_steps", "check_val_every_n_epoch", "val_check_interval",
    "accumulate_grad_batches", "gradient_clip_val", "limit_train_batches", "limit_val_batches", "fast_dev_run",
    "barebones", "precision", "world_size", "num_nodes", "num_devices", "global_rank", "local_rank", "node_rank",
    "is_global_zero", "default_root_dir", "log_dir", "ckpt_path",
)  # fmt: skip
"""Attributes of the trainer, captured; besides ``optimizers`` (their param_groups without parameters), ``logger`` and
``loggers``."""

OF_LOGGERS = ("name", "version", "save_dir", "root_dir", "log_dir", "group_separator")

REMEDY = (
    "see docs/adapters-lightning.md for what is. Use the hook's pl_module for the module, "
    "select={'trainer': lambda trainer: ...} for what you choose, or leave the callback inline"
)
WRAP = "wrap it too, so that its calls have an order: Trainer(logger=lightning.background(...))"


def show_trainer(cls: type) -> None:
    """Have trainers of class ``cls`` captured as views. Any thread."""
    if cls not in capture.kinds:
        capture.knows(cls, Kind("view of the trainer", _take))


class SealedHere(Sealed):
    """A background logger: its proxy works in this process only."""

    __slots__ = ("logger",)

    def __init__(self, logger: Any) -> None:
        self.logger = logger

    def __reduce__(self) -> tuple[Any, ...]:
        return SealedElsewhere, ()

    def open(self, scope: Scope) -> Any:
        return self.logger


class SealedElsewhere(Sealed):
    """What a hook in another process gets of a logger."""

    __slots__ = ()

    def open(self, scope: Scope) -> Any:
        return Elsewhere()


class Elsewhere:
    """Raises on use."""

    def __getattr__(self, name: str) -> Any:
        raise StandInError(f"logger.{name}: a hook in a process can't reach the logger, which is in the training's")


class SealedFirst(Sealed):
    """``trainer.logger``: the first of its loggers, or None."""

    __slots__ = ("loggers",)

    def __init__(self, loggers: SealedViews) -> None:
        self.loggers = loggers

    def open(self, scope: Scope) -> Any:
        opened = self.loggers.open(scope)
        return opened[0] if opened else None


def _take(trainer: Any, memo: Memo) -> Any:
    """TRAINING THREAD."""
    known = memo.copies.get(id(trainer))
    if known is not None:
        return memo.again(known)
    loggers = SealedViews([_logger(one, memo) for one in trainer.loggers])
    optimizers = optimizer_views(getattr(trainer, "optimizers", ()), memo)
    more = {"loggers": loggers, "logger": SealedFirst(loggers), "optimizers": optimizers}
    return take_view(trainer, memo, SHOWN, REMEDY, more)


def _logger(logger: Any, memo: Memo) -> Any:
    if "_calls" in vars(logger):
        return SealedHere(logger)
    return take_view(logger, memo, OF_LOGGERS, WRAP, types.MappingProxyType({}))
