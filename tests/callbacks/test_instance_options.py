"""A class's ``background`` as a property, and ``when`` per event: what callbacks that capture seldom are built on."""

from __future__ import annotations

import pytest

from async_trainer import Callback, CallbacksHandler, background
from async_trainer.errors import ConfigurationError


class Chosen(Callback):
    def __init__(self, *steps: int) -> None:
        self.steps = steps
        self.seen: list[object] = []

    @property
    def background(self) -> dict[str, object]:  # type: ignore[override]
        return {"when": {"on_batch_end": self.wanted}}

    def wanted(self, *, step: int) -> bool:
        return step in self.steps

    def on_batch_end(self, *, step: int) -> None:
        self.seen.append(step)

    def on_epoch_end(self, *, step: int) -> None:
        self.seen.append(("epoch", step))


def test_each_instance_is_asked_for_the_events_that_it_named() -> None:
    one, other = Chosen(1), Chosen(2, 3)
    with CallbacksHandler([one, background(other)]) as handler:
        for step in (1, 2, 3):
            handler.call_event("on_batch_end", step=step)
        handler.call_event("on_epoch_end", step=4)
        handler.flush()
    assert one.seen == [1, ("epoch", 4)]
    assert other.seen == [2, 3, ("epoch", 4)]


@pytest.mark.parametrize(
    ("when", "message"),
    [
        ({"on_batch_ned": print}, r"when=\{'on_batch_ned': ...\}: there is no such event; did you mean 'on_batch_end'"),
        ({"on_batch_end": 3}, "when must be callable"),
        ({"on_batch_end": None}, "when must be callable, not None"),
    ],
)
def test_mistakes_in_when_are_refused(when: object, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        CallbacksHandler([background(Chosen(), when=when)])  # type: ignore[call-overload]
