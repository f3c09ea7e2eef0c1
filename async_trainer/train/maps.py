"""Maps: the directory of a trainer, in which a person finds their way too."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from async_trainer.errors import ConfigurationError
from async_trainer.files.atomic import sync_folder, write_json
from async_trainer.snapshot import capture
from async_trainer.suggest import suggestion

if TYPE_CHECKING:
    import pandas as pd

FORMAT = 1
SUFFIXES = (".pt", ".safetensors")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.@=+-]*")


class Maps:
    """Where a trainer's files are.

    ::

        maps.json                          how the trainer was set up
        initial.pt                         the weights that each training starts from
        split-0/
            split.json                     how that training was run, and how it ended
            metrics.tsv                    validation metrics, a row per epoch
            status.json, history.jsonl     how it is doing: for ``async-trainer watch`` and ``report``
            checkpoints/                   best-loss.pt, epoch-3.pt, final.pt
            logs/                          what callbacks write
            resume/                        what Trainer.resume goes on from
            validation/best-loss/          metrics.tsv, samples.tsv: by Trainer.validate
        test/<group>/split-0_best-loss/    metrics.tsv, samples.tsv: by Trainer.test

    Each file appears as a whole or not at all. To background callbacks it comes as it is.

    Args:
        path: the directory; it need not exist.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path).absolute()

    def __repr__(self) -> str:
        return f"Maps({str(self.path)!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Maps) and self.path == other.path

    def __hash__(self) -> int:
        return hash(self.path)

    def __fspath__(self) -> str:
        return str(self.path)

    @property
    def config(self) -> Path:
        """``maps.json``."""
        return self.path / "maps.json"

    @property
    def initial(self) -> Path:
        """``initial.pt``."""
        return self.path / "initial.pt"

    @property
    def exists(self) -> bool:
        """Whether a trainer was set up here."""
        return self.config.is_file()

    def create(self, config: Mapping[str, Any], *, overwrite: bool = False) -> None:
        """Make the directory, with its ``maps.json``.

        Args:
            config: what goes there.
            overwrite: replace a directory of an earlier trainer, and all that is in it.

        Raises:
            ConfigurationError: an earlier trainer has trained there, or the directory holds something else.
        """
        content = {"format": FORMAT, **config}
        if self.exists:
            self._check_ours()
            if not (overwrite or self.splits or (self.path / "test").exists()):  # nothing came of it: a mistake, say
                self.initial.unlink(missing_ok=True)
                write_json(self.config, content)
                return
            if not overwrite:
                raise ConfigurationError(
                    f"maps: {self.path} is the directory of an earlier Trainer; Trainer.from_maps(...) goes on "
                    "with it, overwrite=True deletes it, and all that is in it"
                )
            _replace(self.path.resolve(), content)
            return
        if self.path.exists():
            if not self.path.is_dir():
                raise ConfigurationError(f"maps: {self.path} is a file, not a directory")
            if any(not _is_partial(path) for path in self.path.iterdir()):
                raise ConfigurationError(
                    f"maps: {self.path} holds files that no Trainer has written; give a directory that is new or empty"
                )
        self.path.mkdir(parents=True, exist_ok=True)
        write_json(self.config, content)
        sync_folder(self.path.parent)

    def _check_ours(self) -> None:
        """Other programs have a ``maps.json`` too: what they have written is not deleted."""
        try:
            config = json.loads(self.config.read_text(encoding="utf-8"))
        except ValueError:
            config = None
        if not isinstance(config, dict) or "format" not in config:
            raise ConfigurationError(
                f"maps: no Trainer has written {self.config}; give a directory that is new or empty"
            )

    def read(self) -> dict[str, Any]:
        """What is in ``maps.json``.

        Raises:
            ConfigurationError: the directory isn't there, or isn't a trainer's, or one of a later version.
        """
        try:
            config = json.loads(self.config.read_text(encoding="utf-8"))
        except (FileNotFoundError, NotADirectoryError):
            what = "holds no maps.json" if self.path.is_dir() else "does not exist"
            stale = _aside(self.path, "replaced")
            if stale.exists():
                what += f" (what an interrupted overwrite has left of it is in {stale})"
            raise ConfigurationError(f"maps: {self.path} {what}: it is no directory of a Trainer") from None
        except ValueError as error:
            raise ConfigurationError(f"maps: {self.config} is damaged: {error}") from error
        if not isinstance(config, dict) or config.get("format") != FORMAT:
            raise ConfigurationError(f"maps: {self.config} is of another version of async_trainer")
        return config

    def split(self, index: int) -> SplitMaps:
        """The folder of a split, there or not."""
        return SplitMaps(self.path / f"split-{index}", index)

    @property
    def splits(self) -> tuple[int, ...]:
        """The indices of the splits that a training was started on."""
        found = [re.fullmatch(r"split-(\d+)", path.name) for path in self.path.glob("split-*")]
        indices = sorted(int(match[1]) for match in found if match)
        return tuple(index for index in indices if self.split(index).exists)

    def checkpoint(self, name: str) -> Path:
        """The file of ``"split-<index>_<checkpoint>"``, as :meth:`Trainer.test` is given it.

        Raises:
            ConfigurationError: there is none of that name; tells those that there are.
        """
        match = re.fullmatch(r"split-(\d+)_(.+)", str(name))
        there = [f"split-{index}_{one}" for index in self.splits for one in self.split(index).checkpoint_names]
        if not match or name not in there:
            raise ConfigurationError(
                f"model_checkpoint={name!r}: there is no such checkpoint in {self.path}{suggestion(str(name), there)}; "
                f"there {_are(there)}"
            )
        return self.split(int(match[1])).checkpoint(match[2])

    def test(self, group_name: str, model_checkpoint: str) -> Path:
        """The folder for the results of a checkpoint on a group of test data.

        Raises:
            ConfigurationError: ``group_name`` is no name for a folder.
        """
        if not isinstance(group_name, str) or not _NAME.fullmatch(group_name):
            raise ConfigurationError(f"group_name={group_name!r}: letters, digits and ._@=+- make a folder's name")
        return self.path / "test" / group_name / model_checkpoint


@dataclass(frozen=True, slots=True)
class SplitMaps:
    """The folder of one training: see :class:`Maps`."""

    path: Path
    index: int

    @property
    def config(self) -> Path:
        """``split.json``."""
        return self.path / "split.json"

    @property
    def exists(self) -> bool:
        """Whether a training was started here."""
        return self.config.is_file()

    @property
    def metrics(self) -> Path:
        """``metrics.tsv``."""
        return self.path / "metrics.tsv"

    def read_metrics(self) -> pd.DataFrame:
        """What is in ``metrics.tsv``: a row per validated epoch, as :meth:`Trainer.train` returned it.

        Raises:
            ConfigurationError: nothing was validated in that training.
        """
        from async_trainer.train.metrics import read_tsv

        if not self.metrics.is_file():
            raise ConfigurationError(f"split {self.index}: there are no metrics in {self.path}: nothing was validated")
        return read_tsv(self.metrics)

    @property
    def resume(self) -> Path:
        """The folder of the resume state, by :class:`TrainingCheckpoint`."""
        return self.path / "resume"

    @property
    def logs(self) -> Path:
        """The folder for what callbacks write."""
        return self.path / "logs"

    @property
    def checkpoints(self) -> Path:
        """The folder of the checkpoints."""
        return self.path / "checkpoints"

    @property
    def checkpoint_names(self) -> tuple[str, ...]:
        """The names of the checkpoints that are there: ``best-loss``, ``epoch-3``, ``final``."""
        found = self.checkpoints.iterdir() if self.checkpoints.is_dir() else ()
        return tuple(sorted({path.stem for path in found if path.suffix in SUFFIXES and not path.name.startswith(".")}))

    def checkpoint(self, name: str) -> Path:
        """The file of the checkpoint ``name``.

        Raises:
            ConfigurationError: there is none; tells those that there are.
        """
        for suffix in SUFFIXES:
            path = self.checkpoints / f"{name}{suffix}"
            if path.is_file():
                return path
        there = self.checkpoint_names
        raise ConfigurationError(
            f"model_checkpoint={name!r}: split {self.index} has no such checkpoint{suggestion(str(name), there)}; "
            f"there {_are(there)}"
        )

    def validation(self, checkpoint: str) -> Path:
        """The folder for what :meth:`Trainer.validate` finds about ``checkpoint``."""
        return self.path / "validation" / checkpoint

    def read(self) -> dict[str, Any]:
        """What is in ``split.json``.

        Raises:
            ConfigurationError: no training was started on this split.
        """
        try:
            config: dict[str, Any] = json.loads(self.config.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise ConfigurationError(
                f"split {self.index}: no training was started on it in {self.path.parent}"
            ) from None
        except ValueError as error:
            raise ConfigurationError(f"{self.config} is damaged: {error}") from error
        return config


def _replace(path: Path, content: Mapping[str, Any]) -> None:
    """Put a directory with that ``maps.json`` alone where another one is. Interrupted between two renames, the old one
    is whole, under its other name; it is deleted by the next replacement."""
    made, stale = _aside(path, "made"), _aside(path, "replaced")
    for leftover in (made, stale):
        if leftover.exists():
            shutil.rmtree(leftover)
    write_json(made / "maps.json", content)
    path.replace(stale)
    try:
        made.replace(path)
    except BaseException:
        stale.replace(path)
        raise
    sync_folder(path.parent)
    shutil.rmtree(stale)


def _aside(path: Path, what: str) -> Path:
    return path.with_name(f".{path.name}.{what}")


def _is_partial(path: Path) -> bool:
    """Whether it is what a killed process has left of a ``maps.json``."""
    return path.name.startswith(".maps.json.") and path.name.endswith(".partial")


def _are(names: object) -> str:
    listed = list(names)  # type: ignore[call-overload]
    return f"are: {', '.join(listed)}" if listed else "are none yet"


for _cls in (Maps, SplitMaps):
    capture.register(_cls)(lambda maps: maps)
