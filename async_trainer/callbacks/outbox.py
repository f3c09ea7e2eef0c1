"""Outbox: rows for a service that may be away. Sent in order, in batches; what it has not taken waits here."""

from __future__ import annotations

import email.utils
import logging
import time
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any

SEND_SECONDS = 1.0
"""How long rows may wait for others to be sent with."""
LONGEST_WAIT = 30.0
"""Seconds between two attempts at a service that is away, at most, unless it asks for more."""
LONGEST_ASKED = 300.0
"""Seconds that a service is left alone for, whatever it asks for: what waits has a limit."""

logger = logging.getLogger("async_trainer")


class SinkError(OSError):
    """A service has not taken what it was sent. Its text holds no credentials.

    Args:
        text: what went wrong.
        retry_after: seconds after which it wants to be asked again, if it says so.
        final: it never will take it; the next thing, it may.
    """

    def __init__(self, text: str, *, retry_after: float | None = None, final: bool = False) -> None:
        super().__init__(text)
        self.retry_after = retry_after
        self.final = final


def asked_for(retry_after: str | None) -> float:
    """Seconds, of a ``Retry-After`` header: such a number, or a date. What makes no sense is 0."""
    if not retry_after:
        return 0.0
    if retry_after.isascii() and retry_after.isdecimal():
        return float(retry_after)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(retry_after).timestamp() - time.time())
    except (ValueError, OverflowError):
        return 0.0


class Outbox:
    """Rows that wait to be sent. Any one thread.

    Args:
        where: who sends, for messages.
        send: is given a list of rows. Raises a :class:`SinkError`, which names the service, if they were not taken.
        batch: rows in one sending, at most.
        limit: rows that may wait; beyond, the oldest are dropped, and counted.
        lose: is told of rows that were dropped or refused: the oldest of those that wait.
        clock: seconds.

    Attributes:
        dropped: rows for which there was no room.
        refused: rows that the service has refused for good.
    """

    def __init__(
        self,
        where: str,
        send: Callable[[list[Any]], None],
        *,
        batch: int,
        limit: int,
        lose: Callable[[list[Any]], None] = lambda rows: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.dropped = self.refused = 0
        self._where = where
        self._send = send
        self._batch = batch
        self._limit = limit
        self._lose = lose
        self._clock = clock
        self._rows: deque[Any] = deque()
        self._due = clock() + SEND_SECONDS
        self._wait = SEND_SECONDS
        self._error: SinkError | None = None  # the last, if nothing was taken since
        self._is_full = False

    def __repr__(self) -> str:
        return f"<Outbox: {len(self._rows)} waiting, {self.dropped} dropped, {self.refused} refused>"

    @property
    def waiting(self) -> list[Any]:
        """The rows that were not taken yet, the oldest first."""
        return list(self._rows)

    def add(self, rows: Iterable[Any]) -> None:
        """Have rows sent, some time."""
        self._rows.extend(rows)
        if len(self._rows) > self._limit and not self._is_full:
            self._is_full = True
            logger.warning("%s: %d rows wait; the oldest are dropped for those that come", self._where, self._limit)
        while len(self._rows) > self._limit:
            self._lose([self._rows.popleft()])
            self.dropped += 1

    def send_due(self) -> None:
        """Send, if it is time to, or much waits. That the service is away is logged once."""
        if self._clock() >= self._due or (self._error is None and len(self._rows) >= self._batch):
            self._try()

    def send_soon(self) -> None:
        """Send now, unless the service is away and wants to be left alone for a while."""
        if self._error is None or self._clock() >= self._due:
            self._try()

    def send_all(self) -> None:
        """Send all that waits.

        Raises:
            SinkError: the service does not take it: it still waits here. Counts what is not there.
        """
        self._try()
        if self._error is not None:
            missing = f"{len(self._rows)} rows are not there" if self._rows else "nothing can be sent"
            if self.dropped or self.refused:
                missing += f", {self.dropped} more were dropped, {self.refused} refused"
            raise SinkError(f"{self._error}; {missing}") from None

    def _try(self) -> None:
        while True:
            batch = [self._rows[n] for n in range(min(self._batch, len(self._rows)))]
            try:
                self._send(batch)
            except SinkError as error:
                if not error.final or not batch:
                    self._is_away(error)
                    return
                self.refused += len(batch)
                self._lose(batch)
                logger.warning("%s; %d rows were refused", error, len(batch))
            for _ in batch:
                self._rows.popleft()
            if self._error is not None:
                logger.info("%s: the service is back", self._where)
                self._error, self._is_full = None, False
            self._wait = SEND_SECONDS
            self._due = self._clock() + SEND_SECONDS
            if not self._rows:
                return

    def _is_away(self, error: SinkError) -> None:
        if self._error is None:
            waiting = f"{len(self._rows)} rows wait, and are sent later" if self._rows else "it is tried again later"
            logger.warning("%s; %s", error, waiting)
        self._error = error
        self._due = self._clock() + max(self._wait, min(error.retry_after or 0.0, LONGEST_ASKED))
        self._wait = min(2 * self._wait, LONGEST_WAIT)

    def check_complete(self) -> None:
        """Tell of rows that will never be sent.

        Raises:
            SinkError: there are such; counts them.
        """
        if self.dropped or self.refused:
            raise SinkError(
                f"{self._where}: {self.dropped} rows were dropped, as the service was away for too long, and "
                f"{self.refused} were refused",
                final=True,
            )
