"""Runs to be watched, in processes of their own, and what it takes to wait for what they publish."""

from __future__ import annotations

import json
import os
import re
import select
import struct
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from async_trainer.errors import ConfigurationError
from async_trainer.watching import status
from async_trainer.watching.status import Status

ROOT = Path(__file__).parents[2]
LIMIT = 60.0  # s, on a busy machine
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PYTHONIOENCODING": "utf-8"}

LOOP = """
import sys, threading, time
from async_trainer import CallbacksHandler, background

class Plots:
    def on_batch_end(self, *, step):
        if step == 3:
            threading.Event().wait()

class Log:
    def on_batch_end(self, *, step):
        if step == 2:
            raise OSError("no <room> left")

"""
"""Of these, ``Plots`` never comes out of step 3."""


def until(look: Callable[[], Any]) -> Any:
    """What ``look`` returns, once that is something."""
    end = time.monotonic() + LIMIT
    while not (found := look()):
        assert time.monotonic() < end, "it has not come"
        time.sleep(0.02)
    return found


def said(folder: Path, wanted: Callable[[Status], bool]) -> Status:
    """The status in ``folder``, once it is as ``wanted``."""

    def look() -> Status | None:
        try:
            one = status.read(folder / status.NAME)
        except (FileNotFoundError, ConfigurationError):
            return None
        return one if wanted(one) else None

    found: Status = until(look)
    return found


@contextmanager
def running(code: str, folder: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that runs ``code`` in ``folder``, killed afterwards."""
    script = folder / "script.py"
    script.write_text(textwrap.dedent(code))
    process = subprocess.Popen(
        [sys.executable, str(script)], cwd=folder, env=ENVIRONMENT, text=True, stdin=subprocess.PIPE,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    try:
        yield process
    finally:
        process.kill()
        process.communicate(timeout=LIMIT)


def ended(code: str, folder: Path) -> int:
    """Run ``code`` in ``folder`` to its end. Returns its exit status."""
    with running(code, folder) as process:
        process.communicate(timeout=LIMIT)
        return process.returncode


def shown(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """What ``async-trainer watch --once`` prints, from a process of its own."""
    command = [sys.executable, "-m", "async_trainer", "watch", str(folder), "--once", *options]
    return subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=LIMIT)


class Terminal:
    """A terminal of 100 columns on which ``async-trainer watch`` runs, in a process of its own."""

    def __init__(self, folder: Path) -> None:
        import fcntl
        import pty
        import termios

        self._written = b""
        self._screen, inside = pty.openpty()
        fcntl.ioctl(inside, termios.TIOCSWINSZ, struct.pack("HHHH", 30, 100, 0, 0))
        self.process = subprocess.Popen(
            [sys.executable, "-m", "async_trainer", "watch", str(folder)], env={**ENVIRONMENT, "TERM": "xterm"},
            stdin=inside, stdout=inside, stderr=inside,
        )  # fmt: skip
        os.close(inside)

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait(LIMIT)
        os.close(self._screen)

    @property
    def shown(self) -> str:
        """All that was written to it, without what drives it."""
        return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", self._written.decode(errors="replace"))

    def wait_for(self, pattern: str) -> None:
        """Until it has been shown, since it was last waited for."""
        seen = len(self.shown)
        until(lambda: self._read() and re.search(pattern, self.shown[seen:]))

    def end(self) -> int:
        """Until the process has ended; returns its exit status."""
        until(lambda: not self._read())
        return self.process.wait(LIMIT)

    def _read(self) -> bool:
        """Whether there may be more."""
        if not select.select([self._screen], [], [], 0.1)[0]:
            return True
        try:
            read = os.read(self._screen, 1 << 16)
        except OSError:  # so Linux says that nobody is there any more
            return False
        self._written += read
        return bool(read)


def status_of(folder: Path, **changes: Any) -> Path:
    """A status file as a run would leave it, with ``changes``."""
    lane = {
        "delivered": 10, "failed": 0, "dropped": 0, "lost": 0, "queued": 0, "running": None, "seconds": 0.0, "age": 0.0,
        "over_limit": 0, "stalled": False, "placement": "thread", "size": 1024, "restarts": 0, "hook_seconds": 0.5,
        "cpu_seconds": 0.1,
    }  # fmt: skip
    content: dict[str, Any] = {
        "what": "async_trainer status", "format": 1, "pid": 1, "process_began": "1", "host": "elsewhere",
        "started": time.time() - 60, "written": time.time(), "timeline": False, "timeline_full": False,
        "state": "running", "progress": {}, "lanes": {"log": lane}, "errors": [],
        "steps": {"event": "on_batch_end", "count": 0, "seconds": 0.0, "median": None, "p99": None, "classes": {}},
        "loop": {"seconds": 60.0, "captures": 0, "paid": {"capturing": 0.0}, "phases": {}},
        "memory": {"snapshots": 0, "budget": 2 << 30, "kept": 0},
    }  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / status.NAME
    path.write_text(json.dumps({**content, **changes}))
    return path


class Page(HTMLParser):
    """An HTML page, read: its words, tags and attributes. A tag that is closed in the wrong place is an error."""

    VOID = frozenset({"meta", "br"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.words = ""
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.headings: list[str] = []
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert not self._open, self._open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in self.VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag: str) -> None:
        assert self._open, f"</{tag}> closes nothing"
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not self._open or self._open[-1] != "style":
            self.words += data + " "
        if self._open and self._open[-1] in ("h1", "h2"):
            self.headings.append(data.strip())
