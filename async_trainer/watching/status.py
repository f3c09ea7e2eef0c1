"""The status file of a run: what it publishes once a second, and what that tells of a run that is no more."""

from __future__ import annotations

import json
import logging
import os
import re
import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from async_trainer.errors import ConfigurationError

logger = logging.getLogger("async_trainer")

FORMAT = 1
NAME = "status.json"
HISTORY = "history.jsonl"
TIMELINE = "timeline.json.gz"
WHAT = "async_trainer status"
"""What a status file says that it is, in its first bytes."""

_FIELDS: Mapping[str, Any] = {
    "pid": int, "host": str, "started": (int, float), "written": (int, float), "state": str, "progress": dict,
    "steps": dict, "loop": dict, "memory": dict, "lanes": dict, "errors": list,
}  # fmt: skip

STALE = 10.0
"""Seconds without a word after which a run whose process is there, or can't be asked for, counts as stale."""


@dataclass(frozen=True, slots=True)
class Status:
    """What a run said last, and how it is.

    Attributes:
        path: the status file.
        said: its content.
        state: ``"running"``, ``"finished"``, ``"ended by ValueError"``, ``"killed"`` (its process is gone, without a
            word), ``"stale"`` (its process may be there, but has said nothing for ``STALE`` seconds).
        age: seconds since it was written.
    """

    path: Path
    said: Mapping[str, Any]
    state: str
    age: float

    @property
    def over(self) -> bool:
        """Whether nothing more is to be expected."""
        return self.state not in ("running", "stale")

    @property
    def good(self) -> bool:
        """Whether it runs, or has ended as it should."""
        return self.state in ("running", "finished")

    @property
    def seconds(self) -> float:
        """How long it ran, or has run so far, in s."""
        until: float = self.said["written"]
        return max(0.0, until - float(self.said["started"]))


def find(run: Path) -> list[Path]:
    """The status files of a run's folder: its own, and those of its splits, the newest last. Of a file: that one.

    Raises:
        ConfigurationError: there is none; says how a run publishes one.
    """
    if run.is_file():
        return [run]
    found = [path for path in (run / NAME, *run.glob(f"split-*/{NAME}")) if path.is_file()]
    if not found:
        what = "holds no status file" if run.is_dir() else "does not exist"
        raise ConfigurationError(
            f"{run} {what}: a Trainer's run has one from the start of its training on; a loop of your own after "
            f"handler.publish({str(run)!r})"
        )
    return sorted(found, key=lambda path: (path.stat().st_mtime, split_number(path)))


def split_number(path: Path) -> int:
    """Of the status file of a split: which one; else -1."""
    match = re.fullmatch(r"split-(\d+)", path.parent.name)
    return int(match[1]) if match else -1


def read(path: Path) -> Status:
    """Read a status file. It appears as a whole, so it can be read at any time.

    Raises:
        ConfigurationError: it is damaged, or of another version, or no status file.
    """
    try:
        said = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ConfigurationError(f"{path} is damaged: {error}") from error
    if not isinstance(said, dict) or said.get("format") != FORMAT or said.get("what") != WHAT:
        raise ConfigurationError(f"{path} is no status file of this version of async_trainer")
    for field, kind in _FIELDS.items():
        if not isinstance(said.get(field), kind):
            raise ConfigurationError(f"{path} is damaged: its {field!r} is {type(said.get(field)).__name__}")
    age = max(0.0, time.time() - said["written"])
    return Status(path, said, _state(said, age), age)


def warn_of_another(folder: Path) -> None:
    """Tell that a run which goes on publishes in the same folder."""
    path = folder / NAME
    try:
        another = path.is_file() and read(path).state == "running"
    except (ConfigurationError, OSError):
        return
    if another:
        logger.warning(
            "publish: another run tells in %s how it is doing, and what one says replaces what the other does: give "
            "each a folder of its own", folder,
        )  # fmt: skip


def is_status(path: Path) -> bool:
    """Whether it is a status file: of this moment, and of the place where the run is."""
    if path.name != NAME:
        return False
    with path.open("rb") as file:
        return WHAT.encode() in file.read(100)


def _state(said: Mapping[str, Any], age: float) -> str:
    state: str = said["state"]
    if state != "running":
        return state
    ours = pid_namespace()
    here = said["host"] == socket.gethostname() and said.get("pid_namespace", ours) == ours
    if here and process_began(said["pid"]) != said["process_began"]:
        return "killed"
    return "stale" if age > STALE else "running"


def pid_namespace() -> str | None:
    """What tells the numbers of processes from those of another container with the same host's name. None: there are
    no namespaces here."""
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return None


def process_began(pid: int) -> str | None:
    """What tells a process from a later one of the same number; None: there is none.

    On Linux the ticks at which it began; elsewhere only whether it is there.
    """
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return None if fields[0] in "ZX" else fields[19]
    except FileNotFoundError:
        if Path("/proc/self/stat").exists():
            return None
    except OSError:
        return None
    if os.name == "nt":  # there kill() kills
        return "there"
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except OSError:
        pass
    return "there"


def write(path: Path, content: Mapping[str, Any]) -> None:
    """Replace a status file, as a whole. Not synced: a power cut may cost the last word.

    In ASCII: an error's text may hold what no file takes.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        partial.write_text(json.dumps(content, separators=(",", ":")), encoding="utf-8")
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
