"""Callbacks that hear nothing of a run: its loop fires other events than they have hooks for."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping

from async_trainer.attach import Attached
from async_trainer.events import ONCE_PER_RUN, RUN_STARTS, TRAINING_RUNS, Event
from async_trainer.routes import Route

logger = logging.getLogger("async_trainer")


def warn_of_unheard(attached: Iterable[Attached], routes: Mapping[str, Route | None]) -> None:
    """A run has ended well: tell of background callbacks that had none of its events, but for its start and end.

    Not of a Trainer's, which fires each event that is due, nor of a validation's or a test's, where those of a training
    have nothing to do.

    Args:
        attached: the callbacks.
        routes: of the events that were fired, or that somebody hears.
    """
    fired = {event: None for event, route in routes.items() if route is None or route.fired}
    if fired.keys() & {Event.TRAINER_INIT, Event.EXCEPTION}:
        return
    if fired.keys() & RUN_STARTS and not fired.keys() & TRAINING_RUNS:
        return
    between = [event for event in fired if event not in ONCE_PER_RUN]
    for one in attached:
        wanted = [event for event in one.hooks if event not in ONCE_PER_RUN]
        if between and wanted and one.lane is not None and not fired.keys() & set(wanted):
            logger.warning(
                "%s has had nothing to do: it has hooks for %s, and this loop has fired none of these, but %s",
                one.name, ", ".join(wanted), ", ".join(between),
            )  # fmt: skip
