from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from tests.overlap.kit import PacedCopier, paced


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def pace(monkeypatch: pytest.MonkeyPatch) -> Iterator[PacedCopier]:
    """The copier is paused, but while the training waits for it."""
    with paced(monkeypatch) as pace:
        yield pace
