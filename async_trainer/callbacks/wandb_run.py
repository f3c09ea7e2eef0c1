"""A run of Weights & Biases that is open: what is given to it, and what wandb has done with that."""

from __future__ import annotations

import errno
import logging
import math
import os
import secrets
import shutil
import time
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from async_trainer.callbacks.outbox import SinkError
from async_trainer.callbacks.secrets import option_secrets, redacted
from async_trainer.callbacks.wandb_files import RunFile, given_up, read_rows, unwritten, wait_for_another_second

Mode = Literal["online", "offline"]
MODES = ("online", "offline")

INIT_SECONDS = 20.0
"""How long a server may take to answer, before the run goes on offline."""
FINISH_SECONDS = 30.0
"""How long the end of a run may take to send what a server that is away has not taken."""
ROOM = 1 << 20
"""Bytes on a disk where a run can be begun."""
WRITTEN_SECONDS = 10.0
"""How long the end of an offline run is waited for."""

FLUSH_SECONDS = 0.1
"""How long wandb may keep rows before it writes them to its file, if it can be told: else until it has 32 KiB."""
STATE_SECONDS = 1.0
"""How long a state waits for that."""
KEPT = 1000
"""Rows that are kept before it is looked which of them are in wandb's file by now."""

_open: dict[str, Any] = {}
"""The runs of this process, by id: one that was left open (a cell of a notebook was interrupted) is finished first."""

logger = logging.getLogger("async_trainer")


class WandBRun:
    """Begins a run, or goes on with one: offline, where that is asked for, and where no server answers. Any one thread.

    Args:
        folder: wandb's own folder is made there.
        run_id: which run.
        mode: None: wandb's own.
        settings: for ``wandb.Settings``.
        is_new: its id was made up; and another is, where it can't be begun online.
        about: for ``wandb.init``.

    Attributes:
        id: of the run that was begun.
        there: the rows that it has, or was given.

    Raises:
        OSError: there is no room for a run.
    """

    def __init__(
        self, folder: Path, run_id: str, mode: Mode | None, settings: Mapping[str, Any], *, is_new: bool, **about: Any
    ) -> None:
        self.id = run_id
        self._folder = folder
        self._settings = settings
        self._about = about
        folder.mkdir(parents=True, exist_ok=True)
        if shutil.disk_usage(folder).free < ROOM:  # wandb wouldn't tell
            raise OSError(errno.ENOSPC, "there is no room for a run of wandb's", str(folder))
        self._run = self._begin(mode, is_new)
        rows = read_rows(folder, self.id) if self._run.offline else ()
        in_files = 1 + max((row["_step"] for row in rows), default=-1)
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")
        self.there = max(in_files, self._run.step, self._run.starting_step)
        self._given = 0  # to its file, which is a new one
        self._kept: deque[tuple[int, dict[str, Any]]] = deque(maxlen=10 * KEPT)  # those that it may not have yet
        self._file = RunFile(Path(self._run.settings.sync_file))
        self._log = Path(self._run.settings.log_internal)
        if not self._run.offline:
            logger.info("wandb: %s", self._run.url)

    def _begin(self, mode: Mode | None, is_new: bool) -> Any:
        try:
            return self._init(mode)
        except Exception as error:
            if mode == "offline":
                raise
            text = self._shown(f"{type(error).__name__}: {error}")
        # wandb keeps the name of a run that it could not begin.
        self.id = secrets.token_hex(4) if is_new else f"{self.id}-offline"
        logger.warning(
            "WandB: run %s is written offline, as it can't be begun online (%s); once it can: wandb sync %s",
            self.id, text, self._folder / "wandb" / f"offline-run-*-{self.id}",
        )  # fmt: skip
        return self._init("offline")

    def _init(self, mode: Mode | None) -> Any:
        import wandb

        if self.id in _open:
            stale = _open[self.id]
            _finished(stale, 1, RunFile(Path(stale.settings.sync_file)))
        wait_for_another_second(self._folder, self.id)
        quiet = {"silent": True, "console": "off", "init_timeout": INIT_SECONDS, "login_timeout": INIT_SECONDS}
        known = wandb.Settings.model_fields
        self._flushes = "x_transaction_log_flush_interval" in known
        if self._flushes:
            quiet |= {"x_transaction_log_flush_interval": FLUSH_SECONDS}
        if "finish_timeout" in known:  # of newer ones: else its end takes as long as it takes
            quiet |= {"finish_timeout": FINISH_SECONDS, "finish_timeout_raises": True}
        run = wandb.init(
            id=self.id, mode=mode, dir=str(self._folder), resume=None if mode == "offline" else "allow",
            reinit="create_new", settings=wandb.Settings(**{**quiet, **self._settings}), **self._about,
        )  # fmt: skip
        _open[self.id] = run
        return run

    def _shown(self, text: str) -> str:
        key = {"key": os.environ.get("WANDB_API_KEY", "")}
        return redacted(text, [*option_secrets("", self._settings), *option_secrets("", key)])

    def give(self, number: int, row: dict[str, Any]) -> None:
        """Log a row: the ``number``-th of the run, from 0."""
        self._run.log(row, step=number, commit=True)
        self.there = number + 1
        self._given += 1
        self._kept.append((number, row))
        if self._given % KEPT == 0:
            self._forget_written()

    def _forget_written(self) -> None:
        missing = self._given - self._file.read()
        while len(self._kept) > missing:
            self._kept.popleft()

    def unwritten(self, end: int) -> list[tuple[int, dict[str, Any]]]:
        """The rows before number ``end`` that wandb has not written to its file yet: they die with its process."""
        deadline = time.monotonic() + STATE_SECONDS if self._flushes else 0.0
        self._forget_written()
        while self._kept and time.monotonic() < deadline and unwritten(self._log) is None:
            time.sleep(FLUSH_SECONDS / 10)
            self._forget_written()
        return [(number, row) for number, row in self._kept if number < end]

    def restore(self, numbers: range, rows: Mapping[int, dict[str, Any]]) -> int:
        """Log rows that the run lacks, from ``rows`` or from earlier files of it; returns how many are in neither."""
        if not numbers:
            return 0
        known = {row["_step"]: row for row in read_rows(self._folder, self.id)} | dict(rows)
        found = [number for number in numbers if number in known]
        for number in found:
            self.give(number, {name: value for name, value in known[number].items() if not name.startswith("_")})
        return len(numbers) - len(found)

    @property
    def has_stopped_writing(self) -> bool:
        """Its file, which is all that there is of it, takes no more, for good."""
        return self._run.offline and unwritten(self._log) is not None

    def finish(self, code: int) -> None:
        """Have all sent, or in its file.

        Raises:
            SinkError: it is not.
        """
        file = self._file.path
        problem, written = _finished(self._run, code, self._file)
        if written < self._given:
            why = unwritten(self._log) or problem or "is its disk full?"
            raise SinkError(
                f"WandB: {self._given - written} of {self._given} rows of run {self.id} are lost: wandb has not "
                f"written them to {file} ({self._shown(why)})"
            )
        problem = problem or (None if self._run.offline else given_up(self._log))
        unkept = None if self._run.offline else unwritten(self._log)
        if unkept is not None:  # and wandb sends from its file what it could not send at once
            also = "" if problem is None else f"; and not all was sent: {problem}"
            raise SinkError(
                f"WandB: rows of run {self.id} may be lost, and nobody knows how many of {self._given}: wandb sends "
                f"from a file what waits for the server, and could not write to {file} ({self._shown(unkept + also)})"
            )
        if problem is not None:
            where = "has no end in its file" if self._run.offline else "is not all on the server"
            raise SinkError(
                f"WandB: run {self.id} {where} ({self._shown(problem)}); it is in a file, for: "
                f"wandb sync --include-online {file.parent}"
            )


def _finished(run: Any, code: int, file: RunFile) -> tuple[str | None, float]:
    """What is wrong, and how many rows of the run are in its file; one that is sent doesn't need it."""
    _open.pop(run.id, None)
    problem = None
    try:
        run.finish(exit_code=code)
    except Exception as error:
        problem = f"{type(error).__name__}: {error}"
    if not run.offline:
        return problem, math.inf
    file.wait(Path(run.settings.log_internal), WRITTEN_SECONDS)
    return (None if file.ended else problem or "it is not written yet"), file.rows
