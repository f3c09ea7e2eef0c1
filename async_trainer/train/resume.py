"""Going on with a training that was interrupted: finding its bundle, checking it, loading all of it."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import pandas as pd

from async_trainer.errors import ConfigurationError
from async_trainer.events import Event
from async_trainer.handler import CallbacksHandler
from async_trainer.resume import cut, objects
from async_trainer.resume.bundles import Bundle, Bundles
from async_trainer.train import loop
from async_trainer.train.arguments import check_split
from async_trainer.train.lock import locked
from async_trainer.train.maps import SplitMaps
from async_trainer.train.records import recorded_computational, resumed
from async_trainer.train.resumable import fingerprint, has_state
from async_trainer.train.run import TrainingRun
from async_trainer.train.signals import termination
from async_trainer.train.split import Split
from async_trainer.train.state import reset

if TYPE_CHECKING:
    from async_trainer.train.trainer import Trainer

logger = logging.getLogger("async_trainer")


def resume(trainer: Trainer, split_idx: int, split: Split | None) -> pd.DataFrame:
    """:meth:`Trainer.resume`. The training thread."""
    trainer.maps.read()
    folder = trainer.maps.split(split_idx)
    folder.read()
    split = _split(trainer, split_idx, split)
    with termination() as asked, locked(folder, trainer.callbacks):
        record = folder.read()  # only now: whoever had the lock may have finished
        if record["status"] == "finished":
            raise ConfigurationError(f"split {split_idx}: its training is finished: there is nothing to resume")
        metrics = trainer.metrics.subset(record["metrics"])
        computational = recorded_computational(folder)
        bundle = _bundle(folder)
        reset(trainer.state)
        trainer.state.called, trainer.state.split_idx = "train", split_idx
        run = trainer._training(split, computational, metrics, asked)
        check_bundle(bundle, run, split)
        trainer._splits[split_idx] = split
        with (
            computational.applied(),
            resumed(folder, trainer.state) as finished,
            trainer._published(folder, append=True),
            trainer._guarded(run),
        ):
            trainer._build(run)
            objects.check_optimizers(run.optimizers, bundle.objects["objects"]["optimizers"], "optimizers")
            trainer._begin(run, split, Event.RESUME)
            go_on(bundle, run, trainer.callbacks)
            logger.info(
                "split %d goes on from epoch %d, step %d (%s)",
                split_idx, run.state.current_epoch, run.state.optim_step, bundle.path.name,
            )  # fmt: skip
            run.state.num_epochs = trainer.optimization.num_epochs
            loop.train(run)
            trainer._end(run, finished)
    return metrics.df


def _split(trainer: Trainer, split_idx: int, split: Split | None) -> Split:
    split = trainer._splits.get(split_idx) if split is None else split
    if split is None:
        raise ConfigurationError(
            f"split: the data of split {split_idx} can't be read back; give resume({split_idx}, Split(...)), made "
            "as it was for train()"
        )
    check_split(split)
    if split.index != split_idx:
        raise ConfigurationError(f"split: this is split {split.index}, and split {split_idx} is to be resumed")
    return split


def _bundle(folder: SplitMaps) -> Bundle:
    bundles = Bundles(folder.resume)
    if not bundles.paths:
        raise ConfigurationError(
            f"split {folder.index}: no resume state was taken: attach a TrainingCheckpoint() to the trainer before "
            f"train(). To train anew, delete {folder.path}"
        )
    return bundles.read()


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
    if "loader" in kept and has_state(run.train_loader):
        objects.load(run.train_loader, kept["loader"], "loader")
    for name, value in extra["state"].items():
        setattr(run.state, name, value)
    run.accumulated, run.divisor = extra["loop"]["accumulated"], extra["loop"]["divisor"]
    run.epoch_rng = extra["epoch_rng"]
    run.skip = run.state.current_train_batch if extra["loop"]["in_epoch"] else 0
    run.skip_by_state = "loader" in kept
    run.trained = extra["loop"].get("validates", False)
    cut.restore_callbacks(handler, bundle, run.loaders)
    run.cut_rng = bundle.objects["rng"]
