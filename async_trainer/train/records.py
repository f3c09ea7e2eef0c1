"""What a trainer writes down about itself: its set-up, how each training was run and ended, results."""

from __future__ import annotations

import datetime
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd
import torch

import async_trainer
from async_trainer.errors import ConfigurationError, what_ended
from async_trainer.files.atomic import write_json
from async_trainer.train.config import ComputationalConfig, OptimizationConfig
from async_trainer.train.maps import SplitMaps
from async_trainer.train.metric import SAMPLE
from async_trainer.train.metrics import MetricsHandler, read_tsv, save_tsv
from async_trainer.train.model import Model
from async_trainer.train.run import count
from async_trainer.train.split import Split
from async_trainer.train.state import TrainerState

logger = logging.getLogger("async_trainer")


def describe(model: Model, metrics: MetricsHandler, optimization: OptimizationConfig) -> dict[str, Any]:
    """For ``maps.json``: how a trainer is set up."""
    cls = type(model)
    return {
        "async_trainer": async_trainer.__version__,
        "torch": torch.__version__,
        "created": _now(),
        "model": f"{cls.__module__}.{cls.__qualname__}",
        "metrics": list(metrics.names),
        "optimization": optimization.to_dict(),
    }


@contextmanager
def recorded(
    folder: SplitMaps, split: Split, computational: ComputationalConfig, metrics: MetricsHandler, state: TrainerState
) -> Iterator[Callable[[], None]]:
    """``split.json``: how the training within is run, and how it ended. Gives a function that says it is finished."""
    record: dict[str, Any] = {
        "status": "running",
        "started": _now(),
        "computational": computational.to_dict(),
        "metrics": list(metrics.names),
        "batches": {
            "train": count(split.train_loader),
            "val": 0 if split.val_loader is None else count(split.val_loader),
        },
    }

    def end(status: str = "finished") -> None:
        write_json(folder.config, {**record, "status": status, "ended": _now(), "epoch": state.current_epoch})

    try:
        write_json(folder.config, record, new=True)
    except FileExistsError:
        raise ConfigurationError(f"split {split.index} is being trained by another trainer, in {folder.path}") from None
    try:
        yield end
    except BaseException as error:
        if state.current_epoch == 0:  # it never began: the split can be trained when the mistake is corrected
            folder.config.unlink()
        else:
            _end_by(error, end)
        raise


@contextmanager
def resumed(folder: SplitMaps, state: TrainerState) -> Iterator[Callable[[], None]]:
    """``split.json`` again: that the training goes on, and how it ended. Gives a function that says it is finished."""
    record = folder.read()
    record = {**record, "status": "running", "resumed": [*record.get("resumed", []), _now()]}
    write_json(folder.config, record)

    def end(status: str = "finished") -> None:
        write_json(folder.config, {**record, "status": status, "ended": _now(), "epoch": state.current_epoch})

    try:
        yield end
    except BaseException as error:
        _end_by(error, end)
        raise


def _end_by(error: BaseException, end: Callable[[str], None]) -> None:
    """Write down what has ended a training; that this can't be written must not hide it."""
    try:
        end(f"ended by {what_ended(error)}")
    except OSError as unwritten:
        logger.error("that the training was ended by %s can't be written down: %s", what_ended(error), unwritten)


def recorded_computational(folder: SplitMaps) -> ComputationalConfig:
    """What the split was trained with; where its device isn't there, the default one."""
    config = folder.read()["computational"]
    try:
        return ComputationalConfig.from_dict(config)
    except ConfigurationError:
        return ComputationalConfig.from_dict({**config, "device": None})


def save_results(metrics: MetricsHandler, folder: Path, *, same_data: bool) -> None:
    """Write the last evaluation's results: beside those of other metrics, if they are about the same samples.

    Args:
        metrics: has evaluated.
        folder: gets ``metrics.tsv`` and ``samples.tsv``.
        same_data: whether the data is known to be that of the results that are there; else the samples' names must say
            so, and numbers from 0 say nothing.
    """
    frames = {folder / "metrics.tsv": metrics.df.iloc[[-1]], folder / "samples.tsv": metrics.detailed_df}
    if all(path.is_file() for path in frames):
        before = {path: read_tsv(path) for path in frames}
        named, samples = (list(map(str, found[folder / "samples.tsv"][SAMPLE])) for found in (before, frames))
        numbered = samples == [str(number) for number in range(len(samples))]
        if named == samples and (same_data or not numbered):
            frames = {path: _beside(before[path], frame) for path, frame in frames.items()}
    for path, frame in frames.items():
        save_tsv(frame, path)


def _beside(before: pd.DataFrame, frame: pd.DataFrame) -> pd.DataFrame:
    """``frame``, with the columns of ``before`` that it lacks."""
    kept = before.drop(columns=[column for column in before if column in frame])
    return pd.concat([frame.reset_index(drop=True), kept], axis=1)


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
