"""Tape: what the training thread notes for those who watch. It appends; a thread in the background reads."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Collection
from threading import get_ident
from typing import NamedTuple

clock = time.perf_counter

LENGTH = 200_000
"""Notes that wait at most, some 30 MB; older ones are forgotten. They are read each second."""


class Note(NamedTuple):
    """Something on a thread that fires events. Times in s of ``perf_counter``.

    ``kind``: ``"event"`` (``began`` is when it was fired), ``"inline"`` (its inline hooks), ``"capture"``, ``"wait"``
    (``name`` is for what), ``"barrier"``.
    """

    kind: str
    name: str
    began: float
    ended: float
    thread: int


class Tape:
    """Notes, in the order that they end in, thread by thread.

    Args:
        events: which events are noted.
        captures: note captures, too.

    Attributes:
        forgotten: how many notes were, for want of room.
    """

    def __init__(self, events: Collection[str], *, captures: bool) -> None:
        self.events = frozenset(events)
        self.captures = captures
        self._notes: deque[Note] = deque(maxlen=LENGTH)
        self.forgotten = 0

    def event(self, event: str) -> None:
        """``event`` is being fired. Any thread."""
        if event in self.events:
            now = clock()
            self._add(Note("event", event, now, now, get_ident()))

    def inline(self, event: str, began: float) -> None:
        """The inline hooks of ``event`` have run since ``began``. Any thread."""
        self._add(Note("inline", event, began, clock(), get_ident()))

    def capture(self, event: str, began: float, seconds: float) -> None:
        """``event`` was captured. Any thread."""
        if self.captures:
            self._add(Note("capture", event, began, began + seconds, get_ident()))

    def wait(self, cause: str, began: float, ended: float) -> None:
        """The thread has waited. Any thread."""
        self._add(Note("wait", cause, began, ended, get_ident()))

    def barrier(self) -> None:
        """A mark was put into each lane. Any thread."""
        now = clock()
        self._add(Note("barrier", "barrier", now, now, get_ident()))

    def _add(self, note: Note) -> None:
        if len(self._notes) == LENGTH:
            self.forgotten += 1
        self._notes.append(note)

    def take(self) -> list[Note]:
        """What was noted since the last time. One thread."""
        notes = []
        while self._notes:
            notes.append(self._notes.popleft())
        return notes
