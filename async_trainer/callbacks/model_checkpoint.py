"""ModelCheckpoint: the weights of the best epoch, of chosen epochs, and of the last one."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Collection, Iterable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from torch import nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

from async_trainer.callback import Callback
from async_trainer.callbacks.run_folder import given_folder, split_folder
from async_trainer.callbacks.values import check_metric, metric_value
from async_trainer.errors import ConfigurationError
from async_trainer.files.weights import SUFFIXES, save_weights
from async_trainer.suggest import refuse_unknown_options, suggestion
from async_trainer.train.state import TrainerState

FORMATS = tuple(suffix[1:] for suffix in SUFFIXES)
_MODES = ("min", "max")


class ModelCheckpoint(Callback):
    """Writes the model's weights: ``best-<metric>``, ``epoch-<n>`` and ``last``, each as a whole or not at all.

    ::

        ModelCheckpoint("loss")                                   # the best epoch so far
        ModelCheckpoint("accuracy", mode="max", last=True)
        ModelCheckpoint(epochs=range(0, 1000, 10))                # epoch-10, epoch-20, ...

    In the background the model is captured only where it is going to be written: whether an epoch is the best is judged
    on the training thread too, and costs microseconds where it isn't. A file that could not be written does not count:
    the next epoch better than what is there is written. After a resume it goes on from the best of its state.

    ``async_trainer.files.weights.load_weights`` reads a file; beside the weights it holds the epoch, the optimization
    step and the metrics of the epoch.

    Args:
        metric: written whenever this metric is better than ever before, at the end of a validation. NaN is never
            better.
        mode: whether lower (``"min"``) or higher (``"max"``) is better.
        epochs: the epochs to keep, each in a file of its own; counted from 1.
        last: write ``last`` at the end of each epoch, over the one before. It costs a capture of the model per epoch.
        format: ``"pt"`` or ``"safetensors"``.
        folder: where to; made if need be, and the same for all splits. Default: the split's folder of checkpoints in
            the ``maps`` of the run.

    Raises:
        ConfigurationError: an argument that can't work; nothing is asked for. At the start of a training: there is no
            such metric; no folder is given, and the run has no maps.
    """

    @refuse_unknown_options
    def __init__(
        self,
        metric: str | None = None,
        *,
        mode: str = "min",
        epochs: Iterable[int] | None = None,
        last: bool = False,
        format: str = "pt",  # noqa: A002  # it is what it is
        folder: str | os.PathLike[str] | None = None,
    ) -> None:
        self.metric = _check_metric_name(metric)
        self.mode = _check_choice("mode", mode, _MODES)
        self.epochs = _check_epochs(epochs)
        if not isinstance(last, bool):
            raise ConfigurationError(f"ModelCheckpoint: last must be True or False, not {last!r}")
        self.last = last
        self.format = _check_choice("format", format, FORMATS)
        if format == "safetensors" and find_spec("safetensors") is None:
            raise ConfigurationError(
                "ModelCheckpoint: format='safetensors' needs safetensors: pip install 'async_trainer[safetensors]'"
            )
        self.folder = given_folder(self, folder)
        if metric is None and epochs is None and not last:
            raise ConfigurationError(
                "ModelCheckpoint() would write nothing: name a metric ('loss'), or give epochs=[...] or last=True"
            )
        self._best: tuple[float, int] | None = None  # of what is on disk: its value and epoch; replaced as a whole
        self._starts_seen = 0  # by the training thread
        self._starts_handled = 0

    def __repr__(self) -> str:
        asked = [repr(self.metric), f"mode={self.mode!r}"] if self.metric is not None else []
        asked += [f"epochs={self.epochs!r}"] if self.epochs else []
        asked += ["last=True"] if self.last else []
        return f"ModelCheckpoint({', '.join(asked)}, format={self.format!r})"

    @property
    def background(self) -> Mapping[str, Any]:  # type: ignore[override]  # each instance has its own ``when``
        """In the background by default; what can't be written is raised at the end."""
        starts = {"on_train_start": self._starts, "on_resume": self._starts}
        wants = {"on_validation_end": self._may_be_best, "on_epoch_end": self._is_due}
        return {"on_error": "raise_at_end", "when": {**starts, **wants}}

    # ----------------------------------------------------------------- the training thread, if run in the background

    def check_training(self, **arguments: Any) -> list[Path]:
        """Refuse a training without that metric, or without a place to write to."""
        folder = self._folder(arguments.get("maps"), arguments.get("state"))
        if self.metric is None:
            return []
        check_metric(arguments, self.metric, "ModelCheckpoint: metric")
        return [folder / f"best-{_file_name(self.metric)}.{self.format}"]

    def _starts(self, **live: Any) -> bool:
        self._starts_seen += 1
        return True

    def _may_be_best(self, *, state: TrainerState, metrics: Any = None, **live: Any) -> bool:
        """Whether the model must be captured: the hook judges again, in order. The lane replaces ``_best``, so where
        the lane lags behind the answer may be yes once too often, and never no."""
        if self.metric is None:
            return False
        if self._starts_seen != self._starts_handled:  # what is known as best may be another training's
            return True
        return self._is_better(self._value(metrics))

    def _is_due(self, *, state: TrainerState, **live: Any) -> bool:
        return self.last or state.current_epoch in self.epochs

    # ------------------------------------------------------------------------------------------------------ the hooks

    def on_train_start(self, **kwargs: Any) -> None:
        self._best = None
        self._start()

    def on_resume(self, **kwargs: Any) -> None:
        self._start()  # its state may have been loaded already

    def _start(self) -> None:
        self._starts_handled += 1
        if self._starts_handled > self._starts_seen:  # inline nobody else counts them
            self._starts_seen = self._starts_handled

    def on_validation_end(
        self, *, model: nn.Module, maps: Any = None, state: TrainerState, metrics: Any = None
    ) -> None:
        if self.metric is None:
            return
        value = self._value(metrics)
        if self._is_better(value):
            values = _values(metrics, state.current_epoch, validated=True)
            self._save(f"best-{_file_name(self.metric)}", model, maps, state, values)
            self._best = (value, state.current_epoch)

    def on_epoch_end(self, *, model: nn.Module, maps: Any = None, state: TrainerState, metrics: Any = None) -> None:
        if not self._is_due(state=state):
            return
        values = _values(metrics, state.current_epoch, validated=False)
        if state.current_epoch in self.epochs:
            self._save(f"epoch-{state.current_epoch}", model, maps, state, values)
        if self.last:
            self._save("last", model, maps, state, values)

    def _save(self, name: str, model: nn.Module, maps: Any, state: TrainerState, metrics: Mapping[str, float]) -> None:
        about = {"epoch": state.current_epoch, "optim_step": state.optim_step, "metrics": dict(metrics)}
        save_weights(self._folder(maps, state) / f"{name}.{self.format}", unwrapped(model).state_dict(), about)

    def _folder(self, maps: Any, state: TrainerState | None) -> Path:
        if self.folder is not None:
            return self.folder
        folder: Path = split_folder(self, maps, state).checkpoints
        return folder

    def _value(self, metrics: Any) -> float:
        if metrics is None:
            raise ConfigurationError(
                f"ModelCheckpoint: metric={self.metric!r}: on_validation_end comes without metrics: give it metrics=..."
            )
        return metric_value(metrics, str(self.metric), "ModelCheckpoint: metric")

    def _is_better(self, value: float) -> bool:
        best = self._best
        if math.isnan(value):
            return False
        return best is None or (value < best[0] if self.mode == "min" else value > best[0])

    def state_dict(self) -> dict[str, Any]:
        """``best`` and ``best_epoch``: of what is on disk."""
        best = self._best
        return {} if best is None else {"best": best[0], "best_epoch": best[1]}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Go on from that best."""
        self._best = (state_dict["best"], state_dict["best_epoch"]) if "best" in state_dict else None


def unwrapped(model: nn.Module) -> nn.Module:
    """The module itself, as a background hook gets it: without DataParallel or compile around it."""
    while True:
        if isinstance(model, (DataParallel, DistributedDataParallel)):
            model = model.module
        elif isinstance(original := getattr(model, "_orig_mod", None), nn.Module):
            model = original
        else:
            return model


def _values(metrics: Any, epoch: int, *, validated: bool) -> dict[str, float]:
    """The metrics of this epoch, as far as they can be told. A plain loop's mapping may be of an epoch before."""
    if metrics is None or (isinstance(metrics, Mapping) and not validated):
        return {}
    if isinstance(metrics, Mapping):
        return {str(name): float(value) for name, value in metrics.items()}
    frame = metrics.df
    if "epoch" in frame:
        frame = frame[frame["epoch"] == epoch]
    return {str(name): float(frame[name].iloc[-1]) for name in frame if name != "epoch" and len(frame)}


def _file_name(metric: str) -> str:
    return re.sub(r"[^A-Za-z0-9_.@=+-]", "-", metric)


def _check_metric_name(metric: Any) -> str | None:
    if metric is not None and not (isinstance(metric, str) and metric):
        raise ConfigurationError(f"ModelCheckpoint: metric must be a metric's name, such as 'loss', not {metric!r}")
    return metric


def _check_choice(option: str, value: Any, choices: Collection[str]) -> str:
    if not isinstance(value, str) or value not in choices:
        hint = suggestion(value, choices) if isinstance(value, str) else ""
        wanted = " or ".join(map(repr, choices))
        raise ConfigurationError(f"ModelCheckpoint: {option} must be {wanted}, not {value!r}{hint}")
    return value


def _check_epochs(epochs: Any) -> Collection[int]:
    wanted = "ModelCheckpoint: epochs must be whole numbers, 1 or more, such as [10, 20] or range(10, 100, 10)"
    if epochs is None:
        return frozenset()
    if isinstance(epochs, (str, Mapping)) or not isinstance(epochs, Iterable):
        raise ConfigurationError(f"{wanted}, not {epochs!r}")
    chosen: Collection[int] = epochs if isinstance(epochs, range) else frozenset(epochs)
    if not isinstance(chosen, range) and not all(type(one) is int and one >= 1 for one in chosen):
        raise ConfigurationError(f"{wanted}, not {sorted(chosen, key=str)!r}")
    if not any(one >= 1 for one in chosen):
        raise ConfigurationError(f"{wanted}; there is none in {epochs!r}")
    return chosen
