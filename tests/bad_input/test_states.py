"""Arguments and states that can't be captured, states that belong to nobody."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from async_trainer import background, inline
from async_trainer.errors import CaptureError
from tests.bad_input.doubles import Make, Rows, message_of


class Counted(Rows):
    """Has a state."""

    def __init__(self) -> None:
        super().__init__()
        self.loaded: list[Any] = []

    def state_dict(self) -> dict[str, Any]:
        return {"rows": len(self.rows)}

    def load_state_dict(self, state_dict: Any) -> None:
        self.loaded.append(state_dict)


def test_an_argument_that_cannot_be_copied_fails_the_hooks_that_name_it_by_its_path(handlers: Make) -> None:
    class NamesBatch:
        def on_batch_end(self, *, batch: Any) -> None:
            raise AssertionError("it must not be called")

    class NamesState:
        def on_batch_end(self, *, state: Any) -> None: ...

    handler = handlers(background(NamesBatch(), retries=2), background(NamesState()))
    handler.call_event("on_batch_end", batch={"images": [1, threading.Lock()]}, state=1)
    report = handler.close()
    assert (report.delivered, report.failed) == (1, 1)
    [failure] = report.errors
    assert isinstance(failure.error, CaptureError)
    assert failure.attempt == 1
    assert str(failure.error) == (
        "names_batch.on_batch_end: batch['images'][1]: a _thread.lock can't be copied. Give a function for its type to "
        "capture.register, or leave it out: select={'batch': ...}"
    )


def test_states_of_unknown_callbacks_are_refused_and_nothing_is_loaded(handlers: Make) -> None:
    one, two = Counted(), Counted()
    handler = handlers(background(one, name="one"), inline(two))
    states = {"one": {"rows": 1}, "counted": {"rows": 2}, "gone": {}, "won": {}}
    assert message_of(lambda: handler.load_state_dict(states)) == (
        "load_state_dict: there is no callback 'gone', 'won'; there are 'one', 'counted'. A callback's name= is its "
        "key; leave out what is not to be loaded"
    )
    assert one.loaded == two.loaded == []
    handler.load_state_dict({"one": {"rows": 1}, "counted": {"rows": 2}})
    assert (one.loaded, two.loaded) == ([{"rows": 1}], [{"rows": 2}])


def test_a_state_for_a_callback_that_cannot_load_one_is_refused(handlers: Make) -> None:
    handler = handlers(background(Rows(), name="rows"))
    assert message_of(lambda: handler.load_state_dict({"rows": {}})) == (
        "load_state_dict: rows has a state, but no load_state_dict method"
    )


def test_a_callback_that_gets_no_state_is_warned_of(handlers: Make, caplog: pytest.LogCaptureFixture) -> None:
    handler = handlers(background(Counted(), name="one"), background(Counted(), name="two"))
    handler.load_state_dict({"one": {}})
    assert "load_state_dict: no state for two: it stays as it is" in caplog.text


@pytest.mark.parametrize("wrap", [background, inline])
def test_a_state_that_cannot_be_captured_names_the_callback_and_the_key(wrap: Any, handlers: Make) -> None:
    class Locked(Rows):
        def state_dict(self) -> dict[str, Any]:
            return {"file": {"lock": threading.Lock()}}

    handler = handlers(wrap(Locked()))
    message = message_of(handler.state_dict, CaptureError)
    assert message.startswith("locked.state_dict()['file']['lock']: a _thread.lock can't be copied")
    assert "select=" not in message  # which is for arguments


def test_an_error_of_a_callbacks_own_state_dict_reaches_the_caller(handlers: Make) -> None:
    class Broken(Rows):
        def state_dict(self) -> dict[str, Any]:
            raise RuntimeError("the disk is gone")

    handler = handlers(background(Broken()), background(Counted()))
    with pytest.raises(RuntimeError, match="the disk is gone"):
        handler.state_dict()
    handler.call_event("on_batch_end")
    assert handler.close().delivered == 2  # the lane goes on
