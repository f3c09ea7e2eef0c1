"""What a child process tells its parent, by a thread of its own: so that no hook waits for the connection."""

from __future__ import annotations

import os
import pickle
import threading
from collections import deque
from typing import Any

from async_trainer.process.frames import PROTOCOL
from async_trainer.process.remade import mapped
from async_trainer.runtime.lane import Ending
from async_trainer.runtime.wire import Wire

DELIVERED: tuple[Any, ...] = ("settled", Ending.DELIVERED.value, 1, 1, None, None)


class Answers:
    """The half of a child that speaks."""

    def __init__(self, wire: Wire) -> None:
        self._wire = wire
        self._out: deque[tuple[Any, ...]] = deque()
        self._spans: deque[tuple[int, str, float, float]] = deque()  # event, callback, when its hook ran; if asked for
        self._took = (0.0, 0.0)  # s: wall and CPU time of the hooks, that the parent was told of
        self._took_of = 0  # jobs handled by then
        self._bell = threading.Lock()
        self._bell.acquire()
        self._answering = threading.Thread(target=self._answer, name="async_trainer-answers", daemon=True)
        self._handled = 0
        self._ending = False
        self.lane: Any = None

    def say(self, message: tuple[Any, ...]) -> None:
        """Tell the parent. Any thread; never waits."""
        self._out.append(message)
        self._ring()

    def _ring(self) -> None:
        try:
            self._bell.release()
        except RuntimeError:
            pass

    def _answer(self) -> None:
        while True:
            handled = self._handled
            if not self._bell.acquire(timeout=self._until_due()):
                self._took_of = handled  # what hooks took is added up a moment after they have ended
            ending = self._ending
            self._before_answer()
            messages = self._take()
            returned = mapped.take_returned()
            if returned:
                messages.append(("returned", returned))
            if messages:
                self._send(messages)
            if ending and not self._out:
                return

    def _send(self, messages: list[tuple[Any, ...]]) -> None:
        try:
            frame = pickle.dumps(messages, PROTOCOL)
        except Exception:  # a record of a class that can't be sent, say: what else there is must be
            frame = pickle.dumps([message for message in messages if _can_be_sent(message)], PROTOCOL)
        try:
            self._wire.send(frame)
        except (BrokenPipeError, ConnectionError):  # the parent is no more
            pass
        except OSError:  # nothing can be told any more: the parent must see that
            os._exit(1)

    def _take(self) -> list[tuple[Any, ...]]:
        messages: list[tuple[Any, ...]] = []
        delivered = 0
        while self._out:
            message = self._out.popleft()
            if message is DELIVERED:
                delivered += 1
                continue
            if delivered:
                messages.append((*DELIVERED[:2], delivered, *DELIVERED[3:]))
                delivered = 0
            messages.append(message)
        if delivered:
            messages.append((*DELIVERED[:2], delivered, *DELIVERED[3:]))
        if self._spans:  # of all that is settled here, and perhaps of more
            messages.insert(0, ("spans", [self._spans.popleft() for _ in range(len(self._spans))]))
        burden, (wall, cpu) = self.lane.burden, self._took
        if burden.wall != wall:
            self._took = (burden.wall, burden.cpu)
            messages.insert(0, ("took", self._took[0] - wall, self._took[1] - cpu))
        return messages

    def _until_due(self) -> float:
        """s: to look again; -1: when the bell rings."""
        return -1

    def _before_answer(self) -> None:
        """Something may be due."""


def _can_be_sent(message: tuple[Any, ...]) -> bool:
    try:
        pickle.dumps(message, PROTOCOL)
    except Exception:
        return False
    return True
