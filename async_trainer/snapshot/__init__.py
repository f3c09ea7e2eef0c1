"""Snapshots: values as they were at an event, for hooks that run later, elsewhere.

``take`` captures on the training thread; ``open_value`` gives each hook call what it may keep, on a worker. ``capture``
knows the types: those of torch, pandas and numpy from leaf files that are imported when such a value first comes.
"""

from __future__ import annotations

from async_trainer.snapshot.holding import held_by
from async_trainer.snapshot.kind import SMALL, Kind
from async_trainer.snapshot.memo import Memo
from async_trainer.snapshot.registry import Registry, capture, size, take
from async_trainer.snapshot.sealed import Scope, Sealed, open_value
from async_trainer.snapshot.standin import keep
from async_trainer.snapshot.store import Store

__all__ = [
    "SMALL",
    "Kind",
    "Memo",
    "Registry",
    "Scope",
    "Sealed",
    "Store",
    "capture",
    "held_by",
    "keep",
    "open_value",
    "size",
    "take",
]
