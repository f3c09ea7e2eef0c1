"""The loop raises: the drain is bounded, and the loop's own error is what one sees."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.endings.child import numbers, run

with_or_without = pytest.mark.parametrize("managed", [True, False], ids=["with", "without"])

LOOP = """
    import contextlib
    handler = CallbacksHandler([{callbacks}], stall_timeout=100, shutdown_timeout=1.0)
    with handler if {managed} else contextlib.nullcontext():
        for step in range(100):
            handler.call_event("on_batch_end", step=step)
        raise ValueError("the loop's own")
"""


@with_or_without
def test_what_was_emitted_before_an_exception_is_delivered(tmp_path: Path, managed: bool) -> None:
    ended = run(tmp_path, LOOP.format(callbacks="Rows(pause=0.001), AsyncRows('async_rows')", managed=managed)).check(1)
    assert ended.rows == numbers(100)
    assert (tmp_path / "async_rows").read_text().split() == numbers(100)
    assert ended.err.rstrip().endswith("ValueError: the loop's own")
    assert ended.err.count("Traceback") == 1


@with_or_without
def test_after_an_exception_the_drain_is_bounded_by_shutdown_timeout(tmp_path: Path, managed: bool) -> None:
    ended = run(tmp_path, LOOP.format(callbacks="Rows(pause=0.2)", managed=managed)).check(1)
    assert 1 <= len(ended.rows) < 10
    assert ended.seconds < 8
    assert "ValueError: the loop's own" in ended.err
    assert f"{100 - len(ended.rows)} lost" in ended.err or f"{99 - len(ended.rows)} lost" in ended.err


def test_several_handlers_share_the_shutdown_timeout_after_an_exception(tmp_path: Path) -> None:
    ended = run(
        tmp_path,
        """
        handlers = [CallbacksHandler([Rows(pause=0.5)], shutdown_timeout=2.0) for n in range(5)]
        for step in range(100):
            for handler in handlers:
                handler.call_event("on_batch_end", step=step)
        raise ValueError("the loop's own")
        """,
    ).check(1)
    assert ended.seconds < 8


def test_a_lane_that_raises_at_the_end_never_masks_the_loops_own_error(tmp_path: Path) -> None:
    ended = run(
        tmp_path,
        """
        class Fails(Callback):
            background = {"on_error": "raise_at_end"}
            def on_batch_end(self, **kwargs):
                raise OSError("disk full")
        with CallbacksHandler([Fails()]) as handler:
            handler.call_event("on_batch_end")
            raise ValueError("the loop's own")
        """,
    ).check(1)
    assert "OSError: disk full" in ended.err
    assert ended.err.rstrip().endswith("ValueError: the loop's own")
    assert "LaneError" not in ended.err


def test_a_lane_that_raises_at_the_end_ends_the_script_with_status_1(tmp_path: Path) -> None:
    ended = run(
        tmp_path,
        """
        class Fails(Callback):
            background = {"on_error": "raise_at_end"}
            def on_batch_end(self, **kwargs):
                raise OSError("disk full")
        with CallbacksHandler([Fails()]) as handler:
            handler.call_event("on_batch_end")
        """,
    ).check(1)
    assert "LaneError: fails.on_batch_end: OSError: disk full" in ended.err


def test_a_lane_that_raises_at_the_end_of_a_handler_that_nobody_closes_is_told(tmp_path: Path) -> None:
    ended = run(
        tmp_path,
        """
        class Fails(Callback):
            background = {"on_error": "raise_at_end"}
            def on_batch_end(self, **kwargs):
                raise OSError("disk full")
        handler = CallbacksHandler([Fails()])
        handler.call_event("on_batch_end")
        """,
    ).check()
    assert "nobody closed the handler" in ended.err
    assert "disk full" in ended.err


def test_what_is_lost_is_told_once_though_a_hook_comes_out_afterwards(tmp_path: Path) -> None:
    ended = run(
        tmp_path,
        """
        go = threading.Event()
        class Waits(Callback):
            background = {}
            def on_batch_end(self, **kwargs):
                go.wait()
        callback = hangs("sleeps")
        with CallbacksHandler([callback, Waits()], shutdown_timeout=0.1) as handler:
            for step in range(10):
                handler.call_event("on_batch_end", step=step)
            callback.entered.wait()
            threading._register_atexit(go.set)
            raise ValueError("the loop's own")
        """,
    ).check(1)
    assert ended.err.count(" lost;") == 1, ended.err
    assert "20 lost; lost by lane: hangs 10, waits 10; still inside a hook: hangs, waits" in ended.err
