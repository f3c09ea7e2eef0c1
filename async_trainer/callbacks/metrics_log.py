"""MetricsLog: losses and metrics as rows of a file."""

from __future__ import annotations

import os
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from async_trainer.callbacks.ending import Ending
from async_trainer.callbacks.parquet_rows import SUFFIX, ParquetRows
from async_trainer.callbacks.rows import FORMATS, RowFile
from async_trainer.callbacks.scalars import ScalarLog
from async_trainer.errors import ConfigurationError
from async_trainer.suggest import refuse_unknown_options
from async_trainer.train.state import TrainerState

if TYPE_CHECKING:
    from async_trainer.routes import EventInfo


class MetricsLog(ScalarLog):
    """Writes a row for each training batch, with its loss and learning rate, and one for each validation.

    As JSON lines::

        {"epoch": 1, "batch": 1, "step": 0, "loss": 0.693, "lr": 0.1}
        {"epoch": 1, "step": 100, "validation/loss": 0.512, "validation/accuracy": 0.75}

    As CSV, a line for each value, since batches and validations have different ones::

        epoch,batch,step,name,value
        1,1,0,loss,0.693
        1,1,0,lr,0.1
        1,,100,validation/loss,0.512

    As Parquet, a folder of files with the columns of the CSV, one for each segment of the training (10,000 values; what
    came before a validation or a state of the callback), which pandas and others read as one table.

    ``step`` is the number of optimization steps made before. A loss that is a dict gives ``loss/<key>`` for each of its
    keys, and learning rates are told apart by optimizer (``lr/<optimizer>``) and group (``lr/<optimizer>/<group>``)
    where there are several. What is not finite is written as the strings ``"NaN"``, ``"Infinity"`` and ``"-Infinity"``
    in JSON, which has no such numbers, and as ``nan``, ``inf`` and ``-inf`` in CSV.

    A row is (but for Parquet) in the file before its hook returns, and survives kill -9 of the process; it survives a
    power cut after at most a second of training, at each validation, and whenever the callback's state is taken. A
    reader that comes while a row is being written skips a last line that doesn't end in a newline. A training that
    starts replaces the file; one that is resumed cuts off what was written after the state that it goes on from.

    It runs in the background unless wrapped in ``inline()``: on its lane's thread.

    Args:
        path: a ``.jsonl`` or ``.csv`` file, or a ``.parquet`` folder; made if need be. Default: ``metrics.jsonl`` in
            the logs of the split that is trained. A path that is given is replaced by each training, so splits would
            replace each other's.
        every: write only each ``every``-th training batch, counted over the epochs (where a loader has no length, in
            each epoch anew); in the background the others cost nothing. Validations are all written.

    Raises:
        ConfigurationError: an argument that can't work; at the start of a training, no path and no ``Maps``.
    """

    @refuse_unknown_options
    def __init__(self, path: str | os.PathLike[str] | None = None, *, every: int = 1) -> None:
        if path is not None:
            if not isinstance(path, (str, os.PathLike)):
                raise ConfigurationError(f"MetricsLog: path must be a path, or None, not {path!r}")
            path = Path(path).absolute()  # the working directory may change
            if path.suffix not in (*FORMATS, SUFFIX):
                known = f"{', '.join(FORMATS)} or {SUFFIX}"
                raise ConfigurationError(f"MetricsLog: path must end in {known}, not {path.name!r}")
            if path.suffix == SUFFIX and find_spec("pyarrow") is None:
                raise ConfigurationError("MetricsLog: Parquet needs pyarrow: pip install 'async_trainer[parquet]'")
        super().__init__(every)
        self.path = path
        self._ending = Ending()
        self._file = ParquetRows(path) if path is not None and path.suffix == SUFFIX else RowFile(path)

    def __repr__(self) -> str:
        return f"<MetricsLog: {self._file.path}>"

    def check_training(self, **arguments: Any) -> list[Path]:
        """Refuse a training without a place to write to."""
        return [self._find(arguments.get("maps"), arguments.get("state"))]

    def on_train_start(self, *, maps: Any = None, state: TrainerState | None = None, **kwargs: Any) -> None:
        """Replace the file."""
        self._file.replace(self._find(maps, state))

    def on_resume(self, *, maps: Any = None, state: TrainerState | None = None, **kwargs: Any) -> None:
        """Go on with the file, from :meth:`load_state_dict`, before or after this."""
        self._file.resume(self._find(maps, state))

    def _find(self, maps: Any, state: TrainerState | None) -> Path:
        if self.path is not None:
            return self.path
        if not hasattr(maps, "split") or state is None or state.split_idx is None:
            raise ConfigurationError(
                "MetricsLog: path=None writes to the logs of the split that a Trainer trains, and this training brings "
                "no maps with splits: give a path=, such as 'metrics.jsonl'"
            )
        logs: Path = maps.split(state.split_idx).logs
        return logs / "metrics.jsonl"

    def _begin(self, maps: Any, state: TrainerState, event: EventInfo | None) -> None:
        self._file.begin(event)

    def _log(self, state: TrainerState, values: Mapping[str, float], *, batch: bool) -> None:
        at = {"batch": state.current_train_batch} if batch else {}
        self._file.write_row({"epoch": state.current_epoch, **at, "step": state.optim_step}, values)

    def _settle(self) -> None:
        self._file.sync()

    def on_train_end(self, *, event: EventInfo | None = None, **kwargs: Any) -> None:
        """Close the file, synced."""
        self._ending.check(event)
        with self._ending:
            self._file.close()

    def on_exception(self, *, event: EventInfo | None = None, **kwargs: Any) -> None:
        """Close the file, synced."""
        self.on_train_end(event=event)

    def state_dict(self) -> dict[str, Any]:
        """As of :class:`~async_trainer.files.AppendedFile`: what counts of the file, all of it on disk.

        Raises:
            OSError: it can't be synced.
        """
        return self._file.state_dict()

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Cut the file back to the state: at once, or when :meth:`on_resume` opens it."""
        self._file.load_state_dict(state_dict)
