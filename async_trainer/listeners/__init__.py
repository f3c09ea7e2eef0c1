"""Listeners: told what lanes do. Each in a file of its own, as ``OpenTelemetry`` needs a library."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from async_trainer.listeners.logs import LogHooks as LogHooks
    from async_trainer.listeners.otel import OpenTelemetry as OpenTelemetry
    from async_trainer.runtime.listening import LaneEvent as LaneEvent
    from async_trainer.runtime.listening import Listener as Listener

_HOMES = {
    "LaneEvent": "async_trainer.runtime.listening",
    "Listener": "async_trainer.runtime.listening",
    "LogHooks": "async_trainer.listeners.logs",
    "OpenTelemetry": "async_trainer.listeners.otel",
}
__all__ = sorted(_HOMES)


if not TYPE_CHECKING:  # else a misspelt name would be Any

    def __getattr__(name: str) -> Any:
        if name not in _HOMES:
            raise AttributeError(f"module 'async_trainer.listeners' has no attribute {name!r}")
        value = globals()[name] = getattr(import_module(_HOMES[name]), name)
        return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
