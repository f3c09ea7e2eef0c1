"""Resuming a training: what is kept of it, the lock of its folder, and going on from a bundle."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from async_trainer.errors import ConfigurationError
from async_trainer.handler import CallbacksHandler
from async_trainer.resume import cut, objects
from async_trainer.resume.bundles import Bundle
from async_trainer.train.maps import SplitMaps
from async_trainer.train.run import TrainingRun, count
from async_trainer.train.split import Split

if TYPE_CHECKING:
    from async_trainer.resume.checkpoint import Checkpoint

logger = logging.getLogger("async_trainer")

LOCK_PATIENCE = 60.0  # s: for another process that still has the folder: a killed run's children, say
LOOK = 0.05  # s


class Asked(Protocol):
    """A ``TrainingCheckpoint``."""

    keep: int
    deadline: float
    wait: bool


class Resumable:
    """A training under way, for ``TrainingCheckpoint``: takes its checkpoints. The training thread."""

    def __init__(self, run: TrainingRun, handler: CallbacksHandler, folder: Path, split: Split) -> None:
        self._run = run
        self._handler = handler
        self._folder = folder
        self._split = split

    def checkpoint(self, asked: Asked, *, wait: bool | None = None) -> Checkpoint:
        """Take one: within an inline hook, after the event."""
        return cut.take(
            self._handler, self._folder, self.content, keep=asked.keep, deadline=asked.deadline,
            wait=asked.wait if wait is None else wait, loaders=self._run.loaders,
        )  # fmt: skip

    def at_termination(self) -> None:
        """SIGTERM: take one, and wait for it, if they are taken at all."""
        for one in self._handler.attached:
            if getattr(type(one.callback), "takes_checkpoints", False):
                self._handler._settle_checkpoint(one.callback.deadline)
                self.checkpoint(one.callback, wait=True)
                return

    def content(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """Objects with states, and plain values, as they are now."""
        run = self._run
        kept: dict[str, Any] = {
            "model": run.model, "optimizers": run.optimizers, "grad_scaler": run.grad_scaler, "metrics": run.metrics,
        }  # fmt: skip
        if _has_state(run.train_loader):
            kept["loader"] = run.train_loader
        extra = {
            "state": dict(vars(run.state)),
            "loop": {"accumulated": run.accumulated, "divisor": run.divisor, "in_epoch": run.in_epoch},
            "epoch_rng": run.epoch_rng,
            "split": fingerprint(self._split),
        }
        return kept, extra


def fingerprint(split: Split) -> dict[str, Any]:
    """What tells one split from another, as far as it is known."""
    val = split.val_loader
    return {
        "train": _lengths(split.train_loader),
        "val": None if val is None else _lengths(val),
    }


def _lengths(loader: Any) -> list[int]:
    try:
        samples = len(loader.dataset)
    except (AttributeError, TypeError):
        samples = 0
    return [count(loader), samples]


def _has_state(loader: Any) -> bool:
    return callable(getattr(loader, "state_dict", None)) and callable(getattr(loader, "load_state_dict", None))


def check_bundle(bundle: Bundle, run: TrainingRun, split: Split) -> None:
    """Refuse what is of another training, before anything is touched.

    Raises:
        ConfigurationError: names what differs.
    """
    kept = bundle.objects["objects"]
    there, here = kept["model"]["state"], objects.plain_names(run.model.state_dict())
    for name in [*there, *here]:
        if name not in there or name not in here or _shape(there[name]) != _shape(here[name]):
            raise ConfigurationError(
                f"model: the one that was trained is another: {name} is {_described(there, name)} in {bundle.path}, "
                f"and {_described(here, name)} in the model that was given"
            )
    was, now = bundle.objects["extra"]["split"], fingerprint(split)
    if was != now:
        raise ConfigurationError(
            f"split: the training was of other data: its (batches, samples) were {was['train']}, and {was['val']} for "
            f"validation; now they are {now['train']} and {now['val']}"
        )


def _shape(value: Any) -> Any:
    return tuple(getattr(value, "shape", ()))


def _described(state: Mapping[str, Any], name: str) -> str:
    return f"of shape {_shape(state[name])}" if name in state else "missing"


def go_on(bundle: Bundle, run: TrainingRun, handler: CallbacksHandler) -> None:
    """Load all of ``bundle``: objects, state, then callbacks, and the generators last. The training thread."""
    kept, extra = bundle.objects["objects"], bundle.objects["extra"]
    handler.fence()
    for name in ("model", "optimizers", "grad_scaler", "metrics"):
        objects.load(getattr(run, name), kept[name], name)
    if "loader" in kept and _has_state(run.train_loader):
        objects.load(run.train_loader, kept["loader"], "loader")
    for name, value in extra["state"].items():
        setattr(run.state, name, value)
    run.accumulated, run.divisor = extra["loop"]["accumulated"], extra["loop"]["divisor"]
    run.epoch_rng = extra["epoch_rng"]
    run.skip = run.state.current_train_batch if extra["loop"]["in_epoch"] else 0
    run.skip_by_state = "loader" in kept
    cut.restore_callbacks(handler, bundle, run.loaders)
    run.cut_rng = bundle.objects["rng"]


@contextmanager
def locked(folder: SplitMaps, handler: CallbacksHandler) -> Iterator[None]:
    """Hold ``run.lock`` of a split: one run at a time, and none before the children of a killed one have ended.

    The children of ``handler`` hold it, too.

    Raises:
        ConfigurationError: another process holds it for longer than a killed run's children could.
    """
    import fcntl

    folder.path.mkdir(parents=True, exist_ok=True)
    path = folder.path / "run.lock"
    until, told = time.monotonic() + LOCK_PATIENCE, False
    while (lock := _lock(path)) is None:
        if time.monotonic() > until:
            raise ConfigurationError(
                f"split {folder.index} is in use: a process that trains it, or is left of one that did, holds {path}"
            )
        if not told:
            told = True
            logger.warning("waiting for a process that still has %s", folder.path)
        time.sleep(LOOK)
    try:
        handler._hold_in_children(lock)
        yield
    finally:
        handler._hold_in_children(None)
        path.unlink(missing_ok=True)
        fcntl.flock(lock, fcntl.LOCK_UN)  # for the copies that children have, too
        os.close(lock)


def _lock(path: Path) -> int | None:
    """A descriptor of ``path``, locked; None: another process has it."""
    import fcntl

    lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.fstat(lock).st_ino == os.stat(path).st_ino:  # else who had it has removed it meanwhile
            return lock
    except (BlockingIOError, FileNotFoundError):
        pass
    os.close(lock)
    return None
