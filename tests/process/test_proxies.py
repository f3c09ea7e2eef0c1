"""Proxies whose object lives in a process: calls, results, handles, errors."""

from __future__ import annotations

import logging
import os
import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from async_trainer import CallbacksHandler
from async_trainer.errors import CaptureError, ConfigurationError, EventLostError, LaneError, StandInError
from tests.process.objects import Files, Flaky, Ledger, Run, Tracker, fails, slow_then_fast


@pytest.fixture(scope="module")
def handler() -> Iterator[CallbacksHandler]:
    with CallbacksHandler(max_snapshot_bytes=64 << 20) as made:
        yield made


@pytest.fixture(scope="module")
def ledger(handler: CallbacksHandler) -> Ledger:
    """In the lane that all of this file share."""
    made: Ledger = handler.proxy(factory=Ledger, placement="process", lane="all", name="ledger")
    return made


@pytest.fixture(scope="module")
def tracker(handler: CallbacksHandler, ledger: Ledger) -> Any:
    return handler.proxy(factory=Tracker, placement="process", lane="all", name="tracker")


def test_calls_are_made_in_another_process_in_order_and_answered(ledger: Any) -> None:
    for n in range(50):
        ledger.add(n)
    assert ledger.rows().wait() == list(range(50))
    assert ledger.pid().wait() != os.getpid()


def test_arguments_are_as_they_were_at_the_call(ledger: Any) -> None:
    small, big, rows = torch.ones(3), torch.ones(50_000), [1]
    handle = ledger.total(small, big=big, rows=rows)
    small.zero_()
    big.zero_()
    rows.append(5)
    assert handle.wait() == 3 + 50_000 + 1


def test_big_results_come_back(ledger: Any) -> None:
    assert torch.equal(ledger.give(torch.arange(100_000)).wait(), torch.arange(100_000))


def test_a_result_that_can_not_be_sent_stays_there_and_can_be_used_there(ledger: Any) -> None:
    lock = ledger.lock()
    with pytest.raises(StandInError, match="lock"):
        lock.wait()
    assert ledger.locked(lock).wait() is False
    with lock:
        inside = ledger.locked(lock)
    assert inside.wait() is True
    assert ledger.locked(lock).wait() is False


def test_handles_are_what_their_calls_returned(tracker: Any) -> None:
    with tracker.start("first") as run:
        run.log(1)
        run.log(2)
        run.note.text = "seen"
        tracker.log_to(run, 2.5)
    run = tracker.start("second")
    tracker.log_to(run, 3)
    expected = ["first: 1", "first: 2", "first: seen", "first: 2.5", "first: end", "second: 3"]
    assert tracker.text().wait() == expected
    assert isinstance(run.wait(), Run)
    assert tracker.names([run, {"run": run}]).wait() == ["second", "second"]


def test_what_nobody_refers_to_any_more_is_let_go_of_there(tracker: Any) -> None:
    run = tracker.start("gone")
    run.wait()
    assert tracker.alive("gone").wait()
    del run
    tracker.names([])  # the word goes with the next call
    assert not tracker.alive("gone").wait()


def test_a_handle_of_another_lane_is_refused_and_a_result_is_not(handler: CallbacksHandler, tracker: Any) -> None:
    other: Any = handler.proxy(factory=Tracker, placement="process", lane="all", name="other_tracker")
    away: Any = handler.proxy(factory=Tracker, name="in_a_thread")
    run = tracker.start("here")
    assert other.names([run]).wait() == ["here"]  # one lane
    with pytest.raises(CaptureError, match=r"argument 1.*wait\(\) for it first.*own lane only"):
        tracker.names([away.start("there")]).wait()
    assert tracker.names([away.start("there").wait()]).wait() == ["there"]


def test_attributes_and_items_can_be_set_and_with_enters_the_object(handler: CallbacksHandler, ledger: Any) -> None:
    files: Any = handler.proxy(Files(), placement="process", lane="all", name="files")
    files.mode = "w"
    files["a"] = 1
    files["b"] = 2
    del files["b"]
    with files as entered:
        entered.note("inside")
    assert entered is files
    assert files.told().wait() == ["w", {"a": 1}, "enter", "inside", "exit None"]


def test_an_error_comes_back_as_itself_with_the_traceback_of_there(ledger: Any) -> None:
    with pytest.raises(OSError, match="disk full") as caught:
        ledger.fail(28).wait()
    assert caught.value.args == (28, "disk full")
    assert "in another process" in str(caught.value.__cause__)
    assert "def fail" in str(caught.value.__cause__) or "raise OSError" in str(caught.value.__cause__)
    assert ledger.rows().wait() is not None  # it goes on


def test_an_argument_that_can_not_be_sent_fails_its_call_alone(ledger: Any) -> None:
    before = ledger.add("before")
    bad = ledger.add(torch.utils.data.DataLoader([1]))
    after = ledger.add("after")
    with pytest.raises(Exception, match=r"argument 1: a DataLoader can't be sent to a process.*placement='thread'"):
        bad.wait()
    before.wait()
    after.wait()
    assert ledger.rows().wait()[-2:] == ["before", "after"]


def test_a_factory_that_fails_fails_each_call_and_is_tried_again(handler: CallbacksHandler, ledger: Any) -> None:
    broken: Any = handler.proxy(factory=fails, placement="process", lane="all", name="broken")
    for _ in range(2):
        with pytest.raises(ConnectionError, match="nobody there"):
            broken.add(1).wait()


def test_what_can_not_be_sent_is_refused_with_the_remedy(handler: CallbacksHandler) -> None:
    connection = sqlite3.connect(":memory:")
    with pytest.raises(ConfigurationError, match=r"proxy\(Connection\) can't be sent.*factory="):
        handler.proxy(connection, placement="process")
    with pytest.raises(ConfigurationError, match=r"\(its connection\) can't be sent.*let the factory make"):
        handler.proxy(factory=lambda: connection.cursor(), placement="process")
    connection.close()


def test_the_object_of_the_caller_stays_as_it_is(handler: CallbacksHandler, ledger: Any) -> None:
    mine = Ledger()
    theirs: Any = handler.proxy(mine, placement="process", lane="all", name="theirs")
    theirs.add(1)
    assert theirs.rows().wait() == [1]
    assert mine.held == []


def test_a_function_and_a_module_can_be_proxied(handler: CallbacksHandler, ledger: Any, tmp_path: Path) -> None:
    save: Any = handler.proxy(torch.save, placement="process", lane="all")
    save({"weight": torch.ones(50_000)}, tmp_path / "w.pt").wait()
    assert torch.equal(torch.load(tmp_path / "w.pt")["weight"], torch.ones(50_000))
    module: Any = handler.proxy(os, placement="process", lane="all", name="os")
    assert module.getpid().wait() == ledger.pid().wait()


def test_a_logging_handler_writes_there(handler: CallbacksHandler, ledger: Any, tmp_path: Path) -> None:
    proxy: Any = handler.proxy(LazyFile(tmp_path / "log"), placement="process", lane="all", name="file")
    logger = logging.getLogger("tests.proxied")
    logger.addHandler(proxy)
    try:
        rows = [1]
        logger.warning("rows %s", rows)
        rows.append(2)
    finally:
        logger.removeHandler(proxy)
    handler.flush()
    assert (tmp_path / "log").read_text() == "rows [1]\n"


class LazyFile(logging.Handler):
    """Opens its file when it writes."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "lock": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self.createLock()

    def emit(self, record: logging.LogRecord) -> None:
        with self.path.open("a") as file:
            file.write(self.format(record) + "\n")


def test_async_functions_are_awaited(handler: CallbacksHandler) -> None:
    proxy: Any = handler.proxy(slow_then_fast, placement="process", name="post")
    handles = [proxy(n, delay) for n, delay in ((1, 0.02), (2, 0.0))]
    assert [handle.wait() for handle in handles] == [1, 2]


# -------------------------------------------------------------------------------------------- options: another child


def test_retries_and_on_error_are_as_in_a_thread(handler: CallbacksHandler, ledger: Any, tmp_path: Path) -> None:
    flaky: Any = handler.proxy(
        factory=lambda: Flaky(2), placement="process", lane="all", name="flaky", retries=2, backoff=0.001,
        on_error="disable",
    )  # fmt: skip
    assert flaky.call("a").wait() == ("a", 3)
    for _ in range(3):
        with pytest.raises(ValueError, match="always"):
            flaky.never().wait()
    with pytest.raises(EventLostError):
        flaky.call("b").wait()


def test_raise_raises_at_the_next_call() -> None:
    with CallbacksHandler() as own:
        proxy: Any = own.proxy(factory=Ledger, placement="process", on_error="raise")
        proxy.fail(5)
        own.flush()
        with pytest.raises(LaneError, match="disk full"):
            proxy.add(1)


def test_a_call_that_overruns_its_timeout_is_killed_and_another_process_goes_on() -> None:
    with CallbacksHandler() as own:
        proxy: Any = own.proxy(factory=Ledger, placement="process", timeout=0.2)
        first = proxy.pid().wait()
        run = proxy.lock()
        hung = proxy.hang()
        later = proxy.pid()
        with pytest.raises(TimeoutError, match="killed"):
            hung.wait()
        assert later.wait() not in (first, os.getpid())
        with pytest.raises(StandInError, match="process that made it"):
            proxy.locked(run).wait()
    report = own.close()
    assert (report.delivered, report.failed) == (3, 2)


def test_a_proxy_made_while_it_runs_and_threads_that_call_at_once(handler: CallbacksHandler, ledger: Any) -> None:
    late: Any = handler.proxy(factory=Ledger, placement="process", lane="all", name="late")
    threads = [threading.Thread(target=lambda: [late.add(n) for n in range(50)]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    rows = late.rows().wait()
    assert sorted(rows) == sorted(list(range(50)) * 4)


# ---------------------------------------------------------------------------------------------------------- real things


def test_a_summary_writer_writes_what_its_reader_reads(handler: CallbacksHandler, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    def make() -> Any:
        from torch.utils.tensorboard import SummaryWriter

        return SummaryWriter(tmp_path)

    writer: Any = handler.proxy(factory=make, placement="process", lane="all", name="writer")
    loss, weights = torch.tensor(0.5), torch.arange(100.0)
    for step in range(5):
        writer.add_scalar("loss", loss, step)
        loss += 1
    writer.add_histogram("weights", weights, 3)
    writer.add_scalars("both", {"a": 1.0}, 1)
    writer.close()
    handler.flush()
    read = EventAccumulator(str(tmp_path)).Reload()
    assert [(one.step, one.value) for one in read.Scalars("loss")] == [(n, 0.5 + n) for n in range(5)]
    assert read.Histograms("weights")[0].histogram_value.num == 100


def test_a_database_is_written_by_a_connection_that_is_made_there(
    handler: CallbacksHandler, ledger: Any, tmp_path: Path
) -> None:
    path = tmp_path / "rows.db"
    base: Any = handler.proxy(factory=lambda: sqlite3.connect(path), placement="process", lane="all", name="base")
    base.execute("create table rows (n)")
    with base:
        base.executemany("insert into rows values (?)", [(n,) for n in range(5)])
    base.close()
    handler.flush()
    with sqlite3.connect(path) as here:
        assert here.execute("select count(*) from rows").fetchone() == (5,)
    here.close()
