"""Interrupted and resumed equals uninterrupted, bit by bit."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from async_trainer import Callback, background
from tests.resume.kit import BATCHES, EPOCHS, Stops, StopsAt, computational, difference, outcome, split, trainer


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Any]:
    made = trainer(tmp_path_factory.mktemp("whole"))
    return outcome(made, made.train(split(), computational()))


@pytest.mark.parametrize(
    "epoch", [pytest.param(epoch, marks=pytest.mark.slow if epoch != 2 else ()) for epoch in range(1, EPOCHS + 1)]
)
@pytest.mark.parametrize("batch", range(BATCHES + 1))
def test_a_training_interrupted_anywhere_goes_on_as_if_nothing_had_happened(
    tmp_path: Path, uninterrupted: Mapping[str, Any], epoch: int, batch: int
) -> None:
    if (epoch, batch) in ((EPOCHS, 0), (1, 1), (1, 2), (1, 3)):
        pytest.skip("nothing to interrupt, or nothing was kept yet")
    interrupted = trainer(tmp_path / "maps", StopsAt(epoch, batch))
    with pytest.raises(Stops):
        interrupted.train(split(), computational())
    made = trainer(tmp_path / "maps", resume=True)
    assert difference(uninterrupted, outcome(made, made.resume(0, split()))) == []


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_after_ctrl_c_callbacks_were_told_and_it_goes_on_as_exactly(
    tmp_path: Path, uninterrupted: Mapping[str, Any], error: type[BaseException]
) -> None:
    class Told(Callback):
        def __init__(self) -> None:
            self.errors: list[type[BaseException]] = []

        def on_exception(self, *, exception: BaseException) -> None:
            self.errors.append(type(exception))

    told = [Told(), Told()]
    with pytest.raises(error):
        trainer(tmp_path / "maps", told[0], background(told[1]), StopsAt(2, 5, error)).train(split(), computational())
    assert [one.errors for one in told] == [[error], [error]]
    made = trainer(tmp_path / "maps", resume=True)
    assert difference(uninterrupted, outcome(made, made.resume(0, split()))) == []
