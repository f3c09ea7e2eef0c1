"""The settings of a handler, checked."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from typing import Any

from async_trainer.errors import ConfigurationError


def check_settings(
    *,
    events: Any,
    max_workers: Any,
    max_snapshot_bytes: Any,
    stall_timeout: Any,
    shutdown_timeout: Any,
    switch_interval: Any,
    synchronous: Any,
    timeline: Any,
) -> dict[str, Any]:
    """The settings, by name, as :class:`CallbacksHandler` documents them.

    Raises:
        ConfigurationError: a value that can't work; names the setting.
    """
    if not isinstance(synchronous, bool):
        raise ConfigurationError(f"synchronous must be True or False, not {synchronous!r}")
    if not isinstance(timeline, bool):
        raise ConfigurationError(f"timeline must be True or False, not {timeline!r}")
    return {
        "events": _names(events),
        "max_workers": _whole("max_workers", max_workers),
        "max_snapshot_bytes": _whole("max_snapshot_bytes", max_snapshot_bytes),
        "stall_timeout": _seconds("stall_timeout", stall_timeout),
        "shutdown_timeout": _seconds("shutdown_timeout", shutdown_timeout),
        "switch_interval": None if switch_interval is None else _seconds("switch_interval", switch_interval),
        "synchronous": synchronous,
        "timeline": timeline,
    }


def _names(events: Any) -> list[str]:
    if isinstance(events, str) or not isinstance(events, Iterable):
        what = "the str " if isinstance(events, str) else ""
        raise ConfigurationError(f"events must be a list of names, not {what}{events!r}")
    names = list(events)
    for name in names:
        if not (isinstance(name, str) and name.isidentifier() and name.startswith("on_")):
            raise ConfigurationError(f"events: {name!r} must be the name of a hook, such as 'on_rollout_end'")
    return names


def _whole(setting: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise ConfigurationError(f"{setting} must be a whole number, not {value!r}")
    if value < 1:
        raise ConfigurationError(f"{setting} must be 1 or more, not {value!r}")
    return value


def _seconds(setting: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ConfigurationError(f"{setting} must be a number, not {value!r}")
    if not 0 < value <= threading.TIMEOUT_MAX:
        raise ConfigurationError(f"{setting} must be above 0 s, and finite, not {value!r}")
    return value
