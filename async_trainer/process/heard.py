"""What the parent's logging and warnings are to a child process: its records go there, its filters are those."""

from __future__ import annotations

import copy
import logging
import logging.handlers
import pickle
import warnings
from collections.abc import Callable
from typing import Any

from async_trainer.process.frames import PLAIN


def set_warning_filters(pickled: list[bytes]) -> None:
    """As in the parent: what was silenced there is silent here."""
    warnings.resetwarnings()
    for one in reversed(pickled):
        try:
            action, message, category, module, line = pickle.loads(one)
        except Exception:  # of a class that can't be imported here
            continue
        text, where = (
            pattern if pattern is None or isinstance(pattern, str) else pattern.pattern for pattern in (message, module)
        )
        warnings.filterwarnings(action, text or "", category, where or "", line)


def _plain(value: Any) -> Any:
    """Of a class of its own (an ``IntEnum``), the plain value."""
    base = next((cls for cls in (bool, int, float, str, bytes) if isinstance(value, cls)), None)
    return value if base is None or type(value) is base else base(value)


class ToParent(logging.handlers.QueueHandler):
    """Log records go to the parent's handlers."""

    def __init__(self, say: Callable[[tuple[Any, ...]], None]) -> None:
        super().__init__(None)  # type: ignore[arg-type]
        self._say = say

    def prepare(self, record: logging.LogRecord) -> logging.LogRecord:
        # As QueueHandler's, save that a traceback stays apart: the parent's formatters decide where it goes.
        made = copy.copy(record)
        made.msg = made.message = record.getMessage()
        made.args = made.exc_info = None
        if record.exc_info and record.exc_info[0] is not None and not record.exc_text:
            made.exc_text = logging.Formatter().formatException(record.exc_info)
        return made

    def enqueue(self, record: logging.LogRecord) -> None:
        fields = {name: _plain(held) for name, held in vars(record).items() if isinstance(held, PLAIN)}
        self._say(("log", fields))
