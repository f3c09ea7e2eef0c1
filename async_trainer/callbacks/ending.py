"""Ending: of what a hook does only once, and that has failed: another attempt at the hook fails, too."""

from __future__ import annotations

from types import TracebackType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from async_trainer.routes import EventInfo


class Ending:
    """Remembers the error of the end of a run, as a file can't be closed twice: else a retry would find nothing to do,
    and the event would count as delivered.

    ::

        def on_train_end(self, *, event=None):
            self.ending.check(event)
            with self.ending:
                self.close()
    """

    def __init__(self) -> None:
        self._error: Exception | None = None

    def check(self, event: EventInfo | None) -> None:
        """Raise what the attempt before has raised, if ``event`` is tried again."""
        if self._error is not None and event is not None and event.attempt > 1:
            raise self._error
        self._error = None

    def __enter__(self) -> None:
        self._error = None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if isinstance(error, Exception):
            self._error = error
