"""In a child process: the memory of ``shared`` that its parent has made."""

from __future__ import annotations

import mmap
import os
import threading
import weakref
from typing import Any


class Mapped:
    """In a child: the segments that it was given, and how often it uses each."""

    def __init__(self) -> None:
        self._memory: dict[int, mmap.mmap] = {}
        self._lock = threading.RLock()
        self.returned: list[int] = []  # numbers of segments, once for each part that is used no more
        self.ring: Any = None  # called when there is news

    def add(self, number: int, size: int, fd: int) -> None:
        """The parent has made a segment."""
        self._memory[number] = mmap.mmap(fd, size)
        os.close(fd)

    def forget(self, number: int) -> None:
        """The parent uses it no more. What is made over it stays as it is."""
        self._memory.pop(number, None)

    def view(self, number: int, start: int, nbytes: int) -> memoryview:
        """One event's part."""
        view = memoryview(self._memory[number])[start : start + nbytes]
        _watched[id(view)] = weakref.ref(view, _Returned(id(view), self, number))
        return view

    def take_returned(self) -> list[int]:
        """The parts that are used no more since this was last called."""
        with self._lock:
            returned, self.returned = self.returned, []
        return returned

    def give_back(self, number: int) -> None:
        """Nothing uses a part of it any more."""
        with self._lock:
            self.returned.append(number)
        if self.ring is not None:
            self.ring()


_watched: dict[int, weakref.ref[memoryview]] = {}


class _Returned:
    __slots__ = ("key", "mapped", "number")

    def __init__(self, key: int, mapped: Mapped, number: int) -> None:
        self.key, self.mapped, self.number = key, mapped, number

    def __call__(self, _: object) -> None:
        _watched.pop(self.key, None)
        self.mapped.give_back(self.number)
