"""A run on an MLflow server: what it has, and what is sent to it."""

from __future__ import annotations

import getpass
import os
import re
import time
from collections.abc import Callable, Iterable, Mapping
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple, TypeVar

from torch import nn

from async_trainer.callbacks.mlflow_requests import AWAY, count_values, make_store, put
from async_trainer.callbacks.outbox import SinkError
from async_trainer.callbacks.secrets import option_secrets, redacted, shown, url_secrets
from async_trainer.errors import ConfigurationError
from async_trainer.files.atomic import disk_errors, name_file

BATCH = 500
"""Rows in one request: the server takes 1,000 metrics."""
_PARAM_LENGTH = 6000
_KEY_LENGTH = 250

T = TypeVar("T")


class Point(NamedTuple):
    """A value of a metric. ``number`` counts those of its key in the run, from 0."""

    key: str
    value: float
    timestamp: int  # ms
    step: int
    number: int


def as_key(name: str) -> str:
    """``name`` as MLflow takes it for a metric or a parameter: it refuses all that comes with one that it doesn't.

    Word characters, ``-``, ``.``, ``:``, ``/`` and spaces, 250 at most, and no path that is another's too
    (``mlflow.utils.validation``).
    """
    parts = re.sub(r"[^\w.\-:/ ]", "_", name).split("/")
    return "/".join(part for part in parts if part not in ("", ".", ".."))[:_KEY_LENGTH] or "_"


def check_uri(uri: str) -> str:
    """``uri``, where a run may be logged to.

    Raises:
        ConfigurationError: it is none, or takes what is not installed; names the remedy.
    """
    wanted = "give a URL, such as tracking_uri='http://127.0.0.1:5000' (or MLFLOW_TRACKING_URI)"
    if re.match(r"https?\b", uri) and not re.match(r"https?://[^/]", uri):
        raise ConfigurationError(f"MLflow: tracking_uri={shown(uri)!r} is no URL; {wanted}")
    if re.match(r"(sqlite|mysql|postgresql|mssql)\b", uri) and find_spec("sqlalchemy") is None:
        raise ConfigurationError(
            f"MLflow: {shown(uri)}, where it logs to, is a database, and takes sqlalchemy: pip install mlflow (and not "
            f"mlflow-skinny alone); or {wanted}"
        )
    return uri


def absolute_uri(uri: str) -> str:
    """A relative path in it is one from here, wherever the process is when the run starts."""
    scheme, path = "sqlite:///", uri.removeprefix("sqlite:///")
    if path != uri and path and not path.startswith((":memory:", "/", "file:")) and not Path(path).is_absolute():
        return scheme + str(Path(path).absolute())
    return uri if ":" in uri or uri.startswith("databricks") else str(Path(uri).absolute())


class MLflowRun:
    """Creates a run, or goes on with one, and sends to it. Any one thread; requests are made where it is called.

    The client tries a request that fails eight times, for minutes: here the lane's outbox does that.

    Args:
        tracking_uri: None: where MLflow itself would log to.
        run_id: of a run that is there; None: one is created at the first request.
        experiment, run_name, tags: of a run that is created.
        sent: how many values of each metric are there for sure, of a run that is gone on with.
        before: how many of each it had before us; None: it is asked, before anything is sent.
    """

    def __init__(
        self,
        tracking_uri: str | None,
        run_id: str | None,
        experiment: str,
        run_name: str | None,
        tags: Mapping[str, str],
        sent: Mapping[str, int],
        before: Mapping[str, int] | None,
    ) -> None:
        import mlflow

        self.uri = check_uri(tracking_uri if tracking_uri is not None else mlflow.get_tracking_uri())
        self.run_id = run_id
        self.experiment = experiment
        self.run_name = run_name
        self.tags = dict(tags)
        self.started = int(time.time() * 1000)
        self._store: Any = None
        self.before = before if run_id is not None else {}
        self._sent = sent
        self._totals: dict[str, int] = {}  # of each metric of the run, as far as they were asked for
        self._there: dict[str, int] | None = None if run_id is not None else {}
        self._files: set[tuple[Path, int, int]] = set()  # that are there: with size, and ns of their last change

    def _call(self, function: Callable[[Any], T]) -> T:
        """What ``function`` returns, given the store.

        Raises:
            SinkError: it fails; without credentials, and without a cause, which would show them.
        """
        from mlflow.exceptions import MlflowException

        try:
            if self._store is None:
                self._store = make_store(self.uri)
            return function(self._store)
        except SinkError as error:
            text, after, final = str(error), error.retry_after, error.final
        except MlflowException as error:
            status = error.get_http_status_code()  # type: ignore[no-untyped-call]
            text, after, final = str(error), None, 400 <= status < 500 and status not in AWAY
        except Exception as error:  # of requests, of a database
            text, after, final = f"{type(error).__name__}: {error}", None, False
        environment = {name: os.environ.get(name, "") for name in ("MLFLOW_TRACKING_TOKEN", "MLFLOW_TRACKING_PASSWORD")}
        secrets = [*url_secrets(self.uri), *option_secrets("", environment)]
        raise SinkError(redacted(f"MLflow: {text}", secrets), retry_after=after, final=final)

    def connect(self) -> str:
        """Have the run; returns its id."""
        if self.run_id is None:
            self.run_id = self._call(self._create)
        return self.run_id

    def _create(self, store: Any) -> str:
        from mlflow.entities import RunTag

        experiment = store.get_experiment_by_name(self.experiment)
        number = store.create_experiment(self.experiment, None, []) if experiment is None else experiment.experiment_id
        tags = [RunTag(key, value) for key, value in self.tags.items()]
        run = store.create_run(number, _user(), self.started, tags, self.run_name)
        run_id: str = run.info.run_id
        return run_id

    def send(self, points: list[Point]) -> None:
        """Log metrics. Those that the run has are left out: it was gone on with from an earlier state.

        Raises:
            SinkError: the server has not taken them, as far as we know. The same again do no harm.
        """
        from mlflow.entities import Metric

        run_id = self.connect()
        if self._there is None:
            self._there = self._call(lambda store: self._count(store, run_id))
        new = [Metric(p.key, p.value, p.timestamp, p.step) for p in points if p.number >= self._there.get(p.key, 0)]
        if new:
            self._call(lambda store: store.log_batch(run_id, new, [], []))

    def _count(self, store: Any, run_id: str) -> dict[str, int]:
        """How many values of each metric the run has from us."""
        for key in store.get_run(run_id).data.metrics:
            if key not in self._totals:
                known = (self.before or {}).get(key, 0) + self._sent.get(key, 0)
                self._totals[key] = count_values(store, run_id, key, known)
        if self.before is None:
            self.before = dict(self._totals)
        return {key: total - self.before.get(key, 0) for key, total in self._totals.items()}

    def log_params(self, params: Mapping[str, Any]) -> None:
        """Log those parameters that the run lacks: they can't be changed."""
        from mlflow.entities import Param

        run_id = self.connect()
        known = self._call(lambda store: store.get_run(run_id)).data.params
        keys = {as_key(str(key)): value for key, value in params.items()}
        new = [Param(key, str(value)[:_PARAM_LENGTH]) for key, value in keys.items() if key not in known]
        for start in range(0, len(new), 100):  # the server takes that many
            part = new[start : start + 100]
            self._call(lambda store, part=part: store.log_batch(run_id, [], part, []))  # type: ignore[misc]

    def log_files(self, files: Iterable[tuple[Path, str]]) -> None:
        """Upload files, each with the folder in the run's artifacts that it goes to. Those that are there are left out:
        the end of a run may be tried again."""
        run_id = self.connect()
        for path, folder in files:
            look = path.stat()
            version = (path, look.st_size, look.st_mtime_ns)
            if version not in self._files:
                self._call(lambda store, path=path, folder=folder: put(store, self.uri, run_id, path, folder))  # type: ignore[misc]
                self._files.add(version)

    def log_model(self, model: nn.Module) -> None:
        """Upload a model, pickled, for ``mlflow.pytorch.load_model``.

        Raises:
            OSError: there is no room for it on its way, in the folder of temporary files.
            SinkError: as for all others.
        """
        with TemporaryDirectory() as name:
            folder = Path(name)
            try:
                with disk_errors():
                    _save_model(model, folder / "model")
            except OSError as error:
                name_file(error, folder)
                raise
            paths = [path for path in sorted(folder.rglob("*")) if path.is_file()]
            self.log_files((path, path.relative_to(folder).parent.as_posix()) for path in paths)

    def set_status(self, status: str) -> None:
        """``RUNNING``, ``FINISHED``, ``FAILED`` or ``KILLED``."""
        from mlflow.entities import RunStatus

        run_id, number = self.connect(), RunStatus.from_string(status)
        end = None if status == "RUNNING" else int(time.time() * 1000)
        self._call(lambda store: store.update_run_info(run_id, number, end, None))


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # in a container: no such user
        return "unknown"


def _save_model(model: nn.Module, folder: Path) -> None:
    import inspect

    import mlflow.pytorch
    import torch

    pickled = "serialization_format" in inspect.signature(mlflow.pytorch.save_model).parameters
    # Its requirements are named: else a process of its own would import it all to find them.
    mlflow.pytorch.save_model(
        model, str(folder), pip_requirements=[f"torch=={torch.__version__}"],
        **({"serialization_format": "pickle"} if pickled else {}),
    )  # fmt: skip
