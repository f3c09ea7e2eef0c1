"""Imports that leave the random numbers of a training alone."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def undisturbed() -> Iterator[None]:
    """Within it, import what would be imported by a lane's thread, while the training draws: rich, which httpx imports,
    and s3fs with it, draws from Python's own generator. The thread that makes the callback."""
    state = random.getstate()
    try:
        yield
    finally:
        random.setstate(state)
