"""Which events a hook gets, and what of them: every, when, select."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch

from async_trainer import TrainerState, background
from async_trainer.callback import Placement
from async_trainer.errors import CaptureError
from tests.options.doubles import Loud, Make, Output, Rows, fire

# ---------------------------------------------------------------------------------------------------------------- every


def test_every_takes_each_nth_of_an_event_in_each_stage(placement: Placement, handlers: Make) -> None:
    rows = Rows()
    handler = handlers(background(rows, placement=placement, every={"on_batch_end": 50}))
    handler.call_event("on_train_start")
    fire(handler, 120, stage="training")
    handler.call_event("on_validation_start")
    fire(handler, 60, stage="evaluation")
    handler.call_event("on_validation_end")
    fire(handler, 40, stage="training, again")
    handler.call_event("on_epoch_end", n="epoch")
    handler.close()
    seen = [(row["n"], row.get("stage")) for row in rows.rows]
    assert seen == [(50, "training"), (100, "training"), (50, "evaluation"), (30, "training, again"), ("epoch", None)]


@pytest.mark.parametrize("start", ["on_validation_start", "on_validate_start", "on_test_start"])
def test_each_kind_of_evaluation_counts_apart_from_training(start: str, handlers: Make) -> None:
    rows = Rows()
    handler = handlers(background(rows, every={"on_batch_end": 3}))
    handler.call_event("on_train_start")
    fire(handler, 2)
    handler.call_event(start)
    fire(handler, 2)
    handler.call_event("on_train_start")
    fire(handler, 1)
    handler.close()
    assert rows.ns == [1]  # the third of training


def test_each_callback_counts_for_itself_and_events_that_are_left_out_reach_no_lane(handlers: Make) -> None:
    twos, threes = Rows(), Rows()
    handler = handlers(
        background(twos, every={"on_batch_end": 2}), background(threes, every={"on_batch_end": 3}, lane="threes")
    )
    fire(handler, 7, value=Loud())
    report = handler.close()
    assert (twos.ns, threes.ns) == ([2, 4, 6], [3, 6])
    assert report.delivered == 5
    assert handler.stats().lanes["threes"].pushed == 2


def test_what_every_leaves_out_is_not_captured(handlers: Make) -> None:
    class Names:
        def on_batch_end(self, *, value: Any) -> None: ...

    handler = handlers(background(Names(), every={"on_batch_end": 5}))
    for _ in range(14):
        handler.call_event("on_batch_end", value=Loud())
    handler.close()
    assert Loud.captured == 2


def test_every_counts_before_when_which_is_asked_for_no_other_event(handlers: Make) -> None:
    asked: list[int] = []

    def when(*, n: int, **kwargs: Any) -> bool:
        asked.append(n)
        return n % 4 == 0

    rows = Rows()
    handler = handlers(background(rows, every={"on_batch_end": 2}, when=when))
    fire(handler, 9)
    handler.close()
    assert asked == [2, 4, 6, 8]
    assert rows.ns == [4, 8]


def test_counts_go_on_when_callbacks_are_added(handlers: Make) -> None:
    rows = Rows()
    handler = handlers(background(rows, every={"on_batch_end": 3}))
    fire(handler, 2)
    handler.add_callbacks([background(Rows())])
    fire(handler, 1)
    handler.close()
    assert rows.ns == [1]


# ----------------------------------------------------------------------------------------------------------------- when


def test_when_gets_the_live_arguments_on_the_training_thread(placement: Placement, handlers: Make) -> None:
    seen: list[Any] = []

    def when(**arguments: Any) -> bool:
        seen.append((threading.get_ident(), arguments))
        return True

    state, loss = TrainerState(), torch.ones(2)
    handler = handlers(background(Rows(), placement=placement, when=when))
    handler.call_event("on_train_start", metrics="of the run")
    handler.call_event("on_batch_end", state=state, loss=loss)
    handler.close()
    [(thread, arguments)] = seen
    assert thread == threading.get_ident()
    assert arguments["state"] is state
    assert arguments["loss"] is loss
    assert arguments["metrics"] == "of the run"


def test_an_event_that_when_refuses_is_neither_captured_nor_counted(handlers: Make) -> None:
    class Names:
        def __init__(self) -> None:
            self.rows: list[Any] = []

        def on_batch_end(self, *, value: Any, n: int) -> None:
            self.rows.append((n, value))

    odd, every = Names(), Rows()
    handler = handlers(background(odd, when=lambda n, **_: n % 2), background(every))
    for n in range(4):
        handler.call_event("on_batch_end", n=n, value=Loud())
    handler.close()
    assert odd.rows == [(1, "captured"), (3, "captured")]
    assert every.ns == [0, 1, 2, 3]
    assert Loud.captured == 2
    assert handler.stats().lanes["names"].pushed == 2


def test_an_error_in_when_is_that_hooks_failure_and_is_not_tried_again(placement: Placement, handlers: Make) -> None:
    def when(*, n: int, **_: Any) -> bool:
        return 1 / n > 0.1

    rows, others = Rows(), Rows()
    options: dict[str, Any] = {"placement": placement}
    handler = handlers(background(rows, when=when, retries=3, backoff=0.0, **options), background(others, **options))
    for n in (1, 0, 2):
        handler.call_event("on_batch_end", n=n)
    report = handler.close()
    assert (rows.ns, others.ns) == ([1, 2], [1, 0, 2])
    [failure] = report.errors
    assert (failure.callback, failure.seq, failure.attempt) == ("rows", 2, 1)
    assert str(failure.error) == "rows.on_batch_end: when= raised ZeroDivisionError: division by zero"
    assert isinstance(failure.error.__cause__, ZeroDivisionError)


# --------------------------------------------------------------------------------------------------------------- select


def test_select_captures_what_its_function_returns_for_the_live_value(placement: Placement, handlers: Make) -> None:
    live = {"all": [1, 2, 3]}
    given: list[Any] = []

    def pick(output: Any) -> Any:
        given.append((threading.get_ident(), output))
        return output["all"]

    some, every = Output(), Output()
    options: dict[str, Any] = {"placement": placement}
    handler = handlers(background(some, select={"output": pick}, **options), background(every, **options))
    with handler._pool.hold():
        handler.call_event("on_batch_end", output=live)
        live["all"].append(4)  # what the function returned is captured, not referred to
    handler.close()
    assert given == [(threading.get_ident(), live)]
    assert given[0][1] is live
    assert (some.rows, every.rows) == ([[1, 2, 3]], [{"all": [1, 2, 3]}])


def test_select_none_captures_nothing_and_gives_none(placement: Placement, handlers: Make) -> None:
    output = Output()
    handler = handlers(background(output, placement=placement, select={"output": None}))
    handler.call_event("on_batch_end", output=Loud())
    handler.call_event("on_batch_end")  # nor does it have to be there
    handler.close()
    assert output.rows == [None, None]
    assert Loud.captured == 0


def test_select_reaches_what_comes_by_kwargs(handlers: Make) -> None:
    rows = Rows()
    handler = handlers(background(rows, select={"output": sum, "batch": None}))
    handler.call_event("on_batch_end", output=[1, 2], batch=Loud())
    handler.close()
    assert (rows.rows[0]["output"], rows.rows[0]["batch"]) == (3, None)
    assert Loud.captured == 0


def test_select_reaches_what_the_start_of_the_run_provides(handlers: Make) -> None:
    class NamesMetrics:
        def __init__(self) -> None:
            self.rows: list[Any] = []

        def on_batch_end(self, *, metrics: Any) -> None:
            self.rows.append(metrics)

    callback, metrics = NamesMetrics(), [0.5]
    handler = handlers(background(callback, select={"metrics": max}))
    handler.call_event("on_train_start", metrics=metrics)
    handler.call_event("on_batch_end")
    metrics.append(0.75)
    handler.call_event("on_batch_end")
    handler.close()
    assert callback.rows == [0.5, 0.75]


def test_an_error_in_select_is_that_hooks_failure_and_is_not_tried_again(placement: Placement, handlers: Make) -> None:
    bad, good = Output(), Output()
    options: dict[str, Any] = {"placement": placement, "retries": 3, "backoff": 0.0}
    handler = handlers(background(bad, select={"output": max}, **options), background(good, **options))
    handler.call_event("on_batch_end", output=[])
    handler.call_event("on_batch_end", output=[1])
    report = handler.close()
    assert (bad.rows, good.rows) == ([1], [[], [1]])
    [failure] = report.errors
    assert (failure.callback, failure.seq, failure.attempt) == ("output", 1, 1)
    assert isinstance(failure.error, CaptureError)
    assert str(failure.error).startswith(
        "output.on_batch_end: the function of select={'output': ...} raised ValueError: max()"
    )
