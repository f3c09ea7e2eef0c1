"""The interpreter lock's switch interval, while thread lanes are busy.

A thread that runs plain Python holds the interpreter for a whole interval each time the training thread wants it back
(after every torch call). 1e-5 s in place of 5e-3 s makes a training step behind a pure-Python callback some 10 to 100
times faster; ``async-trainer bench convoy`` measures it.
"""

from __future__ import annotations

import sys
import threading


class SwitchInterval:
    """Sets the process-wide interval at the first busy lane, restores it at the last, if it is still ours."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._busy: set[object] = set()
        self._before = 0.0
        self._ours = 0.0

    def enter(self, lane: object, seconds: float) -> None:
        """A thread lane becomes busy. The lane's thread."""
        with self._lock:
            if not self._busy:
                self._before = sys.getswitchinterval()
                sys.setswitchinterval(seconds)
                self._ours = sys.getswitchinterval()  # as the interpreter rounds it
            self._busy.add(lane)

    def leave(self, lane: object) -> None:
        """A thread lane becomes idle, or is given up; if it was busy. Any thread."""
        with self._lock:
            if lane in self._busy:
                self._busy.remove(lane)
                self._restore()

    def _restore(self) -> None:
        if not self._busy and sys.getswitchinterval() == self._ours:
            sys.setswitchinterval(self._before)

    def after_fork(self) -> None:
        """In a child no lane runs."""
        if self._busy:
            self._busy.clear()
            self._restore()
        self._lock = threading.Lock()


switch_interval = SwitchInterval()
"""One for the process, as the interval is."""
