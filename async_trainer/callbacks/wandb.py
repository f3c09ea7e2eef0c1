"""WandB: a run on Weights & Biases, online, or offline in files that are synced later."""

from __future__ import annotations

import errno
import logging
import math
import os
import secrets
import shutil
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from async_trainer.callbacks.ending import Ending
from async_trainer.callbacks.outbox import SinkError
from async_trainer.callbacks.rows import as_text
from async_trainer.callbacks.run_folder import given_folder, split_folder
from async_trainer.callbacks.scalars import ScalarLog
from async_trainer.callbacks.secrets import option_secrets, redacted
from async_trainer.callbacks.wandb_files import (
    given_up,
    read_rows,
    unwritten,
    wait_for_another_second,
    wait_until_written,
)
from async_trainer.errors import ConfigurationError
from async_trainer.suggest import refuse_unknown_options, suggestion
from async_trainer.train.state import TrainerState

if TYPE_CHECKING:
    from async_trainer.routes import EventInfo

MODES = ("online", "offline")
INIT_SECONDS = 20.0
"""How long a server may take to answer, before the run goes on offline."""
FINISH_SECONDS = 30.0
"""How long the end of a run may take to send what a server that is away has not taken."""
ROOM = 1 << 20
"""Bytes on a disk where a run can be begun."""
WRITTEN_SECONDS = 10.0
"""How long the end of an offline run is waited for."""

_open: dict[str, Any] = {}
"""The runs of this process, by id: one that was left open (a cell of a notebook was interrupted) is finished first."""

logger = logging.getLogger("async_trainer")


class WandB(ScalarLog):
    """Logs a training to Weights & Biases: the loss and learning rate of batches, the metrics of validations, the
    settings as its config.

    The names are those of :class:`TensorBoard`: ``loss``, ``lr``, ``validation/<metric>``. Each row has ``epoch`` and
    ``step``, which is the x axis of all charts; wandb's own step counts the rows.

    While a server that was there is away, wandb keeps what it is given in a file and tries again. What it has not sent
    half a minute after the end, or no longer tries to since its token has expired, is raised at the end, with how to
    sync that file. One that does not answer at the start is not waited for: the run is written offline, and the log
    says how to sync it. A run that is resumed goes on in the same run of wandb: rows that it has, from after the state
    that the training goes on from, are not logged again. (An offline run then has a folder for each time.) What wandb
    has not written to an offline run's file, as its disk is full, is counted, and raised at the end; once there is room
    the run goes on in a folder more.

    It runs in the background unless wrapped in ``inline()``: on its lane's thread. It leaves ``wandb.run`` alone.

    Args:
        project: its name.
        entity, name: as for ``wandb.init``.
        mode: ``"online"`` or ``"offline"``. Default: wandb's own (``WANDB_MODE``).
        folder: wandb's own folder, ``wandb``, is made there. Default: the logs of the split that is trained.
        run_id: log to this run, which may be there already. Default: one is made up.
        config: further settings of the run.
        settings: for ``wandb.Settings``: ``{"x_disable_stats": True}``. Never shown.
        every: log only each ``every``-th training batch. Validations are all logged.

    Raises:
        ConfigurationError: an argument that can't work; wandb is not installed. At the start of a training: no folder
            is given, and the run has no maps.
    """

    @refuse_unknown_options
    def __init__(
        self,
        project: str,
        *,
        entity: str | None = None,
        name: str | None = None,
        mode: Literal["online", "offline"] | None = None,
        folder: str | os.PathLike[str] | None = None,
        run_id: str | None = None,
        config: Mapping[str, Any] | None = None,
        settings: Mapping[str, Any] | None = None,
        every: int = 1,
    ) -> None:
        super().__init__(every)
        if find_spec("wandb") is None:
            raise ConfigurationError("WandB needs wandb: pip install 'async_trainer[wandb]'")
        if not isinstance(project, str) or not project:
            raise ConfigurationError(f"WandB: project must be a name, not {project!r}")
        if mode is not None and mode not in MODES:
            raise ConfigurationError(
                f"WandB: mode must be 'online' or 'offline', not {mode!r}{suggestion(mode, MODES)}"
            )
        for option, value in (("config", config), ("settings", settings)):
            if value is not None and not isinstance(value, Mapping):
                raise ConfigurationError(f"WandB: {option} must be a dict, not {type(value).__name__}")
        self.project = project
        self.entity = entity
        self.name = name
        self.mode = mode
        self.folder = given_folder(self, folder)
        self.config = dict(config or {})
        self._settings = dict(settings or {})
        self._given_run = run_id
        self._id: str | None = run_id
        self._ending = Ending()
        self._run: Any = None
        self._rows = 0  # so far
        self._there = 0  # that the run has
        self._given = 0  # to this file
        self._rows_before = 0
        self._loaded: Mapping[str, Any] | None = None
        self._is_begun = False  # and what was not opened then is with the next event
        self._begun_with: Mapping[str, Any] = {}  # further config

    def __repr__(self) -> str:
        return f"WandB({self.project!r}, mode={self.mode!r}, run_id={self._id!r})"

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_run": None}

    @property
    def run_id(self) -> str | None:
        """Of the run that is logged to; None: there is none yet."""
        return self._id

    def check_training(self, **arguments: Any) -> None:
        """Refuse a training without a place to write to."""
        self._find(arguments.get("maps"), arguments.get("state"))

    def on_train_start(
        self,
        *,
        maps: Any = None,
        state: TrainerState | None = None,
        optimization: Any = None,
        computational: Any = None,
        **kwargs: Any,
    ) -> None:
        """Begin a run."""
        self._loaded, self._id = None, self._given_run
        groups = {"optimization": optimization, "computational": computational}
        fields = {name: one.to_dict() for name, one in groups.items() if hasattr(one, "to_dict")}
        self._rows, self._is_begun, self._begun_with = 0, True, {**fields, **self.config}
        self._open(self._find(maps, state))
        self._rows = self._there

    def on_resume(self, *, maps: Any = None, state: TrainerState | None = None, **kwargs: Any) -> None:
        """Go on with the run, from :meth:`load_state_dict`, before or after this."""
        self._leave()
        self._is_begun, self._begun_with = True, {}  # which run it is, the state says

    def _find(self, maps: Any, state: TrainerState | None) -> Path:
        if self.folder is not None:
            return self.folder
        logs: Path = split_folder(self, maps, state).logs
        return logs

    def _open(self, folder: Path) -> None:
        self._leave()
        if self._loaded is not None:
            self._id = self._loaded.get("run_id", self._given_run)
        if self._id is None:
            self._id = secrets.token_hex(4)
        folder.mkdir(parents=True, exist_ok=True)
        if shutil.disk_usage(folder).free < ROOM:  # wandb wouldn't tell
            raise OSError(errno.ENOSPC, "there is no room for a run of wandb's", str(folder))
        self._run = self._init(folder, self._begun_with)
        rows = read_rows(folder, self._id) if self._run.offline else ()
        in_files = 1 + max((row["_step"] for row in rows), default=-1)
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")
        self._there = max(in_files, self._run.step)
        self._given = 0
        if not self._run.offline:
            logger.info("wandb: %s", self._run.url)

    def _init(self, folder: Path, config: Mapping[str, Any]) -> Any:
        """The run; offline, where that is asked for, and where no server answers."""
        try:
            return self._try_init(folder, config, self.mode)
        except Exception as error:
            if self.mode == "offline":
                raise
            text = redacted(f"{type(error).__name__}: {error}", self._secrets())
        # wandb keeps the name of a run that it could not begin.
        self._id = secrets.token_hex(4) if self._given_run is None else f"{self._given_run}-offline"
        logger.warning(
            "WandB: run %s is written offline, as it can't be begun online (%s); once it can: wandb sync %s",
            self._id, text, folder / "wandb" / f"offline-run-*-{self._id}",
        )  # fmt: skip
        return self._try_init(folder, config, "offline")

    def _try_init(self, folder: Path, config: Mapping[str, Any], mode: Literal["online", "offline"] | None) -> Any:
        import wandb

        assert self._id is not None
        if self._id in _open:
            _finished(_open[self._id], 1)
        wait_for_another_second(folder, self._id)
        quiet = {"silent": True, "console": "off", "init_timeout": INIT_SECONDS, "login_timeout": INIT_SECONDS}
        if "finish_timeout" in wandb.Settings.model_fields:  # of newer ones: else its end takes as long as it takes
            quiet |= {"finish_timeout": FINISH_SECONDS, "finish_timeout_raises": True}
        run = wandb.init(
            project=self.project, entity=self.entity, name=self.name, id=self._id, mode=mode, dir=str(folder),
            config=dict(config), resume=None if mode == "offline" else "allow", reinit="create_new",
            settings=wandb.Settings(**{**quiet, **self._settings}),
        )  # fmt: skip
        _open[self._id] = run
        return run

    def _secrets(self) -> list[str]:
        return [*option_secrets("", self._settings), *option_secrets("", {"key": os.environ.get("WANDB_API_KEY", "")})]

    def _begin(self, maps: Any, state: TrainerState, event: EventInfo | None) -> None:
        self._ending.check(event)
        if self._run is None:
            if self._loaded is None and not self._is_begun:
                raise RuntimeError("WandB: no run is open: on_train_start or on_resume comes first, or has failed")
            self._open(self._find(maps, state))
            self._rows = self._there if self._loaded is None else self._loaded["rows"]
        if event is not None and event.attempt > 1:
            self._rows = self._rows_before
        self._rows_before = self._rows

    def _log(self, state: TrainerState, values: Mapping[str, float], *, batch: bool) -> None:
        row, self._rows = self._rows, self._rows + 1
        if row < self._there:  # it was logged before the training was interrupted
            return
        place = {"epoch": state.current_epoch, "step": state.optim_step + batch}
        named = {as_text(name): value for name, value in values.items()}  # else wandb would refuse the row
        self._run.log({**place, **named}, step=row, commit=True)
        self._there = row + 1
        self._given += 1

    def _settle(self) -> None:
        """wandb sends and writes when it sees fit. Where it no longer writes, the next event goes on in a new file."""
        if self._run.offline and unwritten(Path(self._run.settings.log_internal)) is not None:
            with self._ending:
                self._finish(0)

    def on_train_end(self, *, event: EventInfo | None = None, **kwargs: Any) -> None:
        """Finish the run: all is sent, or in its file."""
        self._ending.check(event)
        with self._ending:
            self._finish(0)

    def on_exception(self, *, event: EventInfo | None = None, **kwargs: Any) -> None:
        """Finish the run, as failed."""
        self._ending.check(event)
        with self._ending:
            self._finish(1)

    def _leave(self) -> None:
        """Finish a run that was left open: what is wrong with it is not the next one's."""
        try:
            self._finish(0)
        except SinkError as error:
            logger.warning("%s", error)

    def _finish(self, code: int) -> None:
        run = self._run
        if run is None:
            return
        self._loaded, self._run = self.state_dict(), None
        file, log = Path(run.settings.sync_file), Path(run.settings.log_internal)
        problem, written = _finished(run, code)
        if written < self._given:
            why = unwritten(log) or problem or "is its disk full?"
            raise SinkError(
                f"WandB: {self._given - written} of {self._given} rows of run {self._id} are lost: wandb has not "
                f"written them to {file} ({redacted(why, self._secrets())})"
            )
        problem = problem or (None if run.offline else given_up(log))
        unkept = None if run.offline else unwritten(log)
        if unkept is not None:  # and wandb sends from its file what it could not send at once
            also = "" if problem is None else f"; and not all was sent: {problem}"
            raise SinkError(
                f"WandB: rows of run {self._id} may be lost, and nobody knows how many of {self._given}: wandb sends "
                f"from a file what waits for the server, and could not write to {file} "
                f"({redacted(unkept + also, self._secrets())})"
            )
        if problem is not None:
            where = "has no end in its file" if run.offline else "is not all on the server"
            raise SinkError(
                f"WandB: run {self._id} {where} ({redacted(problem, self._secrets())}); it is in a file, for: "
                f"wandb sync --include-online {file.parent}"
            )

    def state_dict(self) -> dict[str, Any]:
        """``rows``: how many so far; ``run_id``, unless it was given."""
        state: dict[str, Any] = {"rows": self._rows}
        if self._given_run is None and self._id is not None:
            state["run_id"] = self._id
        return state

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Go on from the state, with the next row."""
        self._leave()
        self._loaded, self._rows = dict(state_dict), state_dict["rows"]


def _finished(run: Any, code: int) -> tuple[str | None, float]:
    """What is wrong, and how many rows of the run are in its file; one that is sent doesn't need it."""
    _open.pop(run.id, None)
    problem = None
    try:
        run.finish(exit_code=code)
    except Exception as error:
        problem = f"{type(error).__name__}: {error}"
    if not run.offline:
        return problem, math.inf
    rows, ended = wait_until_written(Path(run.settings.sync_file), Path(run.settings.log_internal), WRITTEN_SECONDS)
    return (None if ended else problem or "it is not written yet"), rows
