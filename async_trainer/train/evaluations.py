"""Validating and testing with the weights of checkpoints, once a training is over."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import pandas as pd

from async_trainer.errors import ConfigurationError
from async_trainer.events import Event
from async_trainer.train import loop
from async_trainer.train.arguments import as_computational, check_idle, check_loader, check_open
from async_trainer.train.config import ComputationalConfig, kept_random
from async_trainer.train.metrics import MetricsHandler
from async_trainer.train.records import recorded_computational, save_results
from async_trainer.train.run import Run

if TYPE_CHECKING:
    from async_trainer.train.trainer import Trainer


def validate(
    trainer: Trainer,
    split_idx: int,
    metrics: Iterable[str] | None,
    dataloader: Iterable[Any] | None,
    model_checkpoint: str | None,
) -> pd.DataFrame:
    """:meth:`Trainer.validate`. The training thread."""
    check_open(trainer.callbacks)
    check_idle(trainer.callbacks)
    folder = trainer.maps.split(split_idx)
    computational = recorded_computational(folder)
    run_metrics = trainer.metrics.subset(metrics)
    own = dataloader is None
    if dataloader is None:
        dataloader = _validation_data(trainer, split_idx)
    check_loader(dataloader)
    names = folder.checkpoint_names if model_checkpoint is None else (model_checkpoint,)
    if not names:
        raise ConfigurationError(f"split {split_idx}: there is no checkpoint to validate in {folder.checkpoints}")
    paths = {name: folder.checkpoint(name) for name in names}
    rows = []
    for name, path in paths.items():
        trainer.state.called, trainer.state.split_idx = "validate", split_idx
        run = _evaluation(trainer, computational, run_metrics)
        with kept_random(), computational.applied(), trainer._guarded(run):
            trainer._load(path, name)
            trainer._to_device(computational)
            loop.begin_validation(run, dataloader)
            run.call(
                Event.VALIDATE_START,
                dataloader=dataloader,
                model_checkpoint=name,
                metrics=run.metrics,
                callbacks=trainer.callbacks,
                computational=computational,
            )
            loop.evaluate(run, dataloader)
            save_results(run.metrics, folder.validation(name), same_data=own)
            run.call(Event.VALIDATE_END, metrics=run.metrics)
        rows.append(run_metrics.df.iloc[[-1]].assign(model_checkpoint=name))
    frame = pd.concat(rows, ignore_index=True)
    return frame[["model_checkpoint", *frame.columns.drop("model_checkpoint")]]


def test(
    trainer: Trainer,
    model_checkpoint: str,
    group_name: str,
    metrics: Iterable[str] | None,
    dataloader: Iterable[Any] | None,
    computational: ComputationalConfig | None,
) -> pd.DataFrame:
    """:meth:`Trainer.test`. The training thread."""
    check_open(trainer.callbacks)
    check_idle(trainer.callbacks)
    path = trainer.maps.checkpoint(model_checkpoint)
    results = trainer.maps.test(group_name, model_checkpoint)
    computational = as_computational(computational)
    run_metrics = trainer.metrics.subset(metrics)
    dataloader = trainer._groups.get(group_name) if dataloader is None else dataloader
    if dataloader is None:
        raise ConfigurationError(
            f"dataloader: this trainer has not been given the data of the group {group_name!r}; give "
            "test(..., dataloader=...)"
        )
    check_loader(dataloader)
    own = trainer._groups.get(group_name) is dataloader
    trainer._groups[group_name] = dataloader
    trainer.state.called, trainer.state.split_idx = "test", None
    run = _evaluation(trainer, computational, run_metrics)
    with kept_random(), computational.applied(), trainer._guarded(run):
        trainer._load(path, model_checkpoint)
        trainer._to_device(computational)
        loop.begin_test(run, dataloader)
        run.call(
            Event.TEST_START,
            dataloader=dataloader,
            model_checkpoint=model_checkpoint,
            metrics=run.metrics,
            group_name=group_name,
            callbacks=trainer.callbacks,
            computational=computational,
        )
        loop.evaluate(run, dataloader)
        save_results(run.metrics, results, same_data=own)
        run.call(Event.TEST_END, metrics=run.metrics)
    return run_metrics.df


def _evaluation(trainer: Trainer, computational: ComputationalConfig, metrics: MetricsHandler) -> Run:
    call_event, fence = trainer.callbacks.call_event, trainer.callbacks.fence
    return Run(trainer.model, trainer.maps, trainer.state, call_event, fence, computational, metrics)


def _validation_data(trainer: Trainer, split_idx: int) -> Iterable[Any]:
    split = trainer._splits.get(split_idx)
    if split is None or split.val_loader is None:
        why = "has no validation data" if split is not None else "was not trained by this trainer object"
        raise ConfigurationError(f"dataloader: split {split_idx} {why}; give validate(..., dataloader=...)")
    return split.val_loader
