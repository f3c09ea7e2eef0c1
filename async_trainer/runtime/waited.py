"""What was waited for: seconds by cause, each wait noted where somebody wants to know."""

from __future__ import annotations

import time
from typing import Protocol

clock = time.perf_counter
SHORT = 1e-6  # s: no wait, but a look


class Notebook(Protocol):
    """Who notes waits, and barriers."""

    def wait(self, cause: str, began: float, ended: float) -> None:
        """The calling thread has waited from ``began`` to ``ended``, in s of ``perf_counter``."""

    def barrier(self) -> None:
        """The calling thread is about to put a mark into each lane."""


class Waited(dict[str, float]):
    """Seconds by cause. Added to by the threads that wait, each right after its wait."""

    notebooks: tuple[Notebook, ...] = ()

    def __setitem__(self, cause: str, seconds: float) -> None:
        if self.notebooks:
            ended, took = clock(), seconds - self[cause]
            if took > SHORT:
                for notebook in self.notebooks:
                    notebook.wait(cause, ended - took, ended)
        super().__setitem__(cause, seconds)
