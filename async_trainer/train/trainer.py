"""Trainer: trains a model, evaluates it, and leaves behind a directory that tells how."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import pandas as pd

from async_trainer.errors import ConfigurationError, what_ended
from async_trainer.events import Event
from async_trainer.files.weights import load_weights, save_weights
from async_trainer.handler import CallbacksHandler
from async_trainer.suggest import refuse_unknown_options
from async_trainer.train import evaluations, loop
from async_trainer.train.arguments import (
    as_computational,
    as_maps,
    as_metrics,
    as_optimization,
    check_hooks,
    check_idle,
    check_initialized,
    check_model,
    check_open,
    check_optimizers,
    check_split,
)
from async_trainer.train.config import ComputationalConfig, OptimizationConfig
from async_trainer.train.lock import locked, refuse_running
from async_trainer.train.maps import Maps, SplitMaps
from async_trainer.train.metrics import MetricsHandler
from async_trainer.train.model import Model, load_whole_state, whole_state
from async_trainer.train.records import describe, recorded
from async_trainer.train.resumable import Resumable
from async_trainer.train.resume import resume
from async_trainer.train.run import Run, TrainingRun
from async_trainer.train.signals import Termination, termination
from async_trainer.train.split import Split
from async_trainer.train.state import TrainerState, reset

logger = logging.getLogger("async_trainer")


class Trainer:
    """Trains a :class:`Model`, validates and tests it, and fires the events on the way.

    ::

        trainer = Trainer("runs/digits", model, callbacks=[EarlyStopping(), background(MyPlots())])
        trainer.train(Split(0, train, val, batch_size=32))
        print(trainer.test("split-0_best-loss", "held-out", dataloader=test_loader))

    Args:
        maps: the directory for all that comes out of it (:class:`Maps`); new or empty.
        model: what is trained. Each training starts from the weights that it has when the first one starts.
        metrics: a :class:`MetricsHandler`, or metrics by name. The model's losses are metrics too.
        optimization: epochs, accumulation, clipping; default: ``OptimizationConfig()``.
        callbacks: a list, or a :class:`CallbacksHandler`; a list is inline unless wrapped in ``background(...)``.
        overwrite: delete the directory of an earlier trainer first.

    Its methods run on the thread that calls them, the training thread, one at a time. When one returns, what the
    callbacks had to do is done.

    Raises:
        ConfigurationError: an argument can't work; names it, and the remedy. Nothing is written then.
    """

    @refuse_unknown_options
    def __init__(
        self,
        maps: Maps | str | os.PathLike[str],
        model: Model,
        metrics: MetricsHandler | Mapping[str, Any] | None = None,
        optimization: OptimizationConfig | None = None,
        callbacks: CallbacksHandler | Iterable[Any] | None = None,
        overwrite: bool = False,
    ) -> None:
        if not isinstance(overwrite, bool):
            raise ConfigurationError(f"overwrite must be True or False, not {overwrite!r}")
        self._set_up(as_maps(maps), model, metrics, optimization, callbacks)
        if overwrite:
            refuse_running(self.maps)
        self.maps.create(describe(self.model, self.metrics, self.optimization), overwrite=overwrite)
        self._initialized()

    @classmethod
    def from_maps(
        cls,
        path: Maps | str | os.PathLike[str],
        *,
        model: Model | None = None,
        metrics: MetricsHandler | Mapping[str, Any] | None = None,
        optimization: OptimizationConfig | None = None,
        callbacks: CallbacksHandler | Iterable[Any] | None = None,
    ) -> Self:
        """A trainer that goes on with the directory of an earlier one.

        Args:
            path: the directory.
            model: of the same architecture; its weights are read back where they are needed.
            metrics: those that aren't losses of the model; the earlier trainer's names are in ``maps.json``.
            optimization: default: as recorded.
            callbacks: none are read back.

        Raises:
            ConfigurationError: there is no such directory, or something is missing that can't be read back.
        """
        maps = as_maps(path)
        found = maps.read()
        if model is None:
            raise ConfigurationError(
                f"model: weights are read back, but not the code; give from_maps(..., model=...) one like the "
                f"{found['model']} that was trained there"
            )
        if optimization is None:
            optimization = OptimizationConfig.from_dict(found["optimization"])
        trainer = cls.__new__(cls)
        trainer._set_up(maps, model, metrics, optimization, callbacks)
        missing = [name for name in found["metrics"] if name not in trainer.metrics.names]
        if missing and metrics is None:
            raise ConfigurationError(
                f"metrics: functions can't be read back; give from_maps(..., metrics={{...}}) these: "
                f"{', '.join(missing)} (or an empty dict, to go on without)"
            )
        trainer._initialized()
        return trainer

    def _set_up(self, maps: Maps, model: Any, metrics: Any, optimization: Any, callbacks: Any) -> None:
        check_model(model)
        self.maps = maps
        self.model = model
        self.optimization = as_optimization(optimization)
        self.metrics = as_metrics(metrics)
        self.metrics.add_losses(model.get_loss_functions())
        self.callbacks = callbacks if isinstance(callbacks, CallbacksHandler) else CallbacksHandler(callbacks or ())
        check_open(self.callbacks)
        check_hooks(self.callbacks)
        self.state = TrainerState()
        self._splits: dict[int, Split] = {}
        self._groups: dict[str, Iterable[Any]] = {}

    def _initialized(self) -> None:
        self.callbacks.call_event(
            Event.TRAINER_INIT,
            model=self.model,
            maps=self.maps,
            state=self.state,
            metrics=self.metrics,
            optimization=self.optimization,
            callbacks=self.callbacks,
        )

    def __repr__(self) -> str:
        return f"<Trainer of a {type(self.model).__name__} in {self.maps.path}, splits trained: {self.maps.splits}>"

    def add_callbacks(self, callbacks: Iterable[Any]) -> None:
        """Attach more callbacks: they get the events from now on. As :meth:`CallbacksHandler.add_callbacks`."""
        check_hooks(CallbacksHandler(callbacks := list(callbacks)))
        self.callbacks.add_callbacks(callbacks)

    def add_metrics(self, **metrics: Any) -> None:
        """Add metrics, for the runs to come. As :meth:`MetricsHandler.add_metrics`."""
        self.metrics.add_metrics(**metrics)

    # ------------------------------------------------------------------------------------------------------- training

    def train(
        self, split: Split, computational: ComputationalConfig | None = None, metrics: Iterable[str] | None = None
    ) -> pd.DataFrame:
        """Train on a split, from the model's initial weights. Afterwards the model has those of the last step.

        SIGTERM, on the main thread and where nobody else has a handler for it, ends the training after the batch, or
        the epoch, with ``SystemExit(143)``; a second one ends the process at once.

        Args:
            split: what to train and to validate on.
            computational: what to compute on; default: the accelerator if there is one, else the CPU.
            metrics: the names of the metrics to validate with; default: all.

        Returns:
            The validation metrics, a row per validated epoch; they are in the split's ``metrics.tsv`` too.

        Raises:
            ConfigurationError: an argument can't work, or a training was started on this split before; then nothing
                was touched.
            LaneError: the training is done, but a callback whose output must not be missed has failed.
            BaseException: what the model, the data or an inline callback raised; ``on_exception`` has told it.
        """
        check_split(split)
        check_open(self.callbacks)
        check_idle(self.callbacks)
        computational = as_computational(computational)
        run_metrics = self.metrics if metrics is None else self.metrics.subset(metrics)
        self.maps.read()
        folder = self.maps.split(split.index)
        if folder.exists:
            raise ConfigurationError(
                f"split {split.index} was trained before, and its results are in {folder.path}: train another "
                "Split(index, ...), or delete that folder"
            )
        self._splits[split.index] = split
        reset(self.state)
        self.state.called, self.state.split_idx = "train", split.index
        self.state.num_epochs = self.optimization.num_epochs
        run_metrics.reset(results=True)
        with (
            termination() as asked,
            computational.applied(),
            recorded(folder, split, computational, run_metrics, self.state) as finished,
            locked(folder, self.callbacks),
            self._published(folder),
        ):
            run = self._training(split, computational, run_metrics, asked)
            with self._guarded(run):
                self._prepare(run)
                self._begin(run, split, Event.TRAIN_START)
                loop.train(run)
                self._end(run, finished)
        return run_metrics.df

    def resume(self, split_idx: int, split: Split | None = None) -> pd.DataFrame:
        """Go on with a training that was interrupted, from the newest resume state that a :class:`TrainingCheckpoint`
        has left, as if nothing had happened: weights, optimizers, random generators, the order of the data, callbacks.

        Args:
            split_idx: the index of the split.
            split: its data, made as it was for :meth:`train`; default: that which this trainer was given then.

        Returns:
            As :meth:`train`.

        Raises:
            ConfigurationError: there is nothing to go on from, the training is finished or still running, or the model
                or the data is another; then nothing was touched.
            LaneError, BaseException: as for :meth:`train`.
        """
        check_open(self.callbacks)
        check_idle(self.callbacks)
        return resume(self, split_idx, split)

    @contextmanager
    def _published(self, folder: SplitMaps, *, append: bool = False) -> Iterator[None]:
        """Within it, the training tells in its folder how it is doing."""
        state = self.state

        def progress() -> dict[str, Any]:
            return {
                "split": folder.index, "stage": state.stage, "epoch": state.current_epoch, "epochs": state.num_epochs,
                "batch": state.current_train_batch, "batches": state.num_train_batches,
            }  # fmt: skip

        publisher = self.callbacks._publish(folder.path, append=append, progress=progress)
        how = "finished"
        try:
            yield
        except BaseException as error:
            how = f"ended by {what_ended(error)}"
            raise
        finally:
            self.callbacks._unpublish(publisher, how)

    def _training(
        self, split: Split, computational: ComputationalConfig, metrics: MetricsHandler, asked: Termination
    ) -> TrainingRun:
        run = TrainingRun(
            self.model, self.maps, self.state, self.callbacks.call_event, self.callbacks.fence,
            computational, metrics, asked,
            optimization=self.optimization, train_loader=split.train_loader, val_loader=split.val_loader,
        )  # fmt: skip
        run.resumable = Resumable(run, self.callbacks, self.maps.split(split.index).resume, split)
        self.callbacks.resumable = run.resumable
        return run

    def _begin(self, run: TrainingRun, split: Split, event: Event) -> None:
        run.call(
            event,
            split=split,
            optimizers=run.optimizers,
            grad_scaler=run.grad_scaler,
            optimization=run.optimization,
            metrics=run.metrics,
            callbacks=self.callbacks,
            computational=run.computational,
        )

    def _end(self, run: TrainingRun, finished: Callable[[], None]) -> None:
        self._save_final(run)
        if run.unsaved:
            run.save_metrics(at_end=True)
        finished()  # before callbacks are told: they may upload what is there
        self.callbacks.resumable = None  # and may use the trainer
        run.call(Event.TRAIN_END)

    def _prepare(self, run: TrainingRun) -> None:
        """The model as it was before any training, on its device, and new optimizers."""
        check_initialized(self.model)
        if self.maps.initial.is_file():
            self._load(self.maps.initial, "initial")
        else:
            save_weights(self.maps.initial, whole_state(self.model), {})
        self._build(run)

    def _build(self, run: TrainingRun) -> None:
        """The model on its device, and what changes it."""
        self._to_device(run.computational)
        self.model.train()
        run.optimizers = check_optimizers(self.model.build_optimizers())
        run.grad_scaler = run.computational.grad_scaler()
        run.zero_grad()

    def _save_final(self, run: TrainingRun) -> None:
        folder = self.maps.split(run.state.split_idx or 0)
        about = {"epoch": run.state.current_epoch, "optim_step": run.state.optim_step}
        save_weights(folder.checkpoints / "final.pt", self.model.state_dict(), about)

    @contextmanager
    def _guarded(self, run: Run) -> Iterator[None]:
        """Within it an error is told to the callbacks before it leaves; without one, the lanes are waited for."""
        try:
            yield
        except BaseException as error:
            self.callbacks.resumable = None
            run.call(Event.EXCEPTION, exception=error)
            self.callbacks.drain(error)
            raise
        self.callbacks.resumable = None
        self.callbacks.finish()

    # ----------------------------------------------------------------------------------------------------- evaluation

    def validate(
        self,
        split_idx: int,
        metrics: Iterable[str] | None = None,
        dataloader: Iterable[Any] | None = None,
        model_checkpoint: str | None = None,
    ) -> pd.DataFrame:
        """Compute metrics on validation data, with the weights of checkpoints; they are added to what was computed
        before, in the split's ``validation/<checkpoint>/``. Afterwards the model has the last checkpoint's weights.

        Args:
            split_idx: the split whose checkpoints are validated.
            metrics: the names of the metrics to compute; None: all.
            dataloader: gives the validation batches; default: the split's, if this trainer has trained it.
            model_checkpoint: ``"best-loss"``, ``"epoch-3"``, ``"final"``; None: each that is there.

        Returns:
            A row per checkpoint.

        Raises:
            ConfigurationError: there is no such split, checkpoint, metric or data.
            LaneError, BaseException: as for :meth:`train`.
        """
        return evaluations.validate(self, split_idx, metrics, dataloader, model_checkpoint)

    def test(
        self,
        model_checkpoint: str,
        group_name: str,
        metrics: Iterable[str] | None = None,
        dataloader: Iterable[Any] | None = None,
        computational: ComputationalConfig | None = None,
    ) -> pd.DataFrame:
        """Compute metrics on test data, with the weights of a checkpoint; they go to
        ``test/<group_name>/<model_checkpoint>/``. Afterwards the model has the checkpoint's weights.

        Args:
            model_checkpoint: ``"split-0_best-loss"``, ``"split-0_final"``.
            group_name: what the test data is called.
            metrics: the names of the metrics to compute; None: all.
            dataloader: gives the test batches; default: the group's, if this trainer was given it before.
            computational: what to compute on; default: the accelerator if there is one, else the CPU.

        Returns:
            One row.

        Raises:
            ConfigurationError: there is no such checkpoint, metric or data.
            LaneError, BaseException: as for :meth:`train`.
        """
        return evaluations.test(self, model_checkpoint, group_name, metrics, dataloader, computational)

    # -------------------------------------------------------------------------------------------------------- helpers

    def _to_device(self, computational: ComputationalConfig) -> None:
        self.model.to(computational.torch_device, memory_format=computational.memory_format)

    def _load(self, path: Path, name: str) -> None:
        weights, _ = load_weights(path)
        self.callbacks.fence()
        try:
            load_whole_state(self.model, weights)
        except (RuntimeError, TypeError) as error:
            raise ConfigurationError(f"model: the weights of {name} ({path}) are of another model: {error}") from error
