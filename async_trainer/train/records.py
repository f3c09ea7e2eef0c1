"""What a trainer writes down about itself: its set-up, how each training was run and ended, results."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd
import torch

import async_trainer
from async_trainer.errors import ConfigurationError
from async_trainer.files.atomic import write_json
from async_trainer.train.config import ComputationalConfig, OptimizationConfig
from async_trainer.train.maps import SplitMaps
from async_trainer.train.metric import SAMPLE
from async_trainer.train.metrics import MetricsHandler, read_tsv, save_tsv
from async_trainer.train.model import Model
from async_trainer.train.run import count
from async_trainer.train.split import Split
from async_trainer.train.state import TrainerState


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
        "batches": {"train": count(split.train_loader), "val": count(split.val_loader or ())},
    }

    def end(status: str = "finished") -> None:
        write_json(folder.config, {**record, "status": status, "ended": _now(), "epochs": state.current_epoch})

    write_json(folder.config, record)
    try:
        yield end
    except BaseException as error:
        end(f"ended by {type(error).__name__}")
        raise


def recorded_computational(folder: SplitMaps) -> ComputationalConfig:
    """What the split was trained with; where its device isn't there, the default one."""
    config = folder.read()["computational"]
    try:
        return ComputationalConfig.from_dict(config)
    except ConfigurationError:
        return ComputationalConfig.from_dict({**config, "device": None})


def save_results(metrics: MetricsHandler, folder: Path) -> None:
    """Write the last evaluation's results, beside those of other metrics that are there."""
    for name, frame in (("metrics.tsv", metrics.df.iloc[[-1]]), ("samples.tsv", metrics.detailed_df)):
        path = folder / name
        save_tsv(_beside(read_tsv(path), frame) if path.is_file() else frame, path)


def _beside(before: pd.DataFrame, frame: pd.DataFrame) -> pd.DataFrame:
    """``frame``, with the columns of ``before`` that it lacks, where both are about the same samples."""
    if len(before) != len(frame) or (
        SAMPLE in frame and list(map(str, before[SAMPLE])) != list(map(str, frame[SAMPLE]))
    ):
        return frame
    kept = before.drop(columns=[column for column in before if column in frame])
    return pd.concat([frame.reset_index(drop=True), kept], axis=1)


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
