"""Runs a script in a process of its own, within a hard limit, and tells how it ended."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

LIMIT = 30.0  # s: a process that takes longer hangs
ROOT = Path(__file__).parents[2]

PRELUDE = """\
import os, signal, sys, threading, time
from async_trainer import Callback, CallbacksHandler, background
from tests.endings.kit import *
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where the tests run in the background of a shell
"""


@dataclass(frozen=True)
class Ended:
    """A process that has ended. ``status`` is negative for a signal; ``seconds`` as from ``begun()`` in the script."""

    status: int
    out: str
    err: str
    rows: list[str]
    seconds: float

    def check(self, status: int = 0) -> Ended:
        """It ended with ``status``, not in an abort or an error of the interpreter's."""
        assert self.status == status, f"status {self.status}, not {status}\n{self.out}\n{self.err}"
        for word in ("Fatal Python error", "terminate called", "Exception ignored", "core dumped", "Segmentation"):
            assert word not in self.err, self.err
        return self


class Child:
    """A process that runs ``script``, beside this one."""

    def __init__(self, folder: Path, script: str, *arguments: str, **environment: str) -> None:
        self._folder = folder
        path = folder / "script.py"
        path.write_text(PRELUDE + textwrap.dedent(script))
        self.process = subprocess.Popen(
            [sys.executable, str(path), *arguments],
            cwd=folder,
            env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **environment},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self._began = time.monotonic()
        self._heard = ""

    def wait_for(self, word: str) -> None:
        """Wait until the script has told ``word``."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._heard += line
            if line.strip() == word:
                self._began = time.monotonic()
                return
        raise AssertionError(f"it never said {word!r}: {self._heard}\n{self.process.communicate()[1]}")

    def send(self, signal: int) -> None:
        """Send it ``signal``; ``seconds`` count from here."""
        self._began = time.monotonic()
        self.process.send_signal(signal)

    def end(self, limit: float = LIMIT) -> Ended:
        """Wait until it has ended by itself."""
        try:
            out, err = self.process.communicate(timeout=limit)
        except subprocess.TimeoutExpired as late:
            self.process.kill()
            out, err = self.process.communicate()
            raise AssertionError(f"it hangs: not over after {limit} s\n{self._heard}{out}\n{err}") from late
        seconds = time.monotonic() - self._began
        rows = self._folder / "rows"
        lines = rows.read_text().splitlines() if rows.exists() else []
        return Ended(self.process.returncode, self._heard + out, err, lines, seconds)


def run(folder: Path, script: str, *arguments: Any, **environment: str) -> Ended:
    """Run ``script`` in ``folder`` to its end."""
    return Child(folder, script, *map(str, arguments), **environment).end()


def numbers(n: int) -> list[str]:
    """The rows of ``n`` steps that were all delivered, in order."""
    return [str(step) for step in range(n)]
