"""Recording: a run's timeline on its way to its file."""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path

from async_trainer.runtime.listening import LaneEvent
from async_trainer.watching.tape import LENGTH, Note
from async_trainer.watching.timeline import Chrome, Timeline
from async_trainer.watching.trace_file import TraceFile


class Recording:
    """Hears what lanes do, is given what the tape has, and writes both. One thread, but for :meth:`lane_event`.

    Args:
        path: the file; made at the first write, since the run must not end where it can't be.
        append: go on with the file that is there.
        step: the event that ends a step.
    """

    def __init__(self, path: Path, *, append: bool, step: str) -> None:
        self._path = path
        self._append = append
        self._timeline = Timeline(pid=os.getpid(), step=step, offset=time.time_ns() - time.perf_counter_ns())
        self._heard: deque[LaneEvent] = deque(maxlen=LENGTH)
        self._pending: list[Chrome] = []  # not in the file yet
        self._file: TraceFile | None = None

    def __repr__(self) -> str:
        return f"<Recording: {self._path}>"

    def lane_event(self, event: LaneEvent) -> None:
        """What a lane did. The lanes' threads."""
        self._heard.append(event)

    @property
    def phases(self) -> dict[str, float]:
        """Seconds by part of the loop."""
        return dict(self._timeline.phases)

    @property
    def full(self) -> bool:
        """Whether the file takes no more."""
        return self._file is not None and self._file.full

    def add(self, notes: Sequence[Note], queued: Mapping[str, int], now: float, *, ends: bool) -> None:
        """What came since the last time.

        Args:
            notes: from the tape.
            queued: by lane, the events that wait.
            now: s.
            ends: the run is over.
        """
        timeline = self._timeline
        made = timeline.notes(notes)
        made += timeline.lane_events([self._heard.popleft() for _ in range(len(self._heard))])
        made += timeline.queues(queued, now)
        if ends:
            made += timeline.end(now)
        self._pending = [*self._pending, *made][-LENGTH:] if self._pending else made

    def write(self) -> None:
        """Write what was added. What can't be written now is kept for the next time.

        Raises:
            OSError: the disk is full, say.
        """
        if self._file is None:
            self._file = TraceFile(self._path, append=self._append)
        base = self._file.base
        self._file.write([one if "ts" not in one else {**one, "ts": (one["ts"] - base) / 1e3} for one in self._pending])
        self._pending = []

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()
