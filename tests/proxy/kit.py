"""Objects to make proxies of."""

from __future__ import annotations

import threading
from typing import Any

PATIENCE = 10.0
"""Seconds after which a test gives up waiting for what should have come at once."""


class Sink:
    """Remembers its calls."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self.threads: set[int] = set()

    def add(self, *args: Any, **kwargs: Any) -> tuple[Any, ...]:
        call = (*args, kwargs) if kwargs else args
        self.calls.append(call)
        self.threads.add(threading.get_ident())
        return call

    def other(self, *args: Any) -> None:
        self.calls.append(("other", *args))

    def fail(self, *args: Any) -> None:
        self.calls.append(("fail", *args))
        raise OSError("disk full")


class Gate(Sink):
    """A sink whose ``wait`` returns once the test opens the gate."""

    def __init__(self) -> None:
        super().__init__()
        self.reached = threading.Event()
        self.opened = threading.Event()

    def wait(self) -> None:
        self.reached.set()
        assert self.opened.wait(PATIENCE)


def shut(proxy: Any, gate: Gate) -> Any:
    """Have the lane of ``proxy`` wait at ``gate``; returns the handle of that call, which runs by now."""
    handle = proxy.wait()
    assert gate.reached.wait(PATIENCE)
    return handle
