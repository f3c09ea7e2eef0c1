"""Who may run: at most ``max_workers`` lanes at once, first come, first served."""

from __future__ import annotations

from collections import deque

from async_trainer.runtime.lane import Lane


class Slots:
    """A count of lanes that run, and a queue of those that want to. Pure: the pool calls it under its lock."""

    def __init__(self, size: int) -> None:
        self._free = size
        self._waiting: deque[Lane] = deque()

    @property
    def wanted(self) -> bool:
        """Whether a lane waits for a slot."""
        return bool(self._waiting)

    def acquire(self, lane: Lane) -> bool:
        """Give ``lane`` a slot, or put it in the queue."""
        if lane.slot:
            return True
        if lane.placement == "process":  # its hooks run elsewhere
            lane.slot = True
            return True
        if self._free > 0:
            self._free -= 1
            lane.slot = True
            return True
        if lane not in self._waiting:
            self._waiting.append(lane)
        return False

    def release(self, lane: Lane) -> Lane | None:
        """Take the slot of ``lane`` away. Returns the lane that has it now, and is to be rung."""
        if not lane.slot:
            if lane in self._waiting:
                self._waiting.remove(lane)
            return None
        lane.slot = False
        if lane.placement == "process":
            return None
        if self._waiting:
            heir = self._waiting.popleft()
            heir.slot = True
            return heir
        self._free += 1
        return None
