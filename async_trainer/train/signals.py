"""SIGTERM, which schedulers send before they take the machine: the training ends after the batch, or the epoch."""

from __future__ import annotations

import logging
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

logger = logging.getLogger("async_trainer")
STATUS = 143  # 128 + SIGTERM


class Termination:
    """Whether SIGTERM came. The training thread."""

    def __init__(self) -> None:
        self.requested = False

    def act(self) -> None:
        """End the run if it was asked for.

        Raises:
            SystemExit: with the status 143, which says that SIGTERM ended the process.
        """
        if self.requested:
            sys.exit(STATUS)


@contextmanager
def termination() -> Iterator[Termination]:
    """Within it the first SIGTERM is noted, and a second one ends the process at once.

    Only on the main thread, and only where nobody else has anything to say about SIGTERM: elsewhere it is left alone.

    Raises:
        SystemExit: at the end, if it was noted and nobody has acted since.
    """
    asked = Termination()
    ours = threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL

    def note(number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        asked.requested = True

    if not ours:
        yield asked
        return
    signal.signal(signal.SIGTERM, note)
    try:
        yield asked
    except Exception as error:
        if asked.requested:  # the error has been told, and doesn't keep the process from ending
            logger.error("%r, and SIGTERM had come: the process ends", error)
            asked.act()
        raise
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
    asked.act()
