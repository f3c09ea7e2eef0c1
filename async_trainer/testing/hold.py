"""Lanes that wait until told."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from async_trainer.handler import CallbacksHandler
from async_trainer.runtime import exits


@contextmanager
def hold(handler: CallbacksHandler | None = None) -> Iterator[None]:
    """Within it, no lane takes an event: what is fired waits, and is handled afterwards, in order.

    A hook that is running when it begins goes on. ``flush`` within it would wait for ``stall_timeout``.

    Args:
        handler: whose lanes; None: those of all handlers that have started.
    """
    pools = [handler._pool] if handler is not None else exits.open_pools()
    with ExitStack() as holds:
        for pool in pools:
            holds.enter_context(pool.hold())
        yield
