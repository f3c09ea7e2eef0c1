"""What once hung a process lane, or lost its rows without a word."""

from __future__ import annotations

import enum
import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from async_trainer import Callback, CallbacksHandler, background
from tests.process.kit import Rows, child_of, kill, until, written


class Level(enum.IntEnum):
    NOTE = 35


class Flaky(Rows):
    """Its state can't be taken while a file says so."""

    def state_dict(self) -> dict[str, Any]:
        if self.path.with_name("broken").exists():
            raise OSError("no state")
        return super().state_dict()


def test_a_state_that_fails_for_a_while_loses_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = Flaky(tmp_path / "rows")
    with CallbacksHandler([background(rows, name="rows", placement="process")]) as handler:
        handler.call_event("on_batch_end", n=1)
        handler.flush()
        (tmp_path / "broken").touch()
        handler.call_event("on_batch_end", n=2)
        until(lambda: "rows.state_dict() failed: should its process die" in caplog.text)
        kill(child_of(handler, "rows"))
        until(lambda: handler.stats().lanes["rows"].restarts == 1)
        (tmp_path / "broken").unlink()
        handler.call_event("on_batch_end", n=3)
    assert rows.rows == written(tmp_path / "rows") == [1, 2, 3]
    assert handler.close().ok


class Fussy(Callback):
    """Fails with errors of classes that the parent has not, or can't make again."""

    def on_batch_end(self, *, n: int) -> None:
        here = os.getpid()

        class Late(Exception): ...

        class Wrong(Exception):
            def __new__(cls, *args: Any) -> Any:
                if os.getpid() != here:
                    raise TypeError("of another process")
                return super().__new__(cls, *args)

        class Lost(Wrong): ...

        raise (Late, Wrong, Lost)[n % 3]("no")


def test_failures_are_counted_by_their_classes_in_the_child() -> None:
    with CallbacksHandler([background(Fussy(), placement="process")]) as handler:
        for n in range(6):
            handler.call_event("on_batch_end", n=n)
    assert [(one.count, one.what) for one in handler.close().errors] == [
        (2, "Late: no"), (2, "LaneError: Wrong: no"), (2, "LaneError: Lost: no"),
    ]  # fmt: skip


@pytest.mark.parametrize("placement", ["thread", "process"])
def test_errors_of_classes_of_one_name_are_different_kinds(placement: Any) -> None:
    class Odd(Callback):
        def on_batch_end(self, *, n: int) -> None:
            raise type("Odd", (Exception,), {"__module__": ("one", "two")[n % 2]})(f"kind {n % 2}")

    with CallbacksHandler([background(Odd(), placement=placement)]) as handler:
        for n in range(4):
            handler.call_event("on_batch_end", n=n)
    assert [(one.count, one.what.endswith(f"kind {n}")) for n, one in enumerate(handler.close().errors)] == [
        (2, True), (2, True),
    ]  # fmt: skip


def test_a_state_that_always_fails_does_not_hold_the_budget(tmp_path: Path) -> None:
    (tmp_path / "broken").touch()
    rows = Flaky(tmp_path / "rows")
    options: dict[str, Any] = {"name": "rows", "placement": "process"}
    handler = CallbacksHandler([background(rows, **options)], max_snapshot_bytes=4 << 20, stall_timeout=20.0)
    for n in range(1, 31):
        handler.call_event("on_batch_end", n=n, output=np.full(1 << 17, n, np.float64))
    report = handler.close()
    assert (report.delivered, report.dropped, report.lost) == (30, 0, 0)
    assert written(tmp_path / "rows") == list(range(1, 31))
    assert handler.stats().waits.budget < 15


def test_records_and_paths_of_odd_classes_reach_the_other_side(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    class Logs(Callback):
        def on_batch_end(self, *, n: int) -> None:
            logging.getLogger("mine").log(Level.NOTE, "number %d", n, extra={"phase": Level.NOTE})

    monkeypatch.setattr(sys, "path", [tmp_path, *sys.path])  # a Path is no str, and many put one there
    with CallbacksHandler([background(Logs(), placement="process")]) as handler:
        handler.call_event("on_batch_end", n=1)
    assert handler.close().ok
    assert [(one.levelno, one.getMessage()) for one in caplog.records if one.name == "mine"] == [(35, "number 1")]


def test_a_filter_that_raises_costs_no_row(caplog: pytest.LogCaptureFixture) -> None:
    class Logs(Callback):
        def on_batch_end(self, *, n: int) -> None:
            logging.getLogger("filtered").warning("number %d", n)

    def filtered(record: logging.LogRecord) -> bool:
        raise ValueError

    logger = logging.getLogger("filtered")
    logger.addFilter(filtered)
    try:
        with CallbacksHandler([background(Logs(), placement="process")]) as handler:
            handler.call_event("on_batch_end", n=1)
            handler.call_event("on_batch_end", n=2)
    finally:
        logger.removeFilter(filtered)
    assert handler.close().ok
    assert handler.stats().lanes["logs"].restarts == 0


def test_a_child_whose_hook_has_forked_dies_all_the_same(tmp_path: Path) -> None:
    class Forks(Rows):
        def on_batch_end(self, *, n: int, event: Any, output: Any = None) -> None:
            if n == 2 and not event.redelivered:
                if os.fork() == 0:
                    time.sleep(60)
                    os._exit(0)
                os.kill(os.getpid(), signal.SIGKILL)
            super().on_batch_end(n=n, event=event)

    forks = Forks(tmp_path / "rows")
    began = time.monotonic()
    with CallbacksHandler([background(forks, placement="process")]) as handler:
        for n in (1, 2, 3):
            handler.call_event("on_batch_end", n=n)
    assert forks.rows == [1, 2, 3]
    assert time.monotonic() - began < 50


def test_the_wait_before_another_attempt_is_not_part_of_the_timeout(tmp_path: Path) -> None:
    class Fails(Rows):
        def on_batch_end(self, *, n: int, event: Any, output: Any = None) -> None:
            if event.attempt == 1:
                raise OSError
            super().on_batch_end(n=n, event=event)

    fails = Fails(tmp_path / "rows")
    options: dict[str, Any] = {"timeout": 0.5, "retries": 1, "backoff": 2.0}
    with CallbacksHandler([background(fails, placement="process", **options)]) as handler:
        handler.call_event("on_batch_end", n=1)
    assert fails.rows == [1]
    assert handler.stats().lanes["fails"].restarts == 0


MODULE = """
from async_trainer import Callback, CallbacksHandler, background

class Prints(Callback):
    def on_batch_end(self):
        print("handled", flush=True)

with CallbacksHandler([background(Prints(), placement="process")]) as handler:  # when it is imported, too
    handler.call_event("on_batch_end")
print(handler.close().failed, "failed")
"""


def test_a_module_that_opens_a_process_lane_when_it_is_imported_does_not_go_on_forever(tmp_path: Path) -> None:
    (tmp_path / "trains.py").write_text(MODULE)
    done = subprocess.run(
        [sys.executable, "-c", "import trains"], cwd=tmp_path, capture_output=True, text=True, timeout=60,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])},
    )  # fmt: skip
    assert "1 failed" in done.stdout
    assert 'put what starts a training under `if __name__ == "__main__":`' in done.stderr


def test_crashes_now_and_then_with_a_state_cost_no_event(tmp_path: Path) -> None:
    class Crashes(Rows):
        def on_batch_end(self, *, n: int, event: Any, output: Any = None) -> None:
            super().on_batch_end(n=n, event=event)
            marker = self.path.with_name(f"crashed-{n}")
            if n % 40 == 0 and not marker.exists():
                marker.touch()
                os._exit(1)

    crashes = Crashes(tmp_path / "rows", slow=0.001)
    with CallbacksHandler([background(crashes, placement="process", queue_size=1000)]) as handler:
        for n in range(1, 201):
            handler.call_event("on_batch_end", n=n)
    report = handler.close()
    assert (report.delivered, report.failed, report.dropped, report.lost) == (200, 0, 0, 0)
    assert crashes.rows == written(tmp_path / "rows") == list(range(1, 201))
    assert handler.stats().lanes["crashes"].restarts >= 5
