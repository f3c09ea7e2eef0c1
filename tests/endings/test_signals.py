"""Real signals to a real process."""

from __future__ import annotations

import re
import signal
from pathlib import Path

import pytest

from tests.endings.child import Child, numbers

with_or_without = pytest.mark.parametrize("managed", [True, False], ids=["with", "without"])

LOOP = """
    import contextlib, atexit
    callbacks = {callbacks}
    atexit.register(tell, "exit function")
    handler = CallbacksHandler(callbacks, shutdown_timeout={timeout})
    with handler if {managed} else contextlib.nullcontext():
        for step in range(200):
            handler.call_event("on_batch_end", step=step)
        wait_for_a_row()
        tell("ready")
        while True:
            time.sleep(0.001)
"""


@with_or_without
def test_ctrl_c_drains_and_ends_by_the_signal(tmp_path: Path, managed: bool) -> None:
    child = Child(tmp_path, LOOP.format(callbacks="[Rows(pause=0.002)]", managed=managed, timeout=20))
    child.wait_for("ready")
    child.send(signal.SIGINT)
    ended = child.end().check(-signal.SIGINT)
    assert ended.rows == numbers(200)
    assert ended.err.count("KeyboardInterrupt") == 1
    assert "exit function" in ended.out


@with_or_without
def test_after_ctrl_c_the_drain_is_bounded(tmp_path: Path, managed: bool) -> None:
    child = Child(tmp_path, LOOP.format(callbacks="[Rows(pause=0.3)]", managed=managed, timeout=1.0))
    child.wait_for("ready")
    child.send(signal.SIGINT)
    ended = child.end().check(-signal.SIGINT)
    assert 1 < len(ended.rows) < 12
    assert ended.seconds < 8
    assert "lost" in ended.err
    assert "exit function" in ended.out


@with_or_without
def test_a_second_ctrl_c_ends_the_drain_at_once(tmp_path: Path, managed: bool) -> None:
    callbacks = "[Rows(pause=0.1)], [Rows('rows2', pause=0.1)]"
    script = f"""
    import contextlib
    stack = contextlib.ExitStack()
    handlers = [CallbacksHandler(callbacks, shutdown_timeout=100, stall_timeout=100) for callbacks in ({callbacks})]
    with stack:
        for handler in handlers:
            if {managed}:
                stack.enter_context(handler)
            for step in range(200):
                handler.call_event("on_batch_end", step=step)
        wait_for_a_row("rows", "rows2")
        tell_when_in("draining", "_close", "_drain")
        tell("ready")
        while True:
            time.sleep(0.001)
    """
    child = Child(tmp_path, script)
    child.wait_for("ready")
    child.send(signal.SIGINT)
    child.wait_for("draining")
    child.send(signal.SIGINT)
    ended = child.end()
    assert ended.seconds < 4, ended
    ended.check(-signal.SIGINT)
    assert len(ended.rows) < 40


@with_or_without
@pytest.mark.parametrize("hook", ["sleeps", "loops_in_python", "sleeps_async"])
def test_ctrl_c_with_a_hook_that_never_returns_ends_by_the_signal(tmp_path: Path, hook: str, managed: bool) -> None:
    callbacks = f"[Rows(), hangs({hook!r})]"
    child = Child(tmp_path, LOOP.format(callbacks=callbacks, managed=managed, timeout=0.5))
    child.wait_for("ready")
    child.send(signal.SIGINT)
    ended = child.end().check(-signal.SIGINT)
    assert ended.rows == numbers(200)
    assert ended.seconds < 8
    assert "exit function" in ended.out


def test_sigterm_is_left_alone(tmp_path: Path) -> None:
    child = Child(tmp_path, LOOP.format(callbacks="[Rows(pause=0.01)]", managed=True, timeout=20))
    child.wait_for("ready")
    child.send(signal.SIGTERM)
    ended = child.end().check(-signal.SIGTERM)
    assert ended.seconds < 2
    assert 0 < len(ended.rows) < 200


def test_sigterm_made_a_sys_exit_drains_and_keeps_its_status(tmp_path: Path) -> None:
    script = "signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))\n" + LOOP.format(
        callbacks="[Rows(pause=0.002)]", managed=True, timeout=20
    ).replace("\n    ", "\n")
    child = Child(tmp_path, script)
    child.wait_for("ready")
    child.send(signal.SIGTERM)
    ended = child.end().check(143)
    assert ended.rows == numbers(200)


def test_a_signal_handler_may_drain(tmp_path: Path) -> None:
    child = Child(
        tmp_path,
        """
        handler = CallbacksHandler([Rows()])
        def on_term(*_):
            handler.close()
            os._exit(9)
        signal.signal(signal.SIGTERM, on_term)
        handler.call_event("on_batch_end", step=0)
        tell("ready")
        while True:
            handler.call_event("on_epoch_end", step=0)
        """,
    )
    child.wait_for("ready")
    child.send(signal.SIGTERM)
    assert child.end().check(9).rows == ["0"]


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_the_loop_runs_though_ctrl_c_in_an_import_has_left_the_import_lock_taken(tmp_path: Path, backend: str) -> None:
    # The first event imports what captures its arguments; whatever Ctrl-C does to that, the loop has been imported.
    script = """
        import _imp
        with CallbacksHandler([AsyncRows()]) as handler:
            _imp.acquire_lock()  # as an interrupt in importlib leaves it
            handler.call_event("on_batch_end", step=0)
            assert not handler.flush(10).stalled
    """
    assert Child(tmp_path, script, backend).end().check().rows == ["0"]


def test_ctrl_c_ends_by_the_signal_though_a_hook_evaluates_code(tmp_path: Path) -> None:
    # CPython forgets at each eval() of a string, in whatever thread, that Ctrl-C has ended the program.
    child = Child(
        tmp_path,
        """
        go = threading.Event()
        class Evaluates(Callback):
            background = {}
            def on_batch_end(self, *, step):
                go.wait()
                write_row(eval("step + 0"))
        handler = CallbacksHandler([Evaluates()])
        for step in range(3):
            handler.call_event("on_batch_end", step=step)
        threading._register_atexit(go.set)
        tell("ready")
        while True:
            time.sleep(0.001)
        """,
    )
    child.wait_for("ready")
    child.send(signal.SIGINT)
    assert child.end().check(-signal.SIGINT).rows == numbers(3)


def test_a_signal_handler_that_exits_during_the_drain_ends_it(tmp_path: Path) -> None:
    child = Child(
        tmp_path,
        """
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
        handlers = [CallbacksHandler([Rows(f"rows{n}", pause=0.2)], stall_timeout=100) for n in range(2)]
        for step in range(1000):
            for handler in handlers:
                handler.call_event("on_batch_end", step=step)
        def outlives():
            threading.main_thread().join()
            write_row("the thread")
        threading.Thread(target=outlives).start()
        wait_for_a_row("rows1")
        tell_when_in("ready", "_drain")
        """,
    )
    child.wait_for("ready")
    child.send(signal.SIGTERM)
    ended = child.end()
    assert ended.seconds < 5
    assert ended.rows == ["the thread"]
    assert "ends the drain" in ended.err
    ended.check(143)


def test_ctrl_c_in_the_drain_of_a_normal_end_ends_by_the_signal(tmp_path: Path) -> None:
    child = Child(
        tmp_path,
        """
        import atexit
        atexit.register(tell, "exit function")
        handler = CallbacksHandler([Rows(pause=0.1)], stall_timeout=100)
        for step in range(1000):
            handler.call_event("on_batch_end", step=step)
        tell_when_in("ready", "_drain")
        """,
    )
    child.wait_for("ready")
    child.send(signal.SIGINT)
    ended = child.end().check(-signal.SIGINT)
    assert ended.seconds < 3
    assert "KeyboardInterrupt ends the drain" in ended.err
    assert "exit function" in ended.out


@with_or_without
def test_a_drain_that_ctrl_c_has_begun_and_that_takes_long_says_how_to_stop_it(tmp_path: Path, managed: bool) -> None:
    child = Child(tmp_path, LOOP.format(callbacks="[Rows(pause=0.02)]", managed=managed, timeout=1.5))
    child.wait_for("ready")
    child.send(signal.SIGINT)
    ended = child.end().check(-signal.SIGINT)
    assert re.search(r"^draining 1\d\d events for at most \S+ s; Ctrl-C again to stop$", ended.err, re.MULTILINE)
    assert ended.err.count("draining") == 1
    assert ended.err.count(" lost;") == 1, "one total"


@with_or_without
def test_a_drain_that_is_soon_over_says_nothing(tmp_path: Path, managed: bool) -> None:
    child = Child(tmp_path, LOOP.format(callbacks="[Rows()]", managed=managed, timeout=20))
    child.wait_for("ready")
    child.send(signal.SIGINT)
    assert "draining" not in child.end().check(-signal.SIGINT).err
