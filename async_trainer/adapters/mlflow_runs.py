"""MLflow's active run, which is a thread's own: a lane's thread gets that of the thread that trains."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any


def runs_of_this_thread() -> Callable[[], None] | None:
    """What gives another thread, on which it is called, the runs that are active on this one, now and later.

    As with one thread: what is logged goes to the run that is open, and a run that one of them starts or ends, the
    other sees. None where MLflow isn't imported, or keeps its runs in another way.
    """
    fluent = sys.modules.get("mlflow.tracking.fluent")
    stack: Any = getattr(fluent, "_active_run_stack", None)  # as of MLflow 3; there is no public way
    if not hasattr(stack, "get") or not hasattr(stack, "set"):
        return None
    runs = stack.get()

    def share() -> None:
        if stack.get() is not runs:
            stack.set(runs)

    return share
