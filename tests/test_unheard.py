"""A callback that a loop tells of nothing is told of, once, at the end: and no other is."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from async_trainer import Callback, CallbacksHandler, background, inline
from async_trainer.testing import play

TOLD = "has had nothing to do"


class Epochs(Callback):
    """Hears epochs, and the start and end of a run."""

    def on_train_start(self) -> None: ...
    def on_epoch_end(self) -> None: ...
    def on_validation_end(self) -> None: ...
    def on_train_end(self) -> None: ...
    def on_exception(self) -> None: ...


class Ends(Callback):
    def on_train_end(self) -> None: ...


def fire(handler: CallbacksHandler, *events: str) -> None:
    for event in events:
        handler.call_event(event)


def batches(handler: CallbacksHandler) -> None:
    fire(handler, "on_train_start", "on_batch_start", "on_batch_end", "on_batch_end", "on_train_end")


@pytest.mark.parametrize("attach", [background, lambda one: background(one, when=lambda **_: True)])
def test_one_whose_events_the_loop_does_not_fire_is_named_with_those_that_it_does(
    attach: Callable[[Any], Any], caplog: pytest.LogCaptureFixture
) -> None:
    handler = CallbacksHandler([attach(Epochs()), background(Ends())])
    batches(handler)
    handler.close()
    assert caplog.messages == [
        "epochs has had nothing to do: it has hooks for on_epoch_end, on_validation_end, and this loop has fired none "
        "of these, but on_batch_start, on_batch_end"
    ]


def test_it_is_told_once_also_where_the_handler_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    with CallbacksHandler([background(Epochs())]) as handler:
        for _ in range(2):
            batches(handler)
            handler.finish()
    assert caplog.text.count(TOLD) == 1


def test_what_another_callback_hears_counts_as_fired(caplog: pytest.LogCaptureFixture) -> None:
    class Batches(Callback):
        def on_batch_end(self) -> None: ...

    with CallbacksHandler([background(Epochs())]) as handler:
        handler.add_callbacks([background(Batches())])
        batches(handler)
    assert caplog.text.count(TOLD) == 1
    assert "epochs has had nothing to do" in caplog.text


@pytest.mark.parametrize(
    "events",
    [
        pytest.param(["on_train_start", "on_train_end"], id="a training without a batch"),
        pytest.param(["on_train_start", "on_batch_end", "on_epoch_end", "on_train_end"], id="one event was for it"),
        pytest.param(["on_train_start", "on_batch_end", "on_exception"], id="it failed"),
        pytest.param(["on_validate_start", "on_batch_end", "on_validate_end"], id="a validation"),
        pytest.param(["on_trainer_init", "on_train_start", "on_batch_end", "on_train_end"], id="a Trainer"),
        pytest.param([], id="nothing"),
    ],
)
def test_nobody_is_told_of_where_all_is_well(events: list[str], caplog: pytest.LogCaptureFixture) -> None:
    with CallbacksHandler([background(Epochs()), background(Ends())]) as handler:
        fire(handler, *events)
    assert TOLD not in caplog.text


def test_an_event_that_is_filtered_out_counts_as_fired(caplog: pytest.LogCaptureFixture) -> None:
    with CallbacksHandler([background(Epochs(), when=lambda **_: False)]) as handler:
        fire(handler, "on_train_start", "on_batch_end", "on_epoch_end", "on_train_end")
    assert TOLD not in caplog.text


def test_an_error_or_an_inline_callback_is_no_reason_to_tell(caplog: pytest.LogCaptureFixture) -> None:
    def fail() -> None:
        with CallbacksHandler([background(Epochs())]) as handler:
            fire(handler, "on_train_start", "on_batch_end")
            raise ValueError("the loop's")

    with pytest.raises(ValueError, match="the loop's"):
        fail()
    with CallbacksHandler([inline(Epochs())]) as handler:
        batches(handler)
    assert TOLD not in caplog.text


def test_a_trainer_s_run_tells_of_nobody(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    class Tests(Callback):
        def on_test_end(self) -> None: ...

    play([background(Tests())], epochs=1, batches=1, directory=tmp_path).raise_for_errors()
    assert TOLD not in caplog.text
