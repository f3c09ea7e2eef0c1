"""MLflow: a run on a tracking server, with its parameters, metrics, files and model."""

from __future__ import annotations

import hashlib
import logging
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from async_trainer.callbacks.ending import Ending
from async_trainer.callbacks.mlflow_run import BATCH, MLflowRun, Point, absolute_uri, as_key, check_uri
from async_trainer.callbacks.model_checkpoint import unwrapped
from async_trainer.callbacks.outbox import Outbox, SinkError
from async_trainer.callbacks.run_folder import split_folder
from async_trainer.callbacks.scalars import ScalarLog
from async_trainer.callbacks.secrets import shown
from async_trainer.callbacks.upload import check_patterns, cut, wait_for
from async_trainer.errors import ConfigurationError
from async_trainer.suggest import refuse_unknown_options
from async_trainer.train.state import TrainerState

if TYPE_CHECKING:
    from async_trainer.routes import EventInfo

logger = logging.getLogger("async_trainer")

LIMIT = 50_000
"""Values that wait for a server that is away, at most."""


class MLflow(ScalarLog):
    """Logs a training to MLflow: the loss and learning rate of batches, the metrics of validations, the settings as
    parameters; at the end its files and its model, if wanted.

    The names are those of :class:`TensorBoard`: ``loss``, ``lr``, ``validation/<metric>``, with ``_`` for what MLflow
    takes in no name (``f1@0.5``; the log says so); so are the steps. Parameters are the fields of the run's
    ``OptimizationConfig`` and ``ComputationalConfig``, and yours.

    Values are sent each second or so. While the server refuses connections, hangs, answers 429 or 500, or a token has
    expired, they wait in memory (50,000 of them; beyond, the oldest are dropped), and are sent when it is back. At the
    end all that waits is sent; what could not be, is counted, and raised at the end. A run that is resumed goes on in
    the same MLflow run: what was logged after the state that it goes on from is not logged again (on a server or in a
    database: where one file holds each metric, a request whose answer was lost may be there twice). MLflow's own
    environment variables are heeded (``MLFLOW_TRACKING_TOKEN``, which is never kept), but for its retries.

    It runs in the background unless wrapped in ``inline()``: on its lane's thread.

    Args:
        tracking_uri: ``http://host:5000``, ``sqlite:///mlflow.db``. Credentials in it are never shown. Default:
            MLflow's own (``MLFLOW_TRACKING_URI``).
        experiment: its name; made if need be.
        run_name: default: MLflow makes one up.
        run_id: log to this run, which is there already.
        params: further parameters.
        artifacts: patterns of files in the folder of the split (``["checkpoints/*"]``), which are uploaded at the end
            of the training, when the other callbacks have written theirs. Not in a process of its own.
        log_model: log the model as it is at the end, for ``mlflow.pytorch.load_model(f"runs:/{run_id}/model")``. It is
            pickled.
        every: log only each ``every``-th training batch. Validations are all logged.

    Raises:
        ConfigurationError: an argument that can't work; mlflow (or mlflow-skinny) is not installed. At the start of a
            training: there are artifacts to log, and the run has no maps.
    """

    @refuse_unknown_options
    def __init__(
        self,
        tracking_uri: str | None = None,
        *,
        experiment: str = "Default",
        run_name: str | None = None,
        run_id: str | None = None,
        params: Mapping[str, Any] | None = None,
        artifacts: Iterable[str] = (),
        log_model: bool = False,
        every: int = 1,
    ) -> None:
        super().__init__(every)
        if find_spec("mlflow") is None:
            raise ConfigurationError("MLflow needs mlflow: pip install 'async_trainer[mlflow]'")
        for option, value in (("tracking_uri", tracking_uri), ("run_name", run_name), ("run_id", run_id)):
            if value is not None and not (isinstance(value, str) and value):
                raise ConfigurationError(f"MLflow: {option} must be a str, or None, not {type(value).__name__}")
        if not isinstance(experiment, str) or not experiment:
            raise ConfigurationError(f"MLflow: experiment must be a name, not {experiment!r}")
        if params is not None and not isinstance(params, Mapping):
            raise ConfigurationError(f"MLflow: params must be a dict, not {type(params).__name__}")
        self.tracking_uri = None if tracking_uri is None else absolute_uri(check_uri(tracking_uri))
        self.experiment = experiment
        self.run_name = run_name
        self.params = dict(params or {})
        self.artifacts = check_patterns(artifacts, "MLflow: artifacts") if artifacts else ()
        self.log_model = log_model
        self._given_run = run_id
        self._run: MLflowRun | None = None
        self._outbox: Outbox | None = None
        self._counts: dict[str, int] = {}  # values of each metric so far
        self._ending = Ending()
        self._lost: dict[str, int] = {}  # of these, those that the server will never have
        self._times: dict[str, int] = {}  # ms: of the last value of each metric
        self._is_begun = False  # a run that is gone on with is opened by the next event: the state says which it is
        self._keys: dict[str, str] = {}  # what each name is logged as
        self._loaded: Mapping[str, Any] | None = None
        self._settings: dict[str, Any] | None = None  # parameters that are still to be logged

    def __repr__(self) -> str:
        where = shown(self.tracking_uri) if self.tracking_uri is not None else None
        return f"MLflow({where!r}, experiment={self.experiment!r})"

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_run": None, "_outbox": None}

    @property
    def background(self) -> Mapping[str, Any]:  # type: ignore[override]  # each instance has its own
        """In the background by default: the end is tried five times more, then raised."""
        options = dict(super().background)
        select = {**options["select"], "callbacks": cut if self.artifacts else None}
        if not self.log_model:
            select["model"] = None
        return {**options, "select": select, "retries": 5, "backoff": 1.0}

    @property
    def run_id(self) -> str | None:
        """Of the run that is logged to; None: it is not there yet."""
        return self._run.run_id if self._run is not None else (self._loaded or {}).get("run_id", self._given_run)

    def check_training(self, **arguments: Any) -> None:
        """Refuse a training without a folder of artifacts."""
        if self.artifacts:
            split_folder(self, arguments.get("maps"), arguments.get("state"))

    def on_train_start(self, *, optimization: Any = None, computational: Any = None, **kwargs: Any) -> None:
        """Begin a run."""
        self._loaded = None
        self._set(optimization, computational)
        self._open({})
        self._send_soon()

    def on_resume(self, *, optimization: Any = None, computational: Any = None, **kwargs: Any) -> None:
        """Go on with the run, from :meth:`load_state_dict`, before or after this."""
        self._set(optimization, computational)
        self._outbox = None

    def _set(self, optimization: Any, computational: Any) -> None:
        settings = {**_fields("optimization", optimization), **_fields("computational", computational), **self.params}
        self._settings = {str(key): str(value) for key, value in settings.items()}
        self._is_begun = True

    def _open(self, state: Mapping[str, Any]) -> None:
        self._counts, self._lost = dict(state.get("counts", {})), {}
        pending = [Point(*one) for one in state.get("pending", ())]
        waiting = Counter(one.key for one in pending)
        sent = {key: count - waiting[key] for key, count in self._counts.items()}
        self._settings = {**state.get("params", {}), **(self._settings or {})}
        self._keys = dict(state.get("names", {}))
        run = MLflowRun(
            self.tracking_uri, state.get("run_id", self._given_run), self.experiment, self.run_name,
            {"mlflow.source.name": "async_trainer"}, sent, state.get("before", {}) if state else None,
        )  # fmt: skip
        self._run = run
        self._outbox = Outbox("MLflow", self._send, batch=BATCH, limit=LIMIT, lose=self._lose)
        self._outbox.add(pending)

    def _send(self, points: list[Point]) -> None:
        assert self._run is not None
        self._run.send([self._ranked(one) for one in points])

    def _ranked(self, point: Point) -> Point:
        """With its number among those of its metric that the server has, or will have: it counts no others."""
        return point._replace(number=point.number - self._lost.get(point.key, 0))

    def _lose(self, points: Iterable[Point]) -> None:
        for point in points:
            self._lost[point.key] = self._lost.get(point.key, 0) + 1

    def _begin(self, maps: Any, state: TrainerState, event: EventInfo | None) -> None:
        if self._outbox is None:
            if self._loaded is None and not self._is_begun:
                raise RuntimeError("MLflow: no run is open: on_train_start or on_resume comes first, or has failed")
            self._open(self._loaded or {})

    def _log(self, state: TrainerState, values: Mapping[str, float], *, batch: bool) -> None:
        assert self._outbox is not None
        now, step = int(time.time() * 1000), state.optim_step + batch
        points = []
        for name, value in values.items():
            key = self._keys.get(name) or self._name(name)
            index = self._counts.get(key, 0)
            self._counts[key] = index + 1
            at = self._times[key] = max(now, self._times.get(key, 0) + 1)  # equal ones of a step would be one row
            points.append(Point(key, value, at, step, index))
        self._outbox.add(points)
        self._outbox.send_due()

    def _name(self, name: str) -> str:
        key, why = as_key(name), "as MLflow doesn't take that name"
        if key in self._keys.values():
            key, why = (
                f"{key[:240]}_{hashlib.sha256(name.encode(errors='surrogatepass')).hexdigest()[:8]}",
                f"as another one is {key!r}",
            )
        if key != name:
            logger.warning("MLflow: %r is logged as %r, %s", name, key, why)
        self._keys[name] = key
        return key

    def _settle(self) -> None:
        self._send_soon()

    def _send_soon(self) -> None:
        """What fails waits: an event whose values wait has not failed."""
        assert self._outbox is not None
        self._outbox.send_soon()
        if self._settings and self._run is not None and self._run.run_id is not None:
            try:
                self._log_settings()
            except SinkError:  # with the next, or at the end
                pass

    def _log_settings(self) -> None:
        if self._settings and self._run is not None:
            self._run.log_params(self._settings)
        self._settings = None

    def on_train_end(
        self,
        *,
        maps: Any = None,
        state: TrainerState | None = None,
        model: Any = None,
        callbacks: Any = None,
        event: EventInfo | None = None,
    ) -> None:
        """Send all that waits, the files, the model; the run has finished."""
        if not self._has_sent_all(event):
            return
        assert self._run is not None
        if self.artifacts:
            late = wait_for(callbacks)
            if late:
                raise SinkError(f"MLflow: other callbacks still write what is to be logged: {', '.join(late)}")
            self._log_files(split_folder(self, maps, state).path)
        if self.log_model and model is not None:
            self._run.log_model(unwrapped(model))
        self._run.set_status("FINISHED")
        with self._ending:
            self._close()

    def on_exception(self, *, exception: Any = None, event: EventInfo | None = None) -> None:
        """Send all that waits; the run has failed, or was killed."""
        if not self._has_sent_all(event):  # of a validation, say
            return
        assert self._run is not None
        self._run.set_status("KILLED" if isinstance(exception, (KeyboardInterrupt, SystemExit)) else "FAILED")
        with self._ending:
            self._close()

    def _has_sent_all(self, event: EventInfo | None) -> bool:
        """False: there is no run to end."""
        self._ending.check(event)
        if self._outbox is None and self._is_begun:
            self._open(self._loaded or {})
        if self._outbox is None:
            return False
        self._outbox.send_all()
        self._log_settings()
        return True

    def _close(self) -> None:
        outbox, self._loaded = self._outbox, self.state_dict()
        self._outbox, self._is_begun = None, False
        if outbox is not None:
            outbox.check_complete()

    def _log_files(self, folder: Path) -> None:
        assert self._run is not None
        self._run.log_files(self._files(folder))
        missed = [pattern for pattern in self.artifacts if not any(path.is_file() for path in folder.glob(pattern))]
        if missed:
            logger.warning("MLflow: no file in %s matches artifacts=%r", folder, missed)

    def _files(self, folder: Path) -> Iterator[tuple[Path, str]]:
        for path in sorted({path for pattern in self.artifacts for path in folder.glob(pattern) if path.is_file()}):
            inside = path.relative_to(folder)
            if not any(part.startswith(".") for part in inside.parts):
                yield path, inside.parent.as_posix().removeprefix(".")

    def state_dict(self) -> dict[str, Any]:
        """``counts``: values of each metric so far, but for those that are lost; ``pending``: those that the server has
        not taken yet; ``params``, until it has them; ``names``, what some are logged as; ``run_id``, or, of one that
        was given, ``before``: how many values of each metric it had."""
        if self._outbox is None:
            return dict(self._loaded or {})
        self._outbox.send_soon()
        counts = {key: count - self._lost.get(key, 0) for key, count in self._counts.items()}
        pending = [tuple(self._ranked(one)) for one in self._outbox.waiting]
        state: dict[str, Any] = {"counts": counts, "pending": pending}
        renamed = {name: key for name, key in self._keys.items() if name != key}
        if renamed:
            state["names"] = renamed
        if self._given_run is not None and self._run is not None:
            state["before"] = None if self._run.before is None else dict(self._run.before)
        if self._settings:
            state["params"] = dict(self._settings)
        if self._given_run is None and self.run_id is not None:
            state["run_id"] = self.run_id
        return state

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Go on from the state, with the next event."""
        self._loaded, self._outbox, self._is_begun = dict(state_dict), None, True


def _fields(name: str, config: Any) -> dict[str, Any]:
    fields = config.to_dict() if hasattr(config, "to_dict") else {}
    return {f"{name}/{key}": value for key, value in fields.items()}
