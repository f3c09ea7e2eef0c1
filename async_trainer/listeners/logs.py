"""LogHooks: a line in the log for what lanes do."""

from __future__ import annotations

import logging

from async_trainer.errors import ConfigurationError
from async_trainer.runtime.listening import LaneEvent


class LogHooks:
    """A listener that logs a line for each background hook, with the numbers as attributes of the record too.

    Failures and stalls have a line in the log of ``async_trainer`` without it; here they are in line with the rest.

    Args:
        slow: log only hooks that took so many seconds or more, and those that weren't delivered.
        logger: default: ``async_trainer.lanes``.
        level: of the lines.

    Raises:
        ConfigurationError: ``slow`` is no number of seconds.
    """

    def __init__(self, *, slow: float = 0.0, logger: logging.Logger | None = None, level: int = logging.INFO) -> None:
        if isinstance(slow, bool) or not isinstance(slow, (int, float)) or not slow >= 0:
            raise ConfigurationError(f"LogHooks: slow must be seconds, 0 or more, not {slow!r}")
        self.slow = slow
        self.logger = logger or logging.getLogger("async_trainer.lanes")
        self.level = level

    def __repr__(self) -> str:
        return f"<LogHooks: {self.logger.name}>"

    def lane_event(self, event: LaneEvent) -> None:
        """Log it. The lane's thread."""
        took = event.ended - event.began
        if (event.kind in ("delivered", "passed") and took < self.slow) or not self.logger.isEnabledFor(self.level):
            return
        what = f"{event.callback}.{event.hook}" if event.callback else event.hook
        fields = {"lane": event.lane, "kind": event.kind, "seq": event.seq, "seconds": took}
        waited = max(0.0, event.began - event.emitted)
        self.logger.log(
            self.level, "%s %s: %.3f s, %.3f s after its event%s", what, event.kind, took, waited,
            f": {type(event.error).__name__}" if event.error is not None else "", extra=fields,
        )  # fmt: skip
