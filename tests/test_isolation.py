"""Law 2 through the handler: each leaf of each kind of argument is changed after call_event, the hook run later."""

from __future__ import annotations

from typing import Any

import pytest

from async_trainer import CallbacksHandler, background, capture, keep
from async_trainer.snapshot import Kind
from async_trainer.testing import hold
from tests.kinds import KINDS, Case


class Keeper:
    """Keeps what it is given, stand-ins included."""

    def __init__(self) -> None:
        self.received: Any = None

    def on_value(self, *, value: Any) -> None:
        self.received = keep(value)


def receive_after_changes(case: Case) -> list[Any]:
    """What two lanes receive of an event whose argument was changed, leaf by leaf, before they ran."""
    keepers = [Keeper(), Keeper()]
    handler = CallbacksHandler([background(keeper) for keeper in keepers], events=["on_value"])
    with handler:
        live = case.make()
        with hold(handler):
            handler.call_event("on_value", value=live)
            case.mutate(live)
        handler.flush()
    handler.close().raise_for_errors()
    return [keeper.received for keeper in keepers]


@pytest.mark.parametrize("case", KINDS, ids=str)
def test_a_hook_receives_the_argument_as_it_was_at_the_event(case: Case) -> None:
    for received in receive_after_changes(case):
        assert case.equal(received, case.make())


@pytest.mark.parametrize("case", KINDS, ids=str)
def test_with_the_live_object_the_same_test_fails(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(capture, "kinds", {})
    monkeypatch.setattr(capture, "kind", lambda cls: Kind("live", None))
    for received in receive_after_changes(case):
        assert not case.equal(received, case.make())


def test_what_one_lane_does_to_its_containers_another_does_not_see() -> None:
    class Pops:
        def on_value(self, *, value: dict[str, list[int]]) -> None:
            value.pop("a")
            value["b"].append(3)

    keeper = Keeper()
    handler = CallbacksHandler([background(Pops(), lane="one"), background(keeper, lane="one")], events=["on_value"])
    with handler:
        handler.call_event("on_value", value={"a": [1], "b": [2]})
    assert keeper.received == {"a": [1], "b": [2]}
