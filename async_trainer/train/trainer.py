"""Trainer: trains a model, evaluates it, and leaves behind a directory that tells how."""

from __future__ import annotations

import datetime
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Self

import pandas as pd
import torch

import async_trainer
from async_trainer.errors import ConfigurationError
from async_trainer.events import Event
from async_trainer.files.atomic import write_json
from async_trainer.files.weights import load_weights, save_weights
from async_trainer.handler import CallbacksHandler
from async_trainer.train import loop
from async_trainer.train.config import ComputationalConfig, OptimizationConfig
from async_trainer.train.maps import Maps, SplitMaps
from async_trainer.train.metric import SAMPLE
from async_trainer.train.metrics import MetricsHandler, read_tsv, save_tsv
from async_trainer.train.model import Model
from async_trainer.train.run import Run, TrainingRun, count, reset
from async_trainer.train.signals import termination
from async_trainer.train.split import Split
from async_trainer.train.state import TrainerState


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
        self._set_up(_maps(maps), model, metrics, optimization, callbacks)
        self.maps.create(self._description(), overwrite=overwrite)
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
        maps = _maps(path)
        recorded = maps.read()
        if model is None:
            raise ConfigurationError(
                f"model: weights are read back, but not the code; give from_maps(..., model=...) one like the "
                f"{recorded['model']} that was trained there"
            )
        if optimization is None:
            optimization = OptimizationConfig.from_dict(recorded["optimization"])
        trainer = cls.__new__(cls)
        trainer._set_up(maps, model, metrics, optimization, callbacks)
        missing = [name for name in recorded["metrics"] if name not in trainer.metrics.names]
        if missing and metrics is None:
            raise ConfigurationError(
                f"metrics: functions can't be read back; give from_maps(..., metrics={{...}}) these: "
                f"{', '.join(missing)} (or an empty dict, to go on without)"
            )
        trainer._initialized()
        return trainer

    def _set_up(self, maps: Maps, model: Any, metrics: Any, optimization: Any, callbacks: Any) -> None:
        if not isinstance(model, Model):
            hint = "wrap it: SupervisedModel(network, loss, optimizer)" if isinstance(model, torch.nn.Module) else ""
            raise ConfigurationError(
                f"model must be a Model, not a {type(model).__name__}" + (f"; {hint}" * bool(hint))
            )
        if optimization is not None and not isinstance(optimization, OptimizationConfig):
            raise ConfigurationError(f"optimization must be an OptimizationConfig, not {optimization!r}")
        self.maps = maps
        self.model = model
        self.optimization = optimization or OptimizationConfig()
        self.metrics = _metrics(metrics)
        self.metrics.add_losses(model.get_loss_functions())
        self.callbacks = callbacks if isinstance(callbacks, CallbacksHandler) else CallbacksHandler(callbacks or ())
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
        self.callbacks.add_callbacks(callbacks)

    def add_metrics(self, **metrics: Any) -> None:
        """Add metrics, for the runs to come. As :meth:`MetricsHandler.add_metrics`."""
        self.metrics.add_metrics(**metrics)

    # ------------------------------------------------------------------------------------------------------- training

    def train(
        self, split: Split, computational: ComputationalConfig | None = None, metrics: Iterable[str] | None = None
    ) -> pd.DataFrame:
        """Train on a split, from the model's initial weights. Afterwards the model has those of the last step.

        SIGTERM, on the main thread and where nobody else has a handler for it, ends the training after the batch, with
        ``SystemExit(143)``; a second one ends the process at once.

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
        if not isinstance(split, Split):
            raise ConfigurationError(f"split must be a Split: Split(0, train, val, batch_size=32); not {split!r}")
        computational = _computational(computational)
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
        with termination() as asked, computational.applied(), self._recorded(folder, split, computational, run_metrics):
            run = TrainingRun(
                self.model, self.maps, self.state, self.callbacks.call_event, computational, run_metrics, asked,
                optimization=self.optimization, train_loader=split.train_loader, val_loader=split.val_loader,
            )  # fmt: skip
            with self._guarded(run):
                self._prepare(run)
                run.call(
                    Event.TRAIN_START,
                    split=split,
                    optimizers=run.optimizers,
                    grad_scaler=run.grad_scaler,
                    optimization=run.optimization,
                    metrics=run.metrics,
                    callbacks=self.callbacks,
                    computational=computational,
                )
                loop.train(run)
                self._save_final(run)
                run.call(Event.TRAIN_END)
        return run_metrics.df

    def _prepare(self, run: TrainingRun) -> None:
        """The model as it was before any training, on its device, and new optimizers."""
        if self.maps.initial.is_file():
            self._load(self.maps.initial, "initial")
        else:
            save_weights(self.maps.initial, self.model.state_dict(), {})
        self._to_device(run.computational)
        self.model.train()
        run.optimizers = self.model.build_optimizers()
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
            run.call(Event.EXCEPTION, exception=error)
            self.callbacks.drain()
            raise
        self.callbacks.finish()

    @contextmanager
    def _recorded(
        self, folder: SplitMaps, split: Split, computational: ComputationalConfig, metrics: MetricsHandler
    ) -> Iterator[None]:
        """``split.json``: how the training is run, and how it ended."""
        record: dict[str, Any] = {
            "status": "running",
            "started": _now(),
            "computational": computational.to_dict(),
            "metrics": list(metrics.names),
            "batches": {"train": count(split.train_loader), "val": count(split.val_loader or ())},
        }
        write_json(folder.config, record)
        status = "finished"
        try:
            yield
        except BaseException as error:
            status = f"ended by {type(error).__name__}"
            raise
        finally:
            ended = {"status": status, "ended": _now(), "epochs": self.state.current_epoch}
            write_json(folder.config, {**record, **ended})

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
        folder = self.maps.split(split_idx)
        computational = _recorded_computational(folder)
        run_metrics = self.metrics.subset(metrics)
        if dataloader is None:
            dataloader = self._validation_data(split_idx)
        _check_loader(dataloader)
        names = folder.checkpoint_names if model_checkpoint is None else (model_checkpoint,)
        if not names:
            raise ConfigurationError(f"split {split_idx}: there is no checkpoint to validate in {folder.checkpoints}")
        paths = {name: folder.checkpoint(name) for name in names}
        rows = []
        for name, path in paths.items():
            self.state.called, self.state.split_idx = "validate", split_idx
            run = Run(self.model, self.maps, self.state, self.callbacks.call_event, computational, run_metrics)
            with computational.applied(), self._guarded(run):
                self._load(path, name)
                self._to_device(computational)
                loop.begin_validation(run, dataloader)
                run.call(
                    Event.VALIDATE_START,
                    dataloader=dataloader,
                    model_checkpoint=name,
                    metrics=run.metrics,
                    callbacks=self.callbacks,
                    computational=computational,
                )
                loop.evaluate(run, dataloader)
                _save_results(run.metrics, folder.validation(name))
                run.call(Event.VALIDATE_END, metrics=run.metrics)
            rows.append(run_metrics.df.iloc[[-1]].assign(model_checkpoint=name))
        return _first_column(pd.concat(rows, ignore_index=True), "model_checkpoint")

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
        path = self.maps.checkpoint(model_checkpoint)
        results = self.maps.test(group_name, model_checkpoint)
        computational = _computational(computational)
        run_metrics = self.metrics.subset(metrics)
        dataloader = self._groups.get(group_name) if dataloader is None else dataloader
        if dataloader is None:
            raise ConfigurationError(
                f"dataloader: this trainer has not been given the data of the group {group_name!r}; give "
                "test(..., dataloader=...)"
            )
        _check_loader(dataloader)
        self._groups[group_name] = dataloader
        self.state.called, self.state.split_idx = "test", None
        run = Run(self.model, self.maps, self.state, self.callbacks.call_event, computational, run_metrics)
        with computational.applied(), self._guarded(run):
            self._load(path, model_checkpoint)
            self._to_device(computational)
            loop.begin_test(run, dataloader)
            run.call(
                Event.TEST_START,
                dataloader=dataloader,
                model_checkpoint=model_checkpoint,
                metrics=run.metrics,
                group_name=group_name,
                callbacks=self.callbacks,
                computational=computational,
            )
            loop.evaluate(run, dataloader)
            _save_results(run.metrics, results)
            run.call(Event.TEST_END, metrics=run.metrics)
        return run_metrics.df

    def _validation_data(self, split_idx: int) -> Iterable[Any]:
        split = self._splits.get(split_idx)
        if split is None or split.val_loader is None:
            why = "has no validation data" if split is not None else "was not trained by this trainer object"
            raise ConfigurationError(f"dataloader: split {split_idx} {why}; give validate(..., dataloader=...)")
        return split.val_loader

    # -------------------------------------------------------------------------------------------------------- helpers

    def _to_device(self, computational: ComputationalConfig) -> None:
        self.model.to(computational.torch_device, memory_format=computational.memory_format)  # type: ignore[call-overload]

    def _load(self, path: os.PathLike[str], name: str) -> None:
        weights, _ = load_weights(path)  # type: ignore[arg-type]
        try:
            self.model.load_state_dict(weights)
        except (RuntimeError, TypeError) as error:
            raise ConfigurationError(f"model: the weights of {name} ({path}) are of another model: {error}") from error

    def _description(self) -> dict[str, Any]:
        cls = type(self.model)
        return {
            "async_trainer": async_trainer.__version__,
            "torch": torch.__version__,
            "created": _now(),
            "model": f"{cls.__module__}.{cls.__qualname__}",
            "metrics": list(self.metrics.names),
            "optimization": self.optimization.to_dict(),
        }


def _maps(maps: Any) -> Maps:
    if not isinstance(maps, (Maps, str, os.PathLike)):
        raise ConfigurationError(f"maps must be a directory, not {maps!r}")
    return maps if isinstance(maps, Maps) else Maps(maps)


def _metrics(metrics: Any) -> MetricsHandler:
    if metrics is None or isinstance(metrics, Mapping):
        return MetricsHandler(**(metrics or {}))
    if not isinstance(metrics, MetricsHandler):
        raise ConfigurationError(f"metrics must be a MetricsHandler, or a dict of metrics by name, not {metrics!r}")
    return metrics


def _computational(computational: Any) -> ComputationalConfig:
    if computational is None:
        return ComputationalConfig()
    if not isinstance(computational, ComputationalConfig):
        raise ConfigurationError(f"computational must be a ComputationalConfig, not {computational!r}")
    return computational


def _recorded_computational(folder: SplitMaps) -> ComputationalConfig:
    """What the split was trained with; where its device isn't there, the default one."""
    recorded = folder.read()["computational"]
    try:
        return ComputationalConfig.from_dict(recorded)
    except ConfigurationError:
        return ComputationalConfig.from_dict({**recorded, "device": None})


def _check_loader(dataloader: Any) -> None:
    if isinstance(dataloader, (str, Mapping, torch.Tensor)) or not isinstance(dataloader, Iterable):
        raise ConfigurationError(f"dataloader must give batches each time it is iterated, not {dataloader!r}")
    if isinstance(dataloader, Iterator):
        raise ConfigurationError("dataloader is an iterator, which is used up after one run; give a DataLoader")


def _save_results(metrics: MetricsHandler, folder: Any) -> None:
    """Write the last evaluation's results, beside those of other metrics that are there."""
    for name, frame in (("metrics.tsv", metrics.df.iloc[[-1]]), ("samples.tsv", metrics.detailed_df)):
        path = folder / name
        if path.is_file():
            before = read_tsv(path)
            same = len(before) == len(frame) and (SAMPLE not in frame or list(before[SAMPLE]) == list(frame[SAMPLE]))
            if same:
                kept = before.drop(columns=[column for column in before if column in frame])
                frame = pd.concat([frame.reset_index(drop=True), kept], axis=1)
        save_tsv(frame, path)


def _first_column(frame: pd.DataFrame, name: str) -> pd.DataFrame:
    return frame[[name, *(column for column in frame if column != name)]]


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
