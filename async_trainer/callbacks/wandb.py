"""WandB: a run on Weights & Biases, online, or offline in files that are synced later."""

from __future__ import annotations

import logging
import os
import secrets
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from async_trainer.callbacks.ending import Ending
from async_trainer.callbacks.outbox import SinkError
from async_trainer.callbacks.rows import as_text
from async_trainer.callbacks.run_folder import given_folder, split_folder
from async_trainer.callbacks.scalars import ScalarLog
from async_trainer.callbacks.wandb_run import MODES, Mode, WandBRun
from async_trainer.errors import ConfigurationError
from async_trainer.suggest import refuse_unknown_options, suggestion
from async_trainer.train.state import TrainerState

if TYPE_CHECKING:
    from async_trainer.routes import EventInfo


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
        mode: Mode | None = None,
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
        self._run: WandBRun | None = None
        self._rows = 0  # so far
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
        self._rows = self._open(self._find(maps, state)).there

    def on_resume(self, *, maps: Any = None, state: TrainerState | None = None, **kwargs: Any) -> None:
        """Go on with the run, from :meth:`load_state_dict`, before or after this."""
        self._leave()
        self._is_begun, self._begun_with = True, {}  # which run it is, the state says

    def _find(self, maps: Any, state: TrainerState | None) -> Path:
        if self.folder is not None:
            return self.folder
        logs: Path = split_folder(self, maps, state).logs
        return logs

    def _open(self, folder: Path) -> WandBRun:
        self._leave()
        state = self._loaded or {}
        if self._loaded is not None:
            self._id = self._loaded.get("run_id", self._given_run)
        if self._id is None:
            self._id = secrets.token_hex(4)
        run = self._run = WandBRun(
            folder, self._id, self.mode, self._settings, is_new=self._given_run is None,
            project=self.project, entity=self.entity, name=self.name, config=dict(self._begun_with),
        )  # fmt: skip
        self._id = run.id
        missing = range(run.there, state.get("rows", 0))
        lost = run.restore(missing, dict(state.get("pending", ())))
        if lost and state.get("run_id", self._given_run) == self._id:
            logger.warning(
                "WandB: %d of %d rows of run %s are lost: they are neither there nor in a file in %s",
                lost, state["rows"], self._id, folder,
            )  # fmt: skip
        return run

    def _begin(self, maps: Any, state: TrainerState, event: EventInfo | None) -> None:
        self._ending.check(event)
        if self._run is None:
            if self._loaded is None and not self._is_begun:
                raise RuntimeError("WandB: no run is open: on_train_start or on_resume comes first, or has failed")
            run = self._open(self._find(maps, state))
            self._rows = run.there if self._loaded is None else self._loaded["rows"]
        if event is not None and event.attempt > 1:
            self._rows = self._rows_before
        self._rows_before = self._rows

    def _log(self, state: TrainerState, values: Mapping[str, float], *, batch: bool) -> None:
        assert self._run is not None
        row, self._rows = self._rows, self._rows + 1
        if row < self._run.there:  # it was logged before the training was interrupted
            return
        place = {"epoch": state.current_epoch, "step": state.optim_step + batch}
        named = {as_text(name): value for name, value in values.items()}  # else wandb would refuse the row
        self._run.give(row, {**place, **named})

    def _settle(self) -> None:
        """wandb sends and writes when it sees fit. Where it no longer writes, the next event goes on in a new file."""
        if self._run is not None and self._run.has_stopped_writing:
            with self._ending:
                self._finish(0)

    def on_train_end(
        self, *, maps: Any = None, state: TrainerState | None = None, event: EventInfo | None = None, **kwargs: Any
    ) -> None:
        """Finish the run: all is sent, or in its file."""
        self._end(maps, state, event, 0)

    def on_exception(
        self, *, maps: Any = None, state: TrainerState | None = None, event: EventInfo | None = None, **kwargs: Any
    ) -> None:
        """Finish the run, as failed."""
        self._end(maps, state, event, 1)

    def _end(self, maps: Any, state: TrainerState | None, event: EventInfo | None, code: int) -> None:
        self._ending.check(event)
        if self._run is None and self._is_begun and self._loaded is not None:  # gone on with, and not opened yet
            self._open(self._find(maps, state))
        with self._ending:
            self._finish(code)

    def _leave(self) -> None:
        """Finish a run that was left open: what is wrong with it is not the next one's."""
        try:
            self._finish(0)
        except SinkError as error:
            logger.warning("%s", error)

    def _finish(self, code: int) -> None:
        if self._run is not None:
            run, self._loaded, self._run = self._run, {**self.state_dict(), "pending": []}, None
            self._is_begun = False
            run.finish(code)

    def state_dict(self) -> dict[str, Any]:
        """``rows``: how many so far; ``pending``: those of them that wandb has not written to its file yet; ``run_id``,
        unless it was given."""
        if self._run is None and self._loaded is not None:
            return dict(self._loaded)
        pending = [] if self._run is None else self._run.unwritten(self._rows)
        state: dict[str, Any] = {"rows": self._rows, "pending": pending}
        if self._given_run is None and self._id is not None:
            state["run_id"] = self._id
        return state

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Go on from the state, with the next row."""
        self._leave()
        self._loaded, self._rows, self._is_begun = dict(state_dict), state_dict["rows"], True
