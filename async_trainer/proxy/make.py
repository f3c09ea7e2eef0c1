"""Making a proxy: its name, its lane, and every mistake that can be seen before anything runs."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Collection
from typing import TYPE_CHECKING, Any

from async_trainer.attach import find_lane, free_name
from async_trainer.callback import Options, merge_options, snake_case
from async_trainer.errors import ConfigurationError
from async_trainer.proxy.call import Place
from async_trainer.proxy.proxied import MISSING, Proxied, title_of
from async_trainer.proxy.stand_in import LogProxy, Proxy
from async_trainer.proxy.unanswered import Unanswered
from async_trainer.runtime.job import Owner
from async_trainer.runtime.pool import Pool

if TYPE_CHECKING:
    from async_trainer.handler import CallbacksHandler


def make_proxy(
    handler: CallbacksHandler, pool: Pool, names: Collection[str], target: Any, factory: Any, options: dict[str, Any]
) -> tuple[Any, Proxied]:
    """A proxy of ``target``, or of what ``factory`` returns; and what is behind it, with a lane that may be a new one.

    Raises:
        ConfigurationError: both or neither of ``target`` and ``factory``; an option that can't work.
    """
    if (target is MISSING) == (factory is None):
        raise ConfigurationError("proxy(): give either the object, or factory=a function that makes it on its lane")
    subject = target if factory is None else factory
    title = title_of(subject)
    if issubclass(type(subject), Unanswered):
        raise ConfigurationError(f"proxy(): {subject!r} stands for an object already")
    if factory is not None and (not callable(factory) or inspect.iscoroutinefunction(factory)):
        raise ConfigurationError(f"proxy(): factory must be a function that returns the object, not {factory!r}")
    for option in ("every", "when", "select"):
        if options.get(option) is not None:
            raise ConfigurationError(
                f"proxy({title}): {option}= is for events; a proxy makes each call that it is given"
            )
    checked = merge_options(Options(), options, f"proxy({title})")
    if checked.name in names:
        raise ConfigurationError(
            f"proxy({title}): there is a callback, proxy or lane {checked.name!r} already; give it another name="
        )
    word = title.rpartition(".")[2]
    name = checked.name or free_name(snake_case(word) if word.isidentifier() else "proxy", names)
    placement = checked.placement or ("task" if inspect.iscoroutinefunction(target) else "thread")
    lane = find_lane(f"proxy({title})", name, placement, checked, pool.lanes)
    owner = Owner(name, checked.on_error, checked.retries, checked.backoff, checked.timeout)
    home = Proxied(handler, pool, lane, owner, target, factory)
    made = LogProxy if isinstance(target, logging.Handler) else Proxy
    return made(Place(home), handler), home
