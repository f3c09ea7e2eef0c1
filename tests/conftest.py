"""What a test changes for its whole process is set back after it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import pytest


@pytest.fixture(autouse=True)
def _torch_threads() -> Iterator[None]:
    torch: Any = sys.modules.get("torch")
    before = torch.get_num_threads() if torch is not None else None
    yield
    torch = sys.modules.get("torch")
    if before is not None and torch.get_num_threads() != before:
        torch.set_num_threads(before)  # sums come out otherwise, in tests that compare with another process
