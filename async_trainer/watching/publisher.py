"""Publisher: writes down, once a second, how a run is doing, on a thread of its own."""

from __future__ import annotations

import atexit
import functools
import json
import logging
import os
import socket
import sys
import threading
import time
import weakref
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from async_trainer.errors import what_ended
from async_trainer.events import EVALUATION_STARTS, RUN_ENDS, RUN_STARTS, TRAINING_STARTS
from async_trainer.gate import Gate, uninterrupted
from async_trainer.runtime.failures import say
from async_trainer.runtime.stats import Stats
from async_trainer.watching import since, status
from async_trainer.watching.recording import Recording
from async_trainer.watching.steps import Steps
from async_trainer.watching.tape import Note, Tape
from async_trainer.watching.timeline import said

if TYPE_CHECKING:
    from async_trainer.handler import CallbacksHandler

clock = time.perf_counter

EVERY = 1.0  # s, between two status files
POINTS = 1000  # of the history: from so many seconds on, its points are further apart
LAST_WORDS = 2.0  # s, for the last ones to be written
CLEARS = EVALUATION_STARTS | TRAINING_STARTS | RUN_STARTS | RUN_ENDS
"""Events that are no part of a step: what comes between them and the next step's end is not counted as one."""


class Publisher:
    """What a run has in its folder for those who watch: ``status.json``, ``history.jsonl``, and ``timeline.json.gz``.

    The training thread only notes (see :class:`Tape`); all else is done on a thread of its own, each second. It holds
    the pool, not the handler, so that a dropped handler drains.

    Args:
        handler: whose run it is.
        folder: where the files go.
        step: the event that ends a step.
        timeline: the events that go into the timeline; None: there is none.
        append: go on with the history that is there, of a run that is resumed.
        progress: asked each second how far the run is, on that thread.
    """

    def __init__(
        self, handler: CallbacksHandler, folder: Path, *, step: str, timeline: tuple[str, ...] | None, append: bool,
        progress: Callable[[], Mapping[str, Any]] | None,
    ) -> None:  # fmt: skip
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.tape = Tape(timeline or {step, *CLEARS}, captures=timeline is not None)
        self._handler = weakref.ref(handler)
        self._pool = handler._pool
        self._last = handler.stats()
        self._before = self._last  # what isn't this run's
        self._step = step
        self._steps = Steps()
        self._evaluates = False
        self._inline = 0.0  # s
        self._progress = progress
        self._began = clock()
        self.recording: Recording | None = None
        if timeline is not None:
            self.recording = Recording(folder / status.TIMELINE, append=append, step=step)
        pid = os.getpid()
        self._about = {
            "what": status.WHAT, "format": status.FORMAT, "pid": pid,
            "process_began": status.process_began(pid), "host": socket.gethostname(),
            "pid_namespace": status.pid_namespace(), "started": time.time(),
            "timeline": timeline is not None,
        }  # fmt: skip
        history = folder / status.HISTORY
        if not append:
            history.unlink(missing_ok=True)
        self._append = append and history.exists()
        self._next_point = self._began
        self._how = "running"
        self._ending = Gate()
        self._over = Gate()
        self._thread: threading.Thread | None = None
        self._told = False  # that it can't write
        self._at_exit = functools.partial(_end_at_exit, weakref.ref(self))

    def __repr__(self) -> str:
        return f"<Publisher: {self.folder}, {self._how}>"

    @property
    def over(self) -> bool:
        """Whether its last words are written."""
        return self._over.is_open

    def start(self) -> None:
        """Start its thread, which writes the first status at once."""
        uninterrupted(self._start)
        atexit.register(self._at_exit)

    def _start(self) -> None:
        self._thread = threading.Thread(target=self._run, name="async_trainer-publish", daemon=True)
        self._thread.start()

    def end(self, how: str = "finished") -> None:
        """The run is over: its last words are written when this returns, or ``LAST_WORDS`` seconds have passed. Any
        thread; idempotent."""
        if not self._ending.is_open:
            self._how = how
            self._ending.open()
        if self._over.wait(LAST_WORDS) and self._thread is not None:
            self._thread.join(LAST_WORDS)
        atexit.unregister(self._at_exit)

    def after_fork(self) -> None:
        """In a forked child it says nothing."""
        self._thread = None
        self._ending.open()
        self._over.open()
        atexit.unregister(self._at_exit)

    def _run(self) -> None:
        """Its thread."""
        self._write()
        while not self._ending.wait(EVERY):
            if self._handler() is None and self._pool.ending and not self._pool.alive:  # dropped, and drained
                self._how = "finished"
                self._ending.open()
                break
            self._write()
        self._write()
        if self.recording is not None:
            self.recording.close()
        self._over.open()

    # ------------------------------------------------------------------------------------------------- what it writes

    def _write(self) -> None:
        self._try(self._write_status)
        if self.recording is not None:
            self._try(self.recording.write)

    def _try(self, write: Callable[[], None]) -> None:
        """It is not essential: a full disk, or a folder that was deleted, is told once."""
        try:
            write()
        except Exception as error:
            if not self._told:
                self._told = True
                say(logging.WARNING, "what the run is doing can't be written to %s: %s", self.folder, said(error))

    def _write_status(self) -> None:
        ends = self._how != "running"
        now = clock()
        stats = self._stats()
        notes = self.tape.take()
        for note in notes:
            if note.kind == "inline":
                self._inline += note.ended - note.began
            elif note.kind == "event":
                self._count(note)
        paid = {"inline hooks": self._inline, **since.paid(stats, self._before)}
        if ends:  # at once: what the timeline is behind with may take longer than the process has
            status.write(self.folder / status.NAME, self._content(stats, paid))
        if self.recording is not None:
            self.recording.add(notes, {name: lane.queued for name, lane in stats.lanes.items()}, now, ends=ends)
        status.write(self.folder / status.NAME, self._content(stats, paid))
        if now >= self._next_point or ends:
            self._next_point = now + max(EVERY, (now - self._began) / POINTS) - EVERY / 2
            self._add_to_history(stats, paid)

    def _count(self, note: Note) -> None:
        """Batches of an evaluation are no steps, and an evaluation is no part of one."""
        if note.name in CLEARS:
            self._evaluates = note.name in EVALUATION_STARTS
            self._steps.interrupted()
        elif note.name == self._step and not self._evaluates:
            self._steps.ended(note.began)

    def _stats(self) -> Stats:
        handler = self._handler()
        if handler is not None:
            self._last = handler.stats()
        else:
            self._last = replace(self._last, lanes=self._pool.lane_stats(), waits=self._pool.waits)
        return self._last

    def _add_to_history(self, stats: Stats, paid: Mapping[str, float]) -> None:
        """A line for each point in time: what has changed since the one before, and what is."""
        recent = self._steps.take_recent()
        point = {
            "at": round(clock() - self._began, 3),
            "steps": self._steps.count,
            "step": [round(one, 7) for one in recent[1:]] if recent else None,
            "paid": {name: round(seconds, 6) for name, seconds in paid.items()},
            "lanes": {name: [lane.queued, round(lane.age, 3)] for name, lane in stats.lanes.items()},
        }
        if self._append:
            point["resumed"] = True
            self._append = False
        line = json.dumps(point, separators=(",", ":")).encode() + b"\n"
        with (self.folder / status.HISTORY).open("ab", buffering=0) as file:
            size, written = file.seek(0, os.SEEK_END), 0
            try:
                while written < len(line):
                    written += file.write(line[written:])
            except OSError:  # a full disk; half a line would spoil all that comes
                file.truncate(size)
                raise

    def _content(self, stats: Stats, paid: Mapping[str, float]) -> dict[str, Any]:
        steps = self._steps
        return {
            **self._about,
            "state": self._how,
            "written": time.time(),
            "progress": dict(self._progress()) if self._progress is not None else {},
            "steps": {
                "event": self._step,
                "count": steps.count,
                "seconds": steps.seconds,
                "median": steps.quantile(0.5),
                "p99": steps.quantile(0.99),
                "classes": {str(place): count for place, count in sorted(steps.classes.items())},
            },
            "loop": {
                "seconds": clock() - self._began,
                "captures": stats.captures - self._before.captures,
                "paid": paid,
                "phases": self.recording.phases if self.recording is not None else {},
            },
            "memory": {
                "snapshots": stats.snapshot_bytes,
                "budget": stats.max_snapshot_bytes,
                "kept": stats.kept_bytes,
            },
            "lanes": since.lanes(stats, self._before),
            "errors": since.errors(stats, self._before),
            "timeline_full": self.recording is not None and self.recording.full,
            "forgotten": self.tape.forgotten,
        }  # fmt: skip


def _end_at_exit(publisher: weakref.ref[Publisher]) -> None:
    """The process ends, and nobody has closed the handler."""
    one = publisher()
    if one is not None:
        error = getattr(sys, "last_value", None)
        one.end(f"ended by {what_ended(error)}" if error is not None else "finished")
