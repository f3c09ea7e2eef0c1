"""play fires the documented loop; hold stops lanes until told; the fixture closes what it made."""

from __future__ import annotations

import json
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import pytest

from async_trainer import Callback, CallbacksHandler, Event, background, inline
from async_trainer.testing import hold, play

pytest_plugins = ["pytester"]

TRACED = ("on_batch_start", "on_forward_step_start", "on_backward_step_start", "on_backward_step_end",
          "on_optimization_step_start", "on_optimization_step_end", "on_batch_end")  # fmt: skip
EVALUATED = ("on_batch_start", "on_evaluation_step_start", "on_metrics_computation_start",
             "on_metrics_computation_end", "on_batch_end")  # fmt: skip


class Everything:
    """Notes each event, and the names of its arguments."""

    def __init__(self) -> None:
        self.events: list[str] = []
        self.arguments: dict[str, set[str]] = {}

    def note(self, name: str, arguments: dict[str, Any]) -> None:
        self.events.append(name)
        self.arguments[name] = {argument for argument in arguments if argument != "event"}


def _hook(name: str) -> Any:
    def hook(self: Everything, **kwargs: Any) -> None:
        self.note(name, kwargs)

    return hook


for _event in Event:
    setattr(Everything, _event.value, _hook(_event.value))

DOCUMENTED = json.loads((Path(__file__).parent.parent / "data" / "events.json").read_text())


@pytest.mark.parametrize("wrap", [inline, background])
def test_play_fires_the_documented_order_and_arguments(wrap: Any) -> None:
    callback = Everything()
    play(wrap(callback), epochs=2, batches=3)
    epoch = ["on_epoch_start", *TRACED * 3, "on_validation_start", *EVALUATED * 2, "on_validation_end", "on_epoch_end"]
    assert callback.events == ["on_train_start", *epoch * 2, "on_train_end"]
    for name, arguments in callback.arguments.items():
        assert arguments == set(Event(name).arguments), name


def test_play_reports_what_became_of_the_events() -> None:
    class Fails(Callback):
        def on_epoch_end(self) -> None:
            raise ValueError("no")

    report = play(background(Fails()))
    assert (report.delivered, report.failed) == (0, 2)


def test_play_leaves_a_handler_open_and_the_random_generators_alone() -> None:
    import torch

    before = torch.get_rng_state()
    callback = Everything()
    handler = CallbacksHandler([background(callback)])
    play(handler)
    handler.call_event("on_exception", exception=ValueError("late"))
    handler.close()
    assert callback.events[-1] == "on_exception"
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("all_of_them", [True, False])
def test_within_hold_no_lane_takes_an_event_and_afterwards_all_are_handled_in_order(all_of_them: bool) -> None:
    callback = Everything()
    with CallbacksHandler([background(callback)]) as handler:
        with hold(None if all_of_them else handler):
            handler.call_event("on_train_start")
            handler.call_event("on_epoch_start")
            with pytest.raises(TimeoutError, match="everything"):
                handler.flush(timeout=0.05)
            assert callback.events == []
            assert handler.stats().lanes["everything"].queued == 2
        handler.flush()
        assert callback.events == ["on_train_start", "on_epoch_start"]


def test_the_fixture_fails_the_test_whose_hook_failed(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        """
        from async_trainer import background

        class Hook:
            def __init__(self):
                self.seen = []

            def on_batch_end(self, *, n):
                self.seen.append(1 / n)

        def test_works(callbacks_handler):
            hook = Hook()
            handler = callbacks_handler([background(hook)])
            handler.call_event("on_batch_end", n=1)
            handler.flush()
            assert hook.seen == [1]

        def test_fails(callbacks_handler):
            callbacks_handler([background(Hook())]).call_event("on_batch_end", n=0)
        """
    )
    installed = any(point.name == "async_trainer" for point in entry_points(group="pytest11"))
    options = [] if installed else ["-p", "async_trainer.pytest_plugin"]
    result = pytester.runpytest_subprocess(*options)
    result.assert_outcomes(passed=2, errors=1)
    result.stdout.fnmatch_lines(["*ZeroDivisionError*"])
