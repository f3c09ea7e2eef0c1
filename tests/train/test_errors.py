"""What interrupts a run is told to every callback, drained, and then leaves as it is."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest

from async_trainer import CallbacksHandler, background
from async_trainer.errors import LaneError
from async_trainer.runtime import exits
from async_trainer.testing import hold
from tests.train.kit import Boom, FailsAt, loader, split, trainer

ERRORS = [Boom("of the model"), KeyboardInterrupt(), SystemExit(3)]
names = [type(error).__name__ for error in ERRORS]


class Hears:
    def __init__(self) -> None:
        self.heard: list[BaseException] = []
        self.batches = 0

    def on_batch_end(self, *, event: Any) -> None:
        self.batches += 1

    def on_exception(self, *, exception: BaseException, optimizers: Any, split: Any) -> None:
        assert optimizers["optimizer"].param_groups[0]["lr"] == 0.01, "the run's arguments are still there"
        self.heard.append(exception)


class FailsToHear:
    def __init__(self, error: BaseException) -> None:
        self.error = error

    def on_exception(self) -> None:
        raise self.error


@pytest.mark.parametrize("error", ERRORS, ids=names)
def test_it_reaches_inline_and_background_callbacks_before_it_leaves(tmp_path: Path, error: BaseException) -> None:
    inline, behind, awaited = Hears(), Hears(), HearsAsync()
    callbacks = [inline, background(behind), background(awaited)]
    with pytest.raises(type(error)) as raised:
        trainer(tmp_path, callbacks, model=FailsAt(error, forward=3)).train(split())
    assert raised.value is error
    assert inline.heard == behind.heard == awaited.heard == [error]
    assert behind.batches == 2, "all that came before is handled before the error leaves"


class HearsAsync:
    def __init__(self) -> None:
        self.heard: list[BaseException] = []

    async def on_exception(self, *, exception: BaseException) -> None:
        self.heard.append(exception)


@pytest.mark.parametrize("second", [ValueError("in on_exception"), SystemExit(4)], ids=["ValueError", "SystemExit"])
def test_an_error_in_one_on_exception_replaces_nothing_and_stops_no_other(
    tmp_path: Path, second: BaseException, caplog: pytest.LogCaptureFixture
) -> None:
    first, last, behind = Hears(), Hears(), Hears()
    error = Boom()
    callbacks = [first, FailsToHear(second), background(FailsToHear(second)), last, background(behind, name="behind")]
    with pytest.raises(Boom) as raised:
        trainer(tmp_path, callbacks, model=FailsAt(error, forward=1)).train(split())
    assert raised.value is error
    assert raised.value.__context__ is None
    assert first.heard == last.heard == behind.heard == [error]
    assert "FailsToHear.on_exception failed; what has ended the run" in caplog.text
    assert "fails_to_hear_1.on_exception failed" in caplog.text


def test_ctrl_c_while_callbacks_are_told_of_ctrl_c_ends_the_telling(tmp_path: Path) -> None:
    last = Hears()
    first, second = KeyboardInterrupt(), KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt) as raised:
        trainer(tmp_path, [FailsToHear(second), last], model=FailsAt(first, forward=1)).train(split())
    assert raised.value is second
    assert raised.value.__context__ is first
    assert last.heard == []


def test_a_failed_callback_whose_output_must_not_be_missed_makes_train_raise_when_it_is_done(tmp_path: Path) -> None:
    class Fails:
        def __init__(self) -> None:
            self.ends = 0

        def on_batch_end(self) -> None:
            raise ValueError("disk full")

        def on_train_end(self) -> None:
            self.ends += 1

    fails = Fails()
    study = trainer(tmp_path, [background(fails, on_error="raise_at_end")])
    with pytest.raises(LaneError, match="disk full") as raised:
        study.train(split())
    assert fails.ends == 1
    assert raised.value.report is not None
    assert raised.value.report.failed == 14
    assert study.maps.split(0).read()["status"] == "ended by LaneError"
    study.maps.split(0).checkpoint("final")
    study.callbacks.close()  # it was raised already


def test_it_never_masks_what_ended_the_training(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    class Fails:
        def on_batch_end(self) -> None:
            raise ValueError("disk full")

    fails = [background(Fails(), on_error="raise_at_end"), background(Fails(), on_error="raise", name="at_once")]
    error = Boom()
    study = trainer(tmp_path, CallbacksHandler(fails, shutdown_timeout=0.1), model=FailsAt(error, forward=2))
    with hold(study.callbacks), pytest.raises(Boom) as raised:
        study.train(split())
    assert raised.value is error
    assert "they go on in the background" in caplog.text
    with pytest.raises(LaneError, match="disk full"):
        study.callbacks.close()


def test_the_error_is_not_held_up_by_a_hung_callback_for_longer_than_the_shutdown_takes(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    handler = CallbacksHandler([background(Hears())], shutdown_timeout=0.2)
    study = trainer(tmp_path, handler, model=FailsAt(Boom(), forward=1))
    with hold(handler), caplog.at_level(logging.WARNING), pytest.raises(Boom):
        study.train(split())
    assert "still at work: hears" in caplog.text


def test_ctrl_c_waits_once_and_not_again_at_the_exit(tmp_path: Path) -> None:
    handler = CallbacksHandler([background(Hears())], shutdown_timeout=0.2)
    study = trainer(tmp_path, handler, model=FailsAt(KeyboardInterrupt(), forward=2))
    with hold(handler), pytest.raises(KeyboardInterrupt):
        study.train(split())
    assert exits._time_left(handler._pool, 0.0) == 0.0
    study.train(split(1))
    assert exits._time_left(handler._pool, 0.0) is None, "it was caught, and the handler goes on"


def test_after_an_error_the_trainer_can_train_the_next_split(tmp_path: Path) -> None:
    hears = Hears()
    study = trainer(tmp_path, [background(hears)], model=FailsAt(Boom(), forward=2))
    with pytest.raises(Boom):
        study.train(split())
    study.train(split(1))
    assert len(hears.heard) == 1
    assert study.maps.split(0).read()["status"] == "ended by Boom"
    assert study.maps.split(1).read()["status"] == "finished"
    study.test("split-1_final", "held-out", dataloader=loader(14, 4))


def test_what_leaves_train_has_been_flushed(tmp_path: Path) -> None:
    hears = Hears()
    study = trainer(tmp_path, [background(hears)])
    study.train(split())
    assert hears.batches == 14
    study.validate(0)
    assert hears.batches == 16
