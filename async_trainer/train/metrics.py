"""MetricsHandler: the metrics of an evaluation, sample by sample and as a whole."""

from __future__ import annotations

import copy
import io
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pandas as pd
import torch

from async_trainer.errors import ConfigurationError, StandInError
from async_trainer.files.atomic import atomic_write
from async_trainer.snapshot import Scope, Sealed, capture
from async_trainer.suggest import suggestion
from async_trainer.train.metric import SAMPLE as SAMPLE
from async_trainer.train.metric import Function, Metric, Stateful, is_stateful, per_sample_loss, wide

EPOCH = "epoch"
_RESERVED = (EPOCH, SAMPLE)


class MetricsHandler:
    """The metrics of an evaluation: of each sample, and over all of them.

    ::

        def accuracy(preds, target):                      # names what it needs of the evaluation step's output
            return preds.argmax(1) == target              # a value per sample: their mean is the metric

        metrics = MetricsHandler(accuracy=accuracy, f1=torchmetrics.F1Score("multiclass", num_classes=10))

    Args:
        **metrics: by name. A function of what the evaluation step returned, by its parameters' names, with a value per
            sample, shape (n,) or (n, ...), or one value for the batch; over an evaluation they are averaged, each
            sample alike (torch's losses are such functions: their ``input`` is ``preds``). Or what has ``update``,
            ``compute`` and ``reset`` (a ``torchmetrics.Metric`` or ``MetricCollection``): it has no value per sample,
            and if it computes several, each has a column: ``f1_0``, ``f1_1``.

    In the background it comes as a read-only view, as of the event.

    Raises:
        ConfigurationError: a metric that is neither, or has a name that the frames use otherwise.
    """

    def __init__(self, /, **metrics: Any) -> None:
        self._metrics: dict[str, Metric] = {}
        self._rows: list[dict[str, Any]] = []
        self._details: list[dict[str, Any]] = []
        self._seen = 0
        self.add_metrics(**metrics)

    def __repr__(self) -> str:
        return f"<{type(self).__name__}: {', '.join(self.names) or 'no metrics'}; {len(self._rows)} evaluations>"

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the metrics."""
        return tuple(self._metrics)

    @property
    def df(self) -> pd.DataFrame:
        """A row per evaluation, with a column per metric; in a training the first column is ``epoch``."""
        return pd.DataFrame(self._rows) if self._rows else pd.DataFrame(columns=list(self.names))

    @property
    def last(self) -> dict[str, Any]:
        """The values of the last evaluation, by metric; empty before the first."""
        return {name: value for name, value in self._rows[-1].items() if name != EPOCH} if self._rows else {}

    @property
    def detailed_df(self) -> pd.DataFrame:
        """A row per sample of the last evaluation, or of the one under way."""
        frames = [pd.DataFrame(columns) for columns in self._details]
        return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame(columns=[SAMPLE, *self.names])

    def add_metrics(self, /, **metrics: Any) -> None:
        """Add metrics; as for the constructor. All, or none if one is refused.

        Raises:
            ConfigurationError: as for the constructor; or there is one of that name.
        """
        for name in metrics:
            if name in self._metrics:
                raise ConfigurationError(f"metrics: there is a metric {name!r} already")
            if name in _RESERVED:
                raise ConfigurationError(f"metrics: {name!r} is a column of the frames already; give another name")
        self._metrics = {**self._metrics, **{name: _metric(name, metric) for name, metric in metrics.items()}}

    def add_losses(self, losses: Mapping[str, Callable[..., Any]]) -> None:
        """Add the loss functions of a model, but those whose name a metric has: functions of ``preds`` and ``target``,
        per sample where they have a ``reduction`` to switch off."""
        self.add_metrics(**{name: per_sample_loss(loss) for name, loss in losses.items() if name not in self._metrics})

    def subset(self, metrics: Iterable[str] | None = None) -> MetricsHandler:
        """A handler of its own for the metrics of these names (None: all), with no results yet.

        Raises:
            ConfigurationError: there is no such metric.
        """
        if isinstance(metrics, str):
            raise ConfigurationError(f"metrics must be a list of names: [{metrics!r}]")
        names = self.names if metrics is None else tuple(metrics)
        for name in names:
            self._check(name)
        made = MetricsHandler()
        made._metrics = {name: self._metrics[name].fresh() for name in names}
        return made

    def reset(self, *, results: bool = False) -> None:
        """Forget the samples seen so far; with ``results``, all earlier evaluations too."""
        for metric in self._metrics.values():
            metric.reset()
        self._details = []  # a new list: views hold the old one
        self._seen = 0
        if results:
            self._rows = []

    def __call__(self, output: Mapping[str, Any], *, epoch: int | None = None) -> pd.DataFrame:
        """Count a batch in. The training thread.

        Args:
            output: what the evaluation step returned.
            epoch: of the training, if it is one.

        Returns:
            A row per sample: ``epoch`` if given, ``sample`` (what the output says, else numbered from 0), and the
            metrics that have a value per sample. One transfer from the device brings them all.

        Raises:
            ConfigurationError: the output is no mapping, or lacks what a metric names, or a metric returned values
                whose number is not the batch's.
        """
        size = _batch_size(output)
        columns: dict[str, Any] = {} if epoch is None else {EPOCH: np.full(size, epoch)}
        columns[SAMPLE] = _samples(output, self._seen, size)
        values = {name: metric.update(output, size) for name, metric in self._metrics.items()}
        columns |= _to_host({name: value for name, value in values.items() if value is not None})
        for name in values.keys() & columns.keys():
            self._metrics[name].count(columns[name])
        self._seen += size
        self._details.append(columns)
        return pd.DataFrame(columns)

    def aggregate(self, *, epoch: int | None = None) -> dict[str, float]:
        """The metrics over all samples since the last :meth:`reset`; they become a row of :attr:`df`."""
        row: dict[str, Any] = {}
        for metric in self._metrics.values():
            row |= metric.compute()
        self._rows = [*self._rows, {**row} if epoch is None else {EPOCH: epoch, **row}]
        return row

    def get_metric_value(self, metric: str, epoch: int | None = None) -> float:
        """The value of a metric over an evaluation.

        Args:
            metric: its name; a column of :attr:`df`.
            epoch: the epoch of the evaluation; None: the last one.

        Raises:
            ConfigurationError: there is no such metric, or no such evaluation.
        """
        rows = [row for row in self._rows if epoch is None or row.get(EPOCH) == epoch]
        if not rows:
            self._check(metric)
            when = "yet" if epoch is None else f"in epoch {epoch}"
            raise ConfigurationError(f"metric {metric!r}: there was no evaluation {when}")
        if metric not in rows[-1] or metric == EPOCH:
            self._refuse(metric, [name for name in rows[-1] if name != EPOCH])
        return float(rows[-1][metric])

    def save(self, path: Path, details_path: Path | None = None) -> None:
        """Write :attr:`df`, and :attr:`detailed_df`, as tab-separated values; each as a whole or not at all."""
        for frame, file in ((self.df, path), (self.detailed_df, details_path)):
            if file is not None:
                save_tsv(frame, file)

    def load(self, path: Path) -> None:
        """Go on with the rows that :meth:`save` wrote.

        Raises:
            ConfigurationError: the file lacks a metric.
        """
        frame = read_tsv(path)
        for name in self.names:
            if name not in frame and not any(str(column).startswith(f"{name}_") for column in frame):
                raise ConfigurationError(f"{path} has no column {name!r}: other metrics were computed there")
        self.reset(results=True)
        self._rows = frame.to_dict("records")  # type: ignore[assignment]

    def state_dict(self) -> dict[str, Any]:
        """The evaluations so far."""
        return {"rows": [{name: _plain(value) for name, value in row.items()} for row in self._rows]}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Go on with the evaluations of ``state_dict``."""
        self.reset(results=True)
        self._rows = [dict(row) for row in state_dict["rows"]]

    def _check(self, name: str) -> None:
        if name not in self._metrics:
            self._refuse(name, self.names)

    def _refuse(self, name: str, known: Sequence[str]) -> NoReturn:
        raise ConfigurationError(
            f"there is no metric {name!r}{suggestion(str(name), known)}; there are: {', '.join(known) or 'none'}"
        )


def save_tsv(frame: pd.DataFrame, path: Path) -> None:
    """Write ``frame`` as tab-separated values; all digits of a float are there."""
    text = io.StringIO()
    frame.to_csv(text, sep="\t", index=False, na_rep="nan")
    with atomic_write(path) as file:
        file.write(text.getvalue().encode())


def read_tsv(path: Path) -> pd.DataFrame:
    """What :func:`save_tsv` wrote. Samples that are no whole numbers are strings: ``"007"`` stays what it is."""
    try:
        frame = pd.read_csv(path, sep="\t", dtype=str, keep_default_na=False, na_filter=False)
    except pd.errors.EmptyDataError:  # of no metrics
        return pd.DataFrame()
    # Parsed here: pandas 2 rounds floats, unless told by an option that pandas 3 deprecates, and reads "007" as 7.
    return pd.DataFrame({name: _parsed(texts.tolist(), numbers=name != SAMPLE) for name, texts in frame.items()})


def _parsed(texts: list[str], *, numbers: bool) -> list[Any]:
    if all(map(_is_number, texts)):
        return [int(text) for text in texts]
    try:
        return [float(text) for text in texts] if numbers else texts
    except ValueError:
        return texts


def _is_number(text: str) -> bool:
    return re.fullmatch(r"0|-?[1-9][0-9]{0,17}", text) is not None


def _plain(value: Any) -> int | float:
    return int(value) if isinstance(value, (int, np.integer)) else float(value)


def _metric(name: str, metric: Any) -> Metric:
    if is_stateful(metric):
        return Stateful(name, copy.deepcopy(metric))
    if callable(metric) and not isinstance(metric, type):
        return Function(name, metric)
    hint = f"; an instance of it: {metric.__name__}(...)" if isinstance(metric, type) else ""
    raise ConfigurationError(
        f"metrics: {name} must be a function of the evaluation step's output, or have update, compute and reset as "
        f"torchmetrics have, not {metric!r}{hint}"
    )


def _batch_size(output: Any) -> int:
    if not isinstance(output, Mapping):
        raise ConfigurationError(
            f"evaluation_step must return a mapping of names to tensors, such as {{'preds': ..., 'target': ...}}; it "
            f"returned a {type(output).__name__}"
        )
    for value in output.values():
        shape = getattr(value, "shape", None)
        if shape:
            return int(shape[0])
        if isinstance(value, (list, tuple)):
            return len(value)
    raise ConfigurationError("evaluation_step returned nothing that has a batch dimension")


def _samples(output: Mapping[str, Any], seen: int, size: int) -> Any:
    named = output.get(SAMPLE)
    if named is None:
        return np.arange(seen, seen + size)
    names = named.tolist() if isinstance(named, (torch.Tensor, np.ndarray)) else named
    if isinstance(names, str) or not isinstance(names, Iterable):
        names = [names]
    names = [*names]
    if len(names) != size:
        raise ConfigurationError(f"evaluation_step named {len(names)} samples in a batch of {size}")
    return names


def _to_host(values: dict[str, torch.Tensor]) -> dict[str, np.ndarray[Any, Any]]:
    if not values:
        return {}
    devices = {value.device for value in values.values()}
    device = next(iter(devices - {torch.device("cpu")}), torch.device("cpu"))
    dtype = wide(device)
    stacked = torch.stack([value.to(device, dtype) for value in values.values()]).cpu().double().numpy()
    return {name: stacked[place].copy() for place, name in enumerate(values)}


class MetricsView(MetricsHandler):
    """A :class:`MetricsHandler` as a background hook sees it: the results, as of the event."""

    _view_of = MetricsHandler  # for keep()

    def _read_only(self, *_: Any, **__: Any) -> NoReturn:
        raise StandInError(
            "metrics: background hooks see a snapshot, and can't change the evaluation; use inline(...) for a callback "
            "that does"
        )

    add_metrics = add_losses = subset = reset = aggregate = load = __call__ = _read_only


class SealedMetrics(Sealed):
    """The results at an event. The lists are only ever added to, or replaced: a length is enough to remember."""

    __slots__ = ("details", "length", "names", "rows", "seen")

    def __init__(self, live: MetricsHandler) -> None:
        self.names = live.names
        self.rows = live._rows
        self.details = live._details
        self.length = len(live._details)
        self.seen = live._seen

    def __getstate__(self) -> tuple[None, dict[str, Any]]:
        # What has come since is not of this event: no other process needs it.
        held = {name: getattr(self, name) for name in self.__slots__}
        return None, {**held, "details": self.details[: self.length]}

    def open(self, scope: Scope) -> MetricsView:
        view: MetricsView = scope.opened.get(self) or object.__new__(MetricsView)
        if self not in scope.opened:
            view.__dict__.update(
                _metrics=dict.fromkeys(self.names),
                _rows=[dict(row) for row in self.rows],
                _details=self.details[: self.length],
                _seen=self.seen,
            )
            scope.opened[self] = view
            scope.stand_ins.append((view, "metrics"))
        return view


capture.freezes(MetricsHandler)(SealedMetrics)
