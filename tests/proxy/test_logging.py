"""A ``logging.Handler`` behind a proxy."""

from __future__ import annotations

import gc
import logging
import logging.handlers
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from async_trainer import CallbacksHandler, background
from async_trainer.errors import LaneError
from tests.proxy.kit import PATIENCE, Gate, Sink


class Records(logging.Handler):
    """Remembers what it was given, as text."""

    def __init__(self, level: int = logging.NOTSET) -> None:
        super().__init__(level)
        self.texts: list[str] = []
        self.threads: set[int] = set()
        self.setFormatter(logging.Formatter("%(levelname)s %(message)s"))

    def emit(self, record: logging.LogRecord) -> None:
        self.texts.append(self.format(record))
        self.threads.add(threading.get_ident())


class Failing(Records):
    def emit(self, record: logging.LogRecord) -> None:
        super().emit(record)
        raise OSError("disk full")


@pytest.fixture
def logger() -> Iterator[logging.Logger]:
    """A logger that gives nothing to the root's handlers."""
    made = logging.getLogger("tests.proxy")
    made.propagate = False
    made.setLevel(logging.DEBUG)
    made.handlers.clear()
    yield made
    made.handlers.clear()


@pytest.fixture
def ours() -> Iterator[logging.Logger]:
    """The library's own logger, put back after."""
    made = logging.getLogger("async_trainer")
    before = list(made.handlers)
    yield made
    made.handlers[:] = before


def test_records_are_written_in_order_by_another_thread(handler: CallbacksHandler, logger: logging.Logger) -> None:
    records = Records()
    logger.addHandler(handler.proxy(records))
    for number in range(100):
        logger.info("step %d", number)
    handler.flush()
    assert records.texts == [f"INFO step {number}" for number in range(100)]
    assert threading.get_ident() not in records.threads


def test_arguments_show_as_they_were(handler: CallbacksHandler, logger: logging.Logger) -> None:
    gate, records = Gate(), Records()
    proxy = handler.proxy(gate, lane="log")
    logger.addHandler(handler.proxy(records, lane="log"))
    proxy.wait()
    losses = [0.5]
    logger.info("losses %s", losses)
    logger.info("as a dict %(last)s", {"last": losses})
    logger.info(losses)
    losses.append(0.25)
    gate.opened.set()
    handler.flush()
    assert records.texts == ["INFO losses [0.5]", "INFO as a dict [0.5]", "INFO [0.5]"]


def test_a_traceback_is_written(handler: CallbacksHandler, logger: logging.Logger, tmp_path: Path) -> None:
    file = logging.FileHandler(tmp_path / "log.txt")
    file.setFormatter(logging.Formatter("%(threadName)s: %(message)s"))
    logger.addHandler(handler.proxy(file))
    try:
        raise ValueError("nan")
    except ValueError:
        logger.exception("failed at %s", {"step": 3})
    handler.flush()
    first, *rest = (tmp_path / "log.txt").read_text().splitlines()
    assert first == "MainThread: failed at {'step': 3}"
    assert rest[0] == "Traceback (most recent call last):"
    assert rest[-1] == "ValueError: nan"


def test_the_level_of_the_handler_holds(handler: CallbacksHandler, logger: logging.Logger) -> None:
    records = Records(logging.WARNING)
    proxy = handler.proxy(records)
    logger.addHandler(proxy)
    logger.info("too low")
    logger.warning("high enough")
    handler.flush()
    assert proxy.level == logging.WARNING
    assert records.texts == ["WARNING high enough"]


@pytest.mark.parametrize("how", ["setLevel", "level"])
def test_a_level_that_is_set_holds_from_the_next_record_on(
    handler: CallbacksHandler, logger: logging.Logger, how: str
) -> None:
    gate, records = Gate(), Records()
    held = handler.proxy(gate, lane="log")
    proxy = handler.proxy(records, lane="log")
    logger.addHandler(proxy)
    held.wait()
    logger.info("before")
    if how == "setLevel":
        proxy.setLevel("ERROR")
    else:
        proxy.level = logging.ERROR
    assert proxy.level == logging.ERROR
    logger.info("after")
    gate.opened.set()
    handler.flush()
    assert records.texts == ["INFO before"]


def test_filters_and_formatters_are_set_in_order(handler: CallbacksHandler, logger: logging.Logger) -> None:
    records = Records()
    proxy = handler.proxy(records)
    logger.addHandler(proxy)
    logger.info("a")
    proxy.setFormatter(logging.Formatter("<%(message)s>"))
    logger.info("b")
    proxy.addFilter(lambda record: record.getMessage() != "c")
    logger.info("c")
    logger.info("d")
    handler.flush()
    assert records.texts == ["INFO a", "<b>", "<d>"]


def test_it_can_be_removed_beside_others(handler: CallbacksHandler, logger: logging.Logger) -> None:
    records, inline = Records(), Records()
    proxy = handler.proxy(records)
    before = list(logger.handlers)  # pytest's own
    for one in (inline, proxy, proxy):
        logger.addHandler(one)
    assert logger.handlers == [*before, inline, proxy]
    logger.info("a")
    logger.removeHandler(proxy)
    assert logger.handlers == [*before, inline]
    logger.info("b")
    handler.flush()
    assert (records.texts, inline.texts) == (["INFO a"], ["INFO a", "INFO b"])


def test_a_memory_handler_flushes_on_its_lane(handler: CallbacksHandler, logger: logging.Logger) -> None:
    records = Records()
    logger.addHandler(handler.proxy(logging.handlers.MemoryHandler(10, logging.ERROR, records)))
    logger.info("a")
    logger.info("b")
    handler.flush()
    assert records.texts == []
    logger.error("c")
    handler.flush()
    assert records.texts == ["INFO a", "INFO b", "ERROR c"]


def test_a_memory_handler_may_flush_into_a_proxy(handler: CallbacksHandler, logger: logging.Logger) -> None:
    records = Records()
    memory = logging.handlers.MemoryHandler(10, logging.ERROR, handler.proxy(records))
    logger.addHandler(memory)
    logger.info("a")
    logger.error("b")
    handler.flush()
    memory.close()
    assert records.texts == ["INFO a", "ERROR b"]


def test_what_a_handler_itself_logs_does_not_come_back_to_it(handler: CallbacksHandler, logger: logging.Logger) -> None:
    class Talkative(Records):
        def emit(self, record: logging.LogRecord) -> None:
            super().emit(record)
            logger.debug("sent %s", record.getMessage())

    talkative, inline = Talkative(), Records()
    logger.addHandler(handler.proxy(talkative))
    logger.addHandler(inline)
    logger.info("a")
    report = handler.flush()
    assert talkative.texts == ["INFO a"]
    assert inline.texts == ["INFO a", "DEBUG sent a"]
    assert (report.delivered, report.dropped) == (1, 1)


def test_a_failing_handler_is_not_told_of_its_own_failure(
    handler: CallbacksHandler, logger: logging.Logger, ours: logging.Logger
) -> None:
    failing, inline = Failing(), Records()
    ours.addHandler(handler.proxy(failing))
    ours.addHandler(inline)
    logger.addHandler(ours.handlers[-2])
    logger.info("a")
    report = handler.flush()
    assert failing.texts == ["INFO a"]
    assert (report.delivered, report.failed, report.dropped) == (0, 1, 1)
    assert "failing.handle failed" in inline.texts[0]


def test_two_failing_handlers_do_not_feed_each_other_for_ever(
    handler: CallbacksHandler, logger: logging.Logger, ours: logging.Logger
) -> None:
    for name in ("first", "second"):
        ours.addHandler(handler.proxy(Failing(), name=name))
    ours.error("a")
    for _ in range(10):  # each flush sees what the one before has led to
        handler.flush()
    before = handler.flush().failed
    assert handler.flush().failed == before < 10


def test_the_failure_of_a_callback_in_the_same_lane_is_written(handler: CallbacksHandler, ours: logging.Logger) -> None:
    class Fails:
        def on_batch_end(self) -> None:
            raise ValueError("nan")

    records = Records()
    ours.addHandler(handler.proxy(records, lane="io"))
    handler.add_callbacks([background(Fails(), lane="io")])
    handler.call_event("on_batch_end")
    handler.flush()
    handler.flush()
    assert any("fails.on_batch_end failed" in text for text in records.texts)


def test_a_hook_may_log_with_the_queue_full(handler: CallbacksHandler, logger: logging.Logger) -> None:
    class Chatty:
        def on_batch_end(self) -> None:
            for number in range(10):
                logger.info("hook %d", number)
            said.set()

    said = threading.Event()
    gate, records = Gate(), Records()
    held = handler.proxy(gate, lane="log", queue_size=2)
    logger.addHandler(handler.proxy(records, lane="log", queue_size=2))
    handler.add_callbacks([background(Chatty(), name="chatty")])
    held.wait()
    assert gate.reached.wait(PATIENCE)
    handler.call_event("on_batch_end")
    assert said.wait(PATIENCE)
    gate.opened.set()
    handler.flush()
    assert records.texts == [f"INFO hook {number}" for number in range(10)]
    assert handler.stats().lanes["log"].over_limit == 8


def test_a_record_whose_extra_can_not_be_copied_fails_by_name(
    handler: CallbacksHandler, logger: logging.Logger
) -> None:
    records = Records()
    logger.addHandler(handler.proxy(records))
    logger.info("a", extra={"lock": threading.Lock()})
    logger.info("b")
    handler.flush()
    assert records.texts == ["INFO b"]
    assert "records.handle: argument 1.lock: a _thread.lock can't be copied" in str(handler.stats().errors[0].error)


def test_it_may_hang_on_the_root_logger_while_the_handler_starts_and_ends(caplog: pytest.LogCaptureFixture) -> None:
    records = Records()
    root = logging.getLogger()
    handler = CallbacksHandler()
    proxy = handler.proxy(records)
    root.addHandler(proxy)
    try:
        with caplog.at_level(logging.INFO), handler:
            logging.info("in between")
        logging.info("after")
    finally:
        root.removeHandler(proxy)
    assert records.texts == ["INFO callbacks: records (thread, a proxy)", "INFO in between"]


def test_a_record_that_the_garbage_collector_logs_does_not_block(
    handler: CallbacksHandler, logger: logging.Logger
) -> None:
    gone: list[int] = []

    class Noisy:
        def __init__(self) -> None:
            self.itself = self

        def __del__(self) -> None:
            logger.warning("never closed")
            gone.append(1)

    records = Records()
    logger.addHandler(handler.proxy(records))
    before = gc.get_threshold()
    try:
        for number in range(2000):
            gc.set_threshold(number % 40 + 1)  # so that it comes everywhere, under the pool's lock too
            Noisy()
            logger.info("step")
    finally:
        gc.set_threshold(*before)
    until = time.monotonic() + PATIENCE
    while len(gone) < 2000 and time.monotonic() < until:  # some may be in another thread's hands
        gc.collect()
    report = handler.flush()
    assert report.delivered == len(records.texts)
    assert records.texts.count("INFO step") == 2000
    # Where it comes within the handler's own call, it can't be told from what the handler logs itself.
    assert records.texts.count("WARNING never closed") + report.dropped == 2000


def test_the_process_ends_with_all_records_written(tmp_path: Path) -> None:
    path = tmp_path / "log.txt"
    script = f"""
        import atexit, logging
        from async_trainer import CallbacksHandler

        handler = CallbacksHandler()
        logging.getLogger().addHandler(handler.proxy(logging.FileHandler({str(path)!r})))
        for number in range(1000):
            logging.warning("step %d", number)
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(script)], check=True, timeout=60)
    assert path.read_text().splitlines() == [f"step {number}" for number in range(1000)]


def test_shutdown_by_hand_then_logging_again(handler: CallbacksHandler, logger: logging.Logger, tmp_path: Path) -> None:
    path = tmp_path / "log.txt"
    proxy: Any = handler.proxy(logging.FileHandler(path))
    logger.addHandler(proxy)
    logger.info("a")
    proxy.flush()
    proxy.close()
    handler.flush()
    logger.info("b")  # a closed FileHandler opens its file again
    handler.flush()
    assert path.read_text() == "a\nb\n"


def test_a_log_handler_that_raises_does_not_end_the_lane_that_logs_its_failure(
    handler: CallbacksHandler, ours: logging.Logger
) -> None:
    ours.addHandler(Failing())  # not behind a proxy
    sink = Sink()
    proxy = handler.proxy(sink)
    proxy.fail()
    assert proxy.add(1).wait() == (1,)
    assert handler.flush().failed == 1


def test_the_thread_that_tells_of_stalled_lanes_lives_on_whatever_a_log_proxy_raises(ours: logging.Logger) -> None:
    async def ping() -> str:
        return "pong"

    told = threading.Event()

    class Listens(Records):
        def emit(self, record: logging.LogRecord) -> None:
            if "has stalled" in record.getMessage():
                told.set()

    gate = Gate()
    with CallbacksHandler(stall_timeout=0.1) as handler:
        ours.addHandler(handler.proxy(Listens()))
        handler.proxy(gate).wait()
        handler.proxy(Sink(), on_error="raise").fail()  # the next call of a thread that isn't ours raises
        pinged = handler.proxy(ping)
        assert told.wait(PATIENCE)
        with pytest.raises(LaneError, match="disk full"):
            pinged()
        assert pinged().wait() == "pong"
        gate.opened.set()
