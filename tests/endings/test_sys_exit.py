"""sys.exit: the status is kept, whatever the lanes do."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.endings.child import numbers, run

with_or_without = pytest.mark.parametrize("managed", [True, False], ids=["with", "without"])

LOOP = """
    import contextlib
    hung = {hung}
    handler = CallbacksHandler([Rows(pause=0.001), *hung], stall_timeout=0.5, shutdown_timeout=1.0)
    with handler if {managed} else contextlib.nullcontext():
        for step in range(100):
            handler.call_event("on_batch_end", step=step)
        for callback in hung:
            callback.entered.wait()
        sys.exit({code})
"""


@with_or_without
@pytest.mark.parametrize(("code", "status"), [("", 0), ("0", 0), ("3", 3), ("'it is over'", 1)])
def test_the_status_of_sys_exit_is_kept(tmp_path: Path, managed: bool, code: str, status: int) -> None:
    ended = run(tmp_path, LOOP.format(hung=[], managed=managed, code=code)).check(status)
    assert ended.rows == numbers(100)
    assert ended.err == ("it is over\n" if status == 1 else "")


@with_or_without
@pytest.mark.parametrize(("code", "status"), [("0", 0), ("3", 3), ("'it is over'", 1)])
def test_the_status_of_sys_exit_is_kept_though_a_hook_hangs(
    tmp_path: Path, managed: bool, code: str, status: int
) -> None:
    ended = run(tmp_path, LOOP.format(hung="[hangs('sleeps')]", managed=managed, code=code)).check(status)
    assert ended.rows == numbers(100)
    assert "still inside a hook: hangs" in ended.err
    assert ("it is over" in ended.err) == (status == 1)
    assert ended.seconds < 10


def test_a_sys_exit_that_was_caught_is_not_the_status(tmp_path: Path) -> None:
    ended = run(
        tmp_path,
        """
        def evaluate():
            try:
                with CallbacksHandler([Rows()]) as handler:
                    handler.call_event("on_batch_end", step=0)
                    sys.exit(3)
            except SystemExit:
                print("caught")
        evaluate()
        callback = hangs("sleeps")
        handler = CallbacksHandler([callback], stall_timeout=0.5)
        handler.call_event("on_batch_end", step=0)
        callback.entered.wait()
        """,
    ).check()
    assert ended.out == "caught\n"


def test_an_exception_after_a_caught_sys_exit_gives_status_1(tmp_path: Path) -> None:
    ended = run(
        tmp_path,
        """
        callback = hangs("sleeps")
        handler = CallbacksHandler([callback], stall_timeout=0.5)
        handler.call_event("on_batch_end", step=0)
        callback.entered.wait()
        try:
            sys.exit(3)
        except SystemExit:
            pass
        raise ValueError("the loop's own")
        """,
    ).check(1)
    assert "ValueError: the loop's own" in ended.err


@pytest.mark.parametrize("how", ["sys.exit(5)", "raise SystemExit(5)", "exit(5)", "raise KeyboardInterrupt"])
@pytest.mark.parametrize("define", ["def", "async def"])
def test_an_exit_inside_a_background_hook_is_that_events_failure(tmp_path: Path, how: str, define: str) -> None:
    ended = run(
        tmp_path,
        f"""
        class Exits(Callback):
            background = {{}}
            {define} on_batch_end(self, *, step):
                if step == 1:
                    {how}
                write_row(step)
        handler = CallbacksHandler([Exits()])
        for step in range(3):
            handler.call_event("on_batch_end", step=step)
        report = handler.close()
        print(report.delivered, report.failed, report.lost)
        hung = hangs("sleeps")
        handler = CallbacksHandler([hung], stall_timeout=0.3)
        handler.call_event("on_batch_end")
        hung.entered.wait()
        """,
    ).check()
    assert ended.out == "2 1 0\n"
    assert ended.rows == ["0", "2"]
