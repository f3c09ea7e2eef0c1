"""What becomes of a hook that fails or hangs: on_error, retries, backoff, timeout."""

from __future__ import annotations

import logging
import random
import time
from typing import Any

import numpy as np
import pytest
import torch

from async_trainer import TrainerState, background
from async_trainer.callback import Placement
from async_trainer.errors import LaneError
from async_trainer.routes import EventInfo
from async_trainer.runtime.job import Owner
from tests.options.doubles import PATIENCE, Fails, Gate, Make, Rows, fire, until

# ------------------------------------------------------------------------------------------------------------- on_error


def test_log_logs_the_callback_the_event_the_step_and_the_attempt(
    placement: Placement, handlers: Make, caplog: pytest.LogCaptureFixture
) -> None:
    state = TrainerState(current_epoch=2, optim_step=7)
    handler = handlers(background(Fails(), placement=placement, name="plots", retries=1, backoff=0.0))
    with caplog.at_level(logging.ERROR, "async_trainer"):
        handler.call_event("on_batch_end", n=1, state=state)
        report = handler.close()  # which raises nothing
    [record] = caplog.records
    text = record.getMessage()
    assert text.startswith("plots.on_batch_end failed (event 1, epoch 2, step 7, attempt 2):\nTraceback")
    assert 'raise ValueError(f"no {n}")' in text
    assert text.rstrip().endswith("ValueError: no 1")
    [failure] = report.errors
    assert str(failure) == "plots.on_batch_end at epoch 2, step 7: ValueError: no 1"
    assert (failure.event, failure.seq, failure.attempt, failure.count) == ("on_batch_end", 1, 2, 1)


class Progress:
    current_epoch = 2
    optim_step = 7


class Untellable(Exception):
    def __str__(self) -> str:
        raise RuntimeError("not even that")


@pytest.mark.parametrize("state", [{"epoch": 2, "step": 7}, Progress(), TrainerState(current_epoch=2, optim_step=7)])
def test_the_step_is_told_from_whatever_state_the_loop_has(state: Any, handlers: Make) -> None:
    handler = handlers(background(Fails()))
    handler.call_event("on_batch_end", n=1, state=state)
    assert handler.close().errors[0].where == "epoch 2, step 7"


def test_an_error_that_cannot_even_be_printed_is_counted_and_the_lane_goes_on(
    placement: Placement, handlers: Make
) -> None:
    class Odd:
        def on_batch_end(self, *, n: int) -> None:
            raise Untellable

    handler = handlers(background(Odd(), placement=placement, on_error="raise_at_end"), background(Rows()))
    fire(handler, 3)
    with pytest.raises(LaneError, match=r"odd\.on_batch_end: Untellable \(3 times\)$"):
        handler.close()
    assert handler.close().failed == 3


def test_repeats_are_logged_ever_more_rarely_and_counted(
    placement: Placement, handlers: Make, caplog: pytest.LogCaptureFixture
) -> None:
    handler = handlers(background(Fails(), placement=placement))
    with caplog.at_level(logging.ERROR, "async_trainer"):
        fire(handler, 100)
        report = handler.close()
    texts = [record.getMessage() for record in caplog.records]
    assert len(texts) == 7  # the 1st, 2nd, 4th, ... 64th
    assert texts[1] == "fails.on_batch_end has failed 2 times, last (event 2, attempt 1): ValueError: no 2"
    assert texts[6].startswith("fails.on_batch_end has failed 64 times")
    assert (report.failed, report.errors[0].count) == (100, 100)


def test_raise_at_end_lets_the_training_go_on_and_close_raises_once(placement: Placement, handlers: Make) -> None:
    fails = Fails(lambda n, attempt: n == 1)
    handler = handlers(background(fails, placement=placement, on_error="raise_at_end"))
    fire(handler, 3)
    handler.flush()
    with pytest.raises(LaneError, match=r"fails\.on_batch_end: ValueError: no 1") as caught:
        handler.close()
    assert isinstance(caught.value.__cause__, ValueError)
    assert caught.value.report is not None
    assert (caught.value.report.delivered, caught.value.report.failed) == (2, 1)
    assert handler.close().failed == 1


def test_raise_at_end_raises_on_leaving_the_context_manager(handlers: Make) -> None:
    with pytest.raises(LaneError, match="no 1"), handlers(background(Fails(), on_error="raise_at_end")) as handler:
        fire(handler, 1)


def test_raise_at_end_never_masks_what_ended_the_run(handlers: Make, caplog: pytest.LogCaptureFixture) -> None:
    handler = handlers(background(Fails(), on_error="raise_at_end"))
    fire(handler, 1)
    with pytest.raises(KeyError, match="of the loop"), handler:
        raise KeyError("of the loop")
    assert "fails.on_batch_end: ValueError: no 1" in caplog.text
    assert handler.close().failed == 1


def test_raise_raises_at_the_next_event_and_the_run_may_go_on(placement: Placement, handlers: Make) -> None:
    fails = Fails(lambda n, attempt: n == 1)
    handler = handlers(background(fails, placement=placement, on_error="raise"))
    handler.call_event("on_batch_end", n=1)
    handler.flush()
    with pytest.raises(LaneError, match=r"fails\.on_batch_end: ValueError: no 1") as caught:
        handler.call_event("on_batch_end", n=2)
    assert isinstance(caught.value.__cause__, ValueError)
    handler.call_event("on_batch_end", n=3)
    report = handler.close()
    assert [n for n, _ in fails.attempts] == [1, 3]  # the event that raised reached nobody
    assert (report.delivered, report.failed) == (1, 1)


def test_raise_is_for_the_loop_to_see_and_not_for_another_hook(within: Placement, handlers: Make) -> None:
    class Fires:
        def on_epoch_end(self) -> None:
            handler.call_event("on_train_end")

    handler = handlers(background(Fails(), placement=within, on_error="raise"), background(Fires()))
    handler.call_event("on_batch_end", n=1)
    handler.flush()
    with handler._pool.hold():
        with pytest.raises(LaneError, match="no 1"):
            handler.call_event("on_epoch_end")
        handler.call_event("on_batch_end", n=2)
        handler.call_event("on_epoch_end")
    handler.flush()
    assert handler.stats().lanes["fires"].failed == 0
    with pytest.raises(LaneError, match="no 2"):
        handler.close()


def test_raise_raises_at_the_end_where_there_is_no_next_event(placement: Placement, handlers: Make) -> None:
    handler = handlers(background(Fails(), placement=placement, on_error="raise"))
    handler.call_event("on_batch_end", n=1)
    with pytest.raises(LaneError, match="no 1"):
        handler.close()


def test_disable_turns_a_callback_off_after_three_failures_in_a_row(
    placement: Placement, handlers: Make, caplog: pytest.LogCaptureFixture
) -> None:
    fails = Fails(lambda n, attempt: n not in (3, 50))
    rows = Rows()
    options: dict[str, Any] = {"placement": placement, "lane": "both"}
    handler = handlers(background(fails, on_error="disable", **options), background(rows, **options))
    fire(handler, 10)
    report = handler.close()
    assert [n for n, _ in fails.attempts] == [1, 2, 3, 4, 5, 6]  # the third was delivered, and began the count again
    assert (report.failed, report.dropped, report.delivered) == (5, 4, 1 + 10)
    assert rows.ns == list(range(1, 11))  # the others in its lane go on
    assert (
        "fails is turned off after 3 failures in a row (on_error='disable'); its events are dropped, and counted"
        in caplog.text
    )


# ----------------------------------------------------------------------------------------------------- retries, backoff


def test_a_hook_that_fails_is_tried_again_on_the_same_snapshot(placement: Placement, handlers: Make) -> None:
    class Mutates:
        def __init__(self) -> None:
            self.seen: list[Any] = []

        def on_batch_end(self, *, batch: list[int], event: EventInfo) -> None:
            self.seen.append((event, list(batch)))
            batch.append(99)
            if event.attempt < 3:
                raise OSError("try again")

    mutates, live = Mutates(), [1, 2]
    handler = handlers(background(mutates, placement=placement, retries=3, backoff=0.0))
    with handler._pool.hold():
        handler.call_event("on_batch_end", batch=live)
        live.append(3)
    report = handler.close()
    assert mutates.seen == [(EventInfo("on_batch_end", 1, attempt, False), [1, 2]) for attempt in (1, 2, 3)]
    assert (report.delivered, report.failed, report.ok) == (1, 0, True)
    assert live == [1, 2, 3]


def test_after_the_last_retry_an_event_has_failed_once_and_the_next_one_comes(
    placement: Placement, handlers: Make
) -> None:
    fails = Fails(lambda n, attempt: n == 1)
    handler = handlers(background(fails, placement=placement, retries=2, backoff=0.0))
    fire(handler, 2)
    report = handler.close()
    assert fails.attempts == [(1, 1), (1, 2), (1, 3), (2, 1)]
    assert (report.delivered, report.failed) == (1, 1)
    assert report.errors[0].attempt == 3


def test_the_backoff_doubles_and_is_jittered() -> None:
    owner = Owner("x", retries=4, backoff=0.5)
    for attempt, longest in ((1, 0.5), (2, 1.0), (3, 2.0), (4, 4.0)):
        delays = [owner.delay_before_retry(attempt) or 0.0 for _ in range(200)]
        assert longest / 2 <= min(delays) < longest * 0.6
        assert longest * 0.9 < max(delays) <= longest
    assert owner.delay_before_retry(5) is None


def test_the_backoff_is_waited_for(placement: Placement, handlers: Make) -> None:
    class Times:
        def __init__(self) -> None:
            self.times: list[float] = []

        def on_batch_end(self) -> None:
            self.times.append(time.perf_counter())
            raise OSError

    callback = Times()
    handler = handlers(background(callback, placement=placement, retries=2, backoff=0.1))
    handler.call_event("on_batch_end")
    handler.close()
    times = callback.times
    assert 0.05 <= times[1] - times[0] < 1.0
    assert 0.1 <= times[2] - times[1] < 1.0


def test_the_jitter_leaves_the_global_generators_alone(placement: Placement, handlers: Make) -> None:
    before = random.getstate(), torch.get_rng_state(), np.random.get_state()[1].copy()  # type: ignore[index]
    handler = handlers(background(Fails(), placement=placement, retries=5, backoff=0.0001))
    fire(handler, 5, loss=torch.ones(3))
    assert handler.close().failed == 5
    assert random.getstate() == before[0]
    assert torch.equal(torch.get_rng_state(), before[1])
    assert (np.random.get_state()[1] == before[2]).all()  # type: ignore[index]


# -------------------------------------------------------------------------------------------------------------- timeout


def test_an_async_hook_is_cancelled_after_its_timeout(handlers: Make) -> None:
    import anyio

    class Slow:
        def __init__(self) -> None:
            self.ends: list[Any] = []

        async def on_batch_end(self, *, n: int) -> None:
            try:
                if n == 1:
                    await anyio.sleep(PATIENCE)
            finally:
                self.ends.append(n)

    slow = Slow()
    handler = handlers(background(slow, timeout=0.05))
    fire(handler, 2)
    report = handler.close()
    assert slow.ends == [1, 2]
    assert (report.delivered, report.failed, report.stalled) == (1, 1, ())
    assert str(report.errors[0].error) == "cancelled after its timeout of 0.05 s"


def test_a_thread_that_overruns_its_timeout_is_stalled_until_it_moves_on(
    handlers: Make, caplog: pytest.LogCaptureFixture
) -> None:
    gate = Gate()
    handler = handlers(background(gate, timeout=0.05, queue_size=1))
    handler.call_event("on_batch_end", n=0)
    assert gate.entered.wait(PATIENCE)
    report = handler.flush()  # which doesn't wait for 60 s
    assert report.stalled == ("gate",)
    assert not report.ok
    assert handler.stats().lanes["gate"].stalled
    fire(handler, 3)  # drop_newest, whatever its policy
    assert handler.stats().lanes["gate"].dropped == 2
    gate.go_on.set()
    until(lambda: gate.rows == [0, 1])
    report = handler.close()
    assert (report.delivered, report.dropped, report.stalled) == (2, 2, ())


def test_a_stalled_lane_does_not_count_in_max_workers(handlers: Make) -> None:
    gate, rows = Gate(), Rows()
    handler = handlers(background(gate, timeout=0.05), background(rows), max_workers=1)
    handler.call_event("on_batch_end", n=0)
    assert gate.entered.wait(PATIENCE)
    until(lambda: rows.ns == [0])
    gate.go_on.set()
