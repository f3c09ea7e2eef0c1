"""Standing for an object of another library, so that the library doesn't see a difference."""

from __future__ import annotations

import sys
from typing import Any, NoReturn

from async_trainer.callback import label
from async_trainer.errors import ConfigurationError
from async_trainer.handler import CallbacksHandler


class Disguise:
    """``isinstance`` takes it for the object that it stands for.

    Attributes:
        handler: its handler.
    """

    _live: Any
    _elsewhere = "pass the other process the object itself, and move it to the background there"
    handler: CallbacksHandler

    @property  # type: ignore[misc]
    def __class__(self) -> Any:
        own = vars(self)
        return type(own["_live"]) if "_live" in own else type(self)

    def __repr__(self) -> str:
        return f"<{label(self._live)}, in the background>"

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        raise ConfigurationError(
            f"{label(self._live)} is in the background of this process, and can't be pickled or copied: "
            f"{self._elsewhere}"
        )

    def _refuse_fork(self) -> None:
        """Refuse a forked child: no hook would run there, and nothing be written.

        Raises:
            ConfigurationError: names the remedy.
        """
        if self.handler._forked:
            raise ConfigurationError(
                f"{label(self._live)} is in the background of the process that this one was forked from: "
                f"{self._elsewhere}"
            )


def end_run(handler: CallbacksHandler) -> None:
    """Wait for the lanes at the end of a run, and raise what is to be raised; while an error ends it, wait for
    ``shutdown_timeout`` at most."""
    error = sys.exc_info()[1]  # theirs end a run that has failed from within an except clause
    if error is None:
        handler.finish()
    else:
        handler.drain(error)
