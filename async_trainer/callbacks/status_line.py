"""StatusLine: lines that stay, and on a terminal one below them that is drawn over and over."""

from __future__ import annotations

import logging
import os
import time
from typing import TextIO

REDRAW_SECONDS = 0.1
"""Between two drawings."""

ERASE = "\r\x1b[K"
clock = time.monotonic
logger = logging.getLogger("async_trainer")


class StatusLine:
    """Writes to a text stream. The cursor is never hidden and no mode is changed: there is nothing to put back.

    Args:
        file: the stream. When it can't be written to any more, that is logged once, and nothing is shown from then on.

    Attributes:
        is_live: whether there is a line to draw: on a terminal.
    """

    def __init__(self, file: TextIO) -> None:
        self._file = file
        self._is_broken = False
        self._drawn_at: float | None = None
        self._is_drawn = False
        self.is_live = is_terminal(file)
        self.is_unicode = str(getattr(file, "encoding", "")).lower().startswith("utf")

    def __repr__(self) -> str:
        name = getattr(self._file, "name", type(self._file).__name__)
        return f"<StatusLine: {name}{', a terminal' if self.is_live else ''}{', broken' if self._is_broken else ''}>"

    @property
    def is_due(self) -> bool:
        """Whether it is time to draw again."""
        return self.is_live and (self._drawn_at is None or clock() - self._drawn_at >= REDRAW_SECONDS)

    def draw(self, text: str) -> None:
        """Draw the line over, cut to the width of the terminal."""
        self._is_drawn = True
        self._write(ERASE + text[: max(0, self._columns() - 1)])  # a line that wraps could not be erased
        self._drawn_at = clock()  # after it: a slow terminal is drawn on less often

    def say(self, text: str) -> None:
        """Write a line that stays."""
        erase = ERASE if self._is_drawn else ""
        self._is_drawn = False
        self._write(f"{erase}{text}\n")

    def _columns(self) -> int:
        try:
            return os.get_terminal_size(self._file.fileno()).columns or 80
        except (OSError, ValueError):
            return 80

    def _write(self, text: str) -> None:
        if self._is_broken:
            return
        try:
            self._file.write(text)
            self._file.flush()
        except (OSError, ValueError, AttributeError) as error:  # it is closed, or can't encode the text, or is None
            self._is_broken, self.is_live = True, False
            logger.warning("Progress can't write any more; the run goes on without it: %s", error)


def is_terminal(file: TextIO) -> bool:
    """Whether a line on ``file`` can be drawn over."""
    try:
        return file.isatty() and os.environ.get("TERM") != "dumb"
    except (AttributeError, ValueError):  # ValueError: it is closed
        return False
