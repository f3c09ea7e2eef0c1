"""Memory that a child process sees too: big copies of an event that has hooks there are made in it.

Segments are anonymous files, passed on by descriptor: nothing has a name that could be left behind, and no mount's
size bounds them (on a 64 MB /dev/shm, which containers have, a write past the end would kill the training). A segment
serves many small events, or one big one. Each event has one view of its part (a ``memoryview``), which all tensors and
arrays made over it hold: when the last of them has gone, here and in each child, that part may be written again.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import tempfile
import threading
import weakref

SLAB = 64 << 20  # bytes, at most, of a segment that several events share; who keeps a part keeps it whole
SMALLEST = 1 << 20  # bytes, at least
ALIGNMENT = 64  # bytes


class Segment:
    """A piece of shared memory.

    Attributes:
        number: how both ends call it.
        fd: its descriptor.
        address: where it is, in this process.
        size: bytes.
        filled: bytes that were given out since it was last free.
        users: parts that are in use: here, or in a child.
    """

    def __init__(self, number: int, size: int) -> None:
        self.fd = -1
        self.number = number
        self.size = size
        self.fd = _anonymous_file(size)
        self.memory = mmap.mmap(self.fd, size)
        self.address = ctypes.addressof(ctypes.c_char.from_buffer(self.memory))
        self.filled = 0
        self.users = 0

    def __repr__(self) -> str:
        return f"<Segment {self.number}: {self.size} bytes, {self.users} users>"

    def close(self) -> None:
        """Let go of it. The memory goes when the last view does."""
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)

    def __del__(self) -> None:
        self.close()


def _anonymous_file(size: int) -> int:
    if hasattr(os, "memfd_create"):
        fd = os.memfd_create("async_trainer", os.MFD_CLOEXEC)
    else:
        with tempfile.TemporaryFile() as file:
            fd = os.dup(file.fileno())
    os.ftruncate(fd, size)
    return fd


class Block:
    """The part of a segment that one event has.

    Attributes:
        view: of its bytes; whoever uses them holds it.
        start: where it begins in the segment, in bytes.
        filled: bytes of it that are taken.
    """

    __slots__ = ("filled", "segment", "start", "view")

    def __init__(self, segment: Segment, start: int, view: memoryview) -> None:
        self.segment = segment
        self.start = start
        self.view = view
        self.filled = 0

    @property
    def address(self) -> int:
        """Where it is, in this process."""
        return self.segment.address + self.start

    def take(self, nbytes: int) -> int | None:
        """Room for ``nbytes``: its place in the view; None: there is none."""
        place = self.filled
        end = place + -(-nbytes // ALIGNMENT) * ALIGNMENT
        if end > len(self.view):
            return None
        self.filled = end
        return place


class Segments:
    """The segments of a handler. Any thread.

    Args:
        limit: bytes that they should take together, about.
    """

    def __init__(self, limit: int = 2 << 30) -> None:
        self._slab = max(SMALLEST, min(SLAB, limit // 16))
        self._all: dict[int, Segment] = {}
        self._lock = threading.RLock()  # a garbage collection under it may let go of a part
        self._number = 0
        self._current: Segment | None = None

    @property
    def nbytes(self) -> int:
        """Bytes of all segments."""
        return sum(segment.size for segment in list(self._all.values()))

    def segment(self, number: int) -> Segment | None:
        """The segment of that number, if it is still there."""
        return self._all.get(number)

    def block(self, nbytes: int) -> Block:
        """A part of ``nbytes`` that nobody uses.

        Raises:
            OSError: there is no memory.
        """
        nbytes = max(-(-nbytes // ALIGNMENT) * ALIGNMENT, ALIGNMENT)
        with self._lock:
            segment = self._current
            if nbytes > self._slab // 4:
                segment = self._free(nbytes) or self._make(nbytes)
            elif segment is None or segment.filled + nbytes > segment.size:
                segment = self._current = self._free(self._slab, self._slab) or self._make(self._slab)
            segment.users += 1  # first: a garbage collection may let go of the last of the others
            start = segment.filled
            segment.filled += nbytes
        return Block(segment, start, self._view(segment, start, nbytes))

    def _view(self, segment: Segment, start: int, nbytes: int) -> memoryview:
        view = memoryview(segment.memory)[start : start + nbytes]
        _watched[id(view)] = weakref.ref(view, _Gone(id(view), self, segment))
        return view

    def _free(self, nbytes: int, at_most: int | None = None) -> Segment | None:
        fits = [
            one for one in self._all.values()
            if not one.users and one is not self._current and nbytes <= one.size <= (at_most or 2 * nbytes)
        ]  # fmt: skip
        return min(fits, key=lambda one: one.size, default=None)

    def _make(self, size: int) -> Segment:
        self._number += 1
        segment = self._all[self._number] = Segment(self._number, size)
        return segment

    def use(self, segment: Segment) -> None:
        """A child is about to see a part of it."""
        with self._lock:
            segment.users += 1

    def let_go(self, segment: Segment, count: int = 1) -> None:
        """Parts of it are used no more, here or in a child."""
        with self._lock:
            segment.users -= count
            if not segment.users:
                segment.filled = 0

    def trim(self, room: int) -> None:
        """Give memory back to the system until what is left unused takes at most ``room`` bytes."""
        with self._lock:
            unused = [one for one in self._all.values() if not one.users]
            over = sum(one.size for one in unused) - room
            for segment in unused:
                if over <= 0:
                    break
                over -= segment.size
                self._forget(segment)

    def _forget(self, segment: Segment) -> None:
        del self._all[segment.number]
        if self._current is segment:
            self._current = None
        segment.close()

    def after_fork(self) -> None:
        """In a forked child nobody is left to release the lock."""
        self._lock = threading.RLock()


_watched: dict[int, weakref.ref[memoryview]] = {}


class _Gone:
    __slots__ = ("key", "segment", "segments")

    def __init__(self, key: int, segments: Segments, segment: Segment) -> None:
        self.key, self.segments, self.segment = key, segments, segment

    def __call__(self, _: object) -> None:
        _watched.pop(self.key, None)
        self.segments.let_go(self.segment)
