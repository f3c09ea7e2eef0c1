"""The child of a process lane is killed, or kills itself: the training goes on, and every event is accounted for."""

from __future__ import annotations

import os
import random
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from async_trainer import Callback, CallbacksHandler, background
from async_trainer.errors import LaneError
from tests.process.kit import Rows, alive, child_of, kill, until, what_is_open, written


@pytest.mark.parametrize(
    ("big", "kills"),
    [
        (False, 3),
        pytest.param(False, 100, marks=[pytest.mark.slow, pytest.mark.soak]),
        pytest.param(True, 3, marks=pytest.mark.slow),
        pytest.param(True, 20, marks=[pytest.mark.slow, pytest.mark.soak]),
    ],
)
def test_killed_at_random_moments_no_row_is_lost_or_doubled(tmp_path: Path, kills: int, big: bool) -> None:
    before = what_is_open()
    generator = random.Random(os.getpid())
    rows = Rows(tmp_path / "rows")
    handler = CallbacksHandler([background(rows, placement="process", queue_size=50)], max_snapshot_bytes=20 << 20)
    n = killed = 0
    with handler:
        while killed < kills:
            delivered = handler.stats().lanes["rows"].delivered
            while handler.stats().lanes["rows"].delivered == delivered:  # three deaths without any would be the end
                n += 1
                handler.call_event("on_batch_end", n=n, output=torch.full((100, 200), float(n)) if big else None)
            moment = time.monotonic() + generator.uniform(0, 0.03)
            while time.monotonic() < moment:
                n += 1
                handler.call_event("on_batch_end", n=n, output=torch.full((100, 200), float(n)) if big else None)
            kill(child_of(handler, "rows"))
            killed += 1
        state = handler.state_dict()["rows"]
    report = handler.close()
    assert (report.delivered, report.failed, report.dropped, report.lost) == (n, 0, 0, 0)
    assert state["rows"] == rows.rows == written(tmp_path / "rows") == list(range(1, n + 1))
    assert handler.stats().lanes["rows"].restarts >= 1
    assert rows.again
    del handler
    until(lambda: what_is_open()[2] <= before[2])
    assert what_is_open() <= before, (what_is_open(), before)


def test_what_a_child_was_given_before_it_died_comes_again_and_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    class Dies(Rows):
        def on_batch_end(self, *, n: int, event: Any, output: Any = None) -> None:
            if n == 3 and not event.redelivered:
                os.kill(os.getpid(), signal.SIGSEGV)
            super().on_batch_end(n=n, event=event)

    dies = Dies(tmp_path / "rows")
    handler = CallbacksHandler([background(dies, placement="process")])
    with handler:
        handler.call_event("on_batch_end", n=1)
        handler.flush()  # it has sent a state
        for n in range(2, 6):
            handler.call_event("on_batch_end", n=n)
    assert dies.rows == [1, 2, 3, 4, 5]
    assert 3 in dies.again
    assert handler.close().ok
    assert "lane dies: its process died (SIGSEGV" in caplog.text
    assert "another goes on from its last state, and is given" in caplog.text


@pytest.mark.parametrize("stateful", [True, False])
def test_three_deaths_with_nothing_delivered_between_are_the_end_of_a_lane_and_not_of_the_training(
    tmp_path: Path, stateful: bool
) -> None:
    class Counts(Callback):
        def __init__(self) -> None:
            self.count = 0

        def on_batch_end(self, *, n: int) -> None:
            if n == 3:
                os._exit(7)
            self.count += 1

    class CountsWithState(Counts):
        def state_dict(self) -> dict[str, Any]:
            return {"count": self.count}

        def load_state_dict(self, state_dict: Any) -> None:
            self.count = state_dict["count"]

    callback = CountsWithState() if stateful else Counts()
    rows = Rows(tmp_path / "rows")
    handler = CallbacksHandler(
        [background(callback, name="dies", placement="process", on_error="raise_at_end"), background(rows)]
    )
    for n in range(1, 3):
        handler.call_event("on_batch_end", n=n)
    handler.flush()
    for n in range(3, 11):
        handler.call_event("on_batch_end", n=n)
    handler.flush()
    handler.call_event("on_batch_end", n=11)
    with pytest.raises(LaneError, match=r"dies.on_batch_end: LaneError: its process died 3 times \(exit code 7"):
        handler.close()
    lane = handler.stats().lanes["dies"]
    assert (lane.delivered, lane.failed, lane.dropped, lane.lost) == (2, 1, 8, 0)
    assert rows.rows == list(range(1, 12))
    assert callback.count == 2


def test_what_it_had_handled_is_lost_with_a_state_that_never_came(tmp_path: Path) -> None:
    class Dies(Rows):
        def on_batch_end(self, *, n: int, event: Any, output: Any = None) -> None:
            if n == 4:
                os._exit(1)
            super().on_batch_end(n=n, event=event)

    dies = Dies(tmp_path / "rows")
    handler = CallbacksHandler([background(dies, placement="process")])
    handler.call_event("on_batch_end", n=1)
    handler.flush()
    for n in range(2, 7):
        handler.call_event("on_batch_end", n=n)
    report = handler.close()
    assert report.delivered + report.lost == 3
    assert (report.failed, report.dropped) == (1, 2)


def test_a_child_that_dies_at_rest_is_replaced_and_goes_on_from_its_state(tmp_path: Path) -> None:
    rows = Rows(tmp_path / "rows")
    with CallbacksHandler([background(rows, placement="process")]) as handler:
        handler.call_event("on_batch_end", n=1)
        handler.flush()
        first = child_of(handler, "rows")
        kill(first)
        until(lambda: child_of(handler, "rows") not in (None, first))
        handler.call_event("on_batch_end", n=2)
    assert written(tmp_path / "rows") == rows.rows == [1, 2]
    assert rows.again == []


def test_a_hook_that_overruns_its_timeout_is_killed_with_its_child_and_tried_again(tmp_path: Path) -> None:
    class Hangs(Rows):
        def on_batch_end(self, *, n: int, event: Any, output: Any = None) -> None:
            if n == 2 and event.attempt < 3:
                while True:  # holding the interpreter
                    pass
            super().on_batch_end(n=n, event=event)

    hangs = Hangs(tmp_path / "rows")
    options: dict[str, Any] = {"placement": "process", "timeout": 1.0, "backoff": 0.01}
    with CallbacksHandler([background(hangs, retries=2, **options)]) as handler:
        for n in range(1, 4):
            handler.call_event("on_batch_end", n=n)
    assert hangs.rows == written(tmp_path / "rows") == [1, 2, 3]
    assert handler.close().ok

    forever = Hangs(tmp_path / "others")
    handler = CallbacksHandler([background(forever, retries=1, **options)])
    for n in range(1, 4):
        handler.call_event("on_batch_end", n=n)
    report = handler.close()
    assert forever.rows == [1, 3]
    assert (report.delivered, report.failed) == (2, 1)
    assert isinstance(report.errors[0].error, TimeoutError)
    assert report.errors[0].attempt == 2


def test_what_is_left_when_the_time_is_up_is_lost_and_the_child_killed(tmp_path: Path) -> None:
    class Hangs(Callback):
        def on_batch_end(self) -> None:
            (tmp_path / "in").touch()
            time.sleep(1000)

    handler = CallbacksHandler([background(Hangs(), placement="process")])
    for _ in range(3):
        handler.call_event("on_batch_end")
    until((tmp_path / "in").exists)
    pid = child_of(handler, "hangs")
    assert pid is not None
    report = handler.close(timeout=0.1)
    assert (report.delivered, report.lost) == (0, 3)
    until(lambda: not alive(pid))


def test_a_child_that_can_not_start_is_the_end_of_its_lane(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("sys.executable", "/nowhere/python")

    class Quiet(Callback):
        def on_batch_end(self) -> None: ...

    handler = CallbacksHandler([background(Quiet(), placement="process")])
    handler.call_event("on_batch_end")
    handler.flush()
    assert handler.close().dropped == 1
    assert "lane quiet is given up: no process can be started for it" in caplog.text
