"""A hook never returns: the process ends all the same, as it would have, and everybody else's work is done."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.endings.child import Child, numbers, run

THREAD_HOOKS = ["sleeps", "waits_for_a_lock", "loops_in_python", "copies_tensors", "waits_for_an_executor"]
ASYNC_HOOKS = [
    "sleeps_async",
    "swallows_cancellation",
    "sleeps_in_a_worker_thread",
    "sleeps_in_an_asyncio_thread",
    "blocks_the_loop",
]

SCRIPT = """
    import atexit, contextlib
    atexit.register(tell, "registered before")
    callback = hangs({hook!r})
    handler = CallbacksHandler([callback, Rows()], stall_timeout={stall}, shutdown_timeout={shutdown})
    sys.stdout.write("not flushed yet\\n")
    kept_open = open("open_file", "w")
    kept_open.write("not flushed either")
    with handler if {managed} else contextlib.nullcontext():
        for step in range(10):
            handler.call_event("on_batch_end", step=step)
        callback.entered.wait()
        atexit.register(tell, "registered after")
        def outlives():
            threading.main_thread().join()
            tell("a thread that outlives the main thread")
        threading.Thread(target=outlives).start()
        {last}
"""


def check(folder: Path, hook: str, backend: str, end: str, managed: bool, tmp_limit: float = 8.0) -> None:
    last, status = {
        "normal": ("pass", 0),
        "exception": ("raise ValueError('the loop own')", 1),
        "exit": ("sys.exit(3)", 3),
    }[end]
    stall, shutdown = (0.5, 60) if end == "normal" else (60, 0.5)
    if end == "exit" and not managed:
        stall = 0.5
    script = SCRIPT.format(hook=hook, stall=stall, shutdown=shutdown, managed=managed, last=last)
    ended = run(folder, script, backend).check(status)
    assert ended.rows == numbers(10)
    assert ended.seconds < tmp_limit
    for word in ("registered before", "registered after", "a thread that outlives the main thread", "not flushed yet"):
        assert ended.out.count(word) == 1, ended
    assert (folder / "open_file").read_text() == "not flushed either"
    assert ("ValueError: the loop own" in ended.err) == (end == "exception")
    assert "hangs" in ended.err, "it must be told which lane"


@pytest.mark.parametrize("hook", THREAD_HOOKS)
@pytest.mark.parametrize(("end", "managed"), [("normal", False), ("exception", True)])
def test_a_hook_that_never_returns(tmp_path: Path, hook: str, end: str, managed: bool) -> None:
    check(tmp_path, hook, "asyncio", end, managed)


@pytest.mark.parametrize("hook", ASYNC_HOOKS)
@pytest.mark.parametrize(("backend", "end", "managed"), [("asyncio", "normal", False), ("trio", "exception", True)])
def test_an_async_hook_that_never_returns(tmp_path: Path, hook: str, backend: str, end: str, managed: bool) -> None:
    if (hook, backend) == ("sleeps_in_an_asyncio_thread", "trio"):
        pytest.skip("asyncio only")
    check(tmp_path, hook, backend, end, managed)


@pytest.mark.slow
@pytest.mark.parametrize("hook", THREAD_HOOKS)
@pytest.mark.parametrize(("end", "managed"), [("normal", True), ("exception", False), ("exit", False), ("exit", True)])
def test_a_hook_that_never_returns_whatever_the_end(tmp_path: Path, hook: str, end: str, managed: bool) -> None:
    check(tmp_path, hook, "asyncio", end, managed)


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["asyncio", "trio"])
@pytest.mark.parametrize("hook", ASYNC_HOOKS)
@pytest.mark.parametrize("end", ["normal", "exception", "exit"])
@pytest.mark.parametrize("managed", [True, False], ids=["with", "without"])
def test_an_async_hook_that_never_returns_whatever_the_end(
    tmp_path: Path, hook: str, backend: str, end: str, managed: bool
) -> None:
    if (hook, backend) == ("sleeps_in_an_asyncio_thread", "trio"):
        pytest.skip("asyncio only")
    check(tmp_path, hook, backend, end, managed)


@pytest.mark.slow
def test_a_hook_inside_torch_never_aborts_the_process(tmp_path: Path) -> None:
    # Without os._exit a daemon thread that comes out of a copy while the interpreter ends aborts the process.
    script = SCRIPT.format(hook="copies_tensors", stall=0.3, shutdown=60, managed=False, last="")
    children = []
    for n in range(12):
        folder = tmp_path / str(n)
        folder.mkdir()
        children.append(Child(folder, script))
    for child in children:
        child.end().check()


def test_a_hook_that_waits_between_retries_does_not_hold_the_end_up(tmp_path: Path) -> None:
    ended = run(
        tmp_path,
        """
        class Fails(Callback):
            background = {"retries": 3, "backoff": 1000}
            def on_batch_end(self, **kwargs):
                tell("failed")
                raise OSError("no network")
        class FailsAsync(Fails):
            async def on_batch_end(self, **kwargs):
                tell("failed")
                raise OSError("no network")
        with CallbacksHandler([Fails(), FailsAsync()], stall_timeout=0.5) as handler:
            handler.call_event("on_batch_end")
        print(handler.close())
        """,
    ).check()
    assert ended.out.count("failed\n") == 2
    assert "still inside a hook" not in ended.err
    assert ended.seconds < 5


def test_a_state_dict_that_never_returns_is_bounded_too(tmp_path: Path) -> None:
    ended = run(
        tmp_path,
        """
        class Hangs(Callback):
            background = {}
            def on_batch_end(self, **kwargs):
                pass
            def state_dict(self):
                time.sleep(1000)
        handler = CallbacksHandler([Hangs()], stall_timeout=0.5)
        handler.call_event("on_batch_end")
        barrier = handler.barrier()
        print(barrier.wait(), barrier.late)
        """,
    ).check()
    assert ended.out == "{} ('hangs',)\n"


def test_a_hook_that_hangs_in_print_does_not_hold_the_end_up(tmp_path: Path) -> None:
    # Nobody reads the pipe: the hook hangs in write(), and holds the lock of the stream that the exit would flush. (Of
    # a buffered sys.stdout Python itself waits for that lock, when the script is over, before it calls anyone.)
    child = Child(
        tmp_path,
        """
        class Prints(Callback):
            background = {}
            def on_batch_end(self, **kwargs):
                write_row("prints")
                print("x" * 10_000_000)
        handler = CallbacksHandler([Prints()], stall_timeout=0.5)
        handler.call_event("on_batch_end")
        wait_for_a_row()
        """,
        PYTHONUNBUFFERED="1",
    )
    assert child.process.wait(timeout=20) == 0
    assert child.process.stdout is not None
    child.process.communicate()


def test_a_process_pool_child_with_a_hanging_hook_keeps_its_status(tmp_path: Path) -> None:
    ended = run(
        tmp_path,
        """
        import multiprocessing
        def work(code):
            callback = hangs("sleeps")
            handler = CallbacksHandler([callback, Rows()], stall_timeout=0.5)
            handler.call_event("on_batch_end", step=code)
            callback.entered.wait()
            if code == 1:
                raise ValueError("the child's own")
            sys.exit(code)
        if __name__ == "__main__":
            for method in ("fork", "spawn"):
                context = multiprocessing.get_context(method)
                children = [context.Process(target=work, args=(code,)) for code in (0, 1, 3)]
                for child in children:
                    child.start()
                for child in children:
                    child.join()
                print([child.exitcode for child in children])
        """,
    ).check()
    assert ended.out == "[0, 1, 3]\n" * 2
    assert sorted(ended.rows) == ["0", "0", "1", "1", "3", "3"]


@pytest.mark.parametrize(
    ("end", "status"),
    [("handler.close()", 0), ("raise ValueError", 1), ("sys.exit(3)", 3)],
    ids=["close", "error", "exit"],
)
def test_what_hooks_had_asyncios_executor_do_is_not_waited_for_once_they_are_over(
    tmp_path: Path, end: str, status: int
) -> None:
    # The hook is cancelled, by its timeout or by the end, and its lane ends; but the thread of the executor, which the
    # interpreter joins at exit, and the loop, which waits for it too, do not.
    script = f"""
        import asyncio, atexit
        atexit.register(tell, "exit function")
        class Sleeps(Callback):
            background = {{"timeout": 0.1 if {status == 0} else None}}
            async def on_batch_end(self, *, step):
                write_row("enters")
                await asyncio.to_thread(time.sleep, FOREVER)
        with CallbacksHandler([Sleeps()], shutdown_timeout=0.3) as handler:
            handler.call_event("on_batch_end", step=0)
            wait_for_a_row()
            {end}
        tell("after close()")
    """
    ended = run(tmp_path, script, "asyncio").check(status)
    assert ended.seconds < 8
    assert "exit function" in ended.out
    assert ("after close()" in ended.out) == (status == 0)
    assert "still inside a hook: the event loop" in ended.err


def test_a_log_handler_that_hangs_does_not_hold_up_the_shutdown_of_logging(tmp_path: Path) -> None:
    # logging.shutdown(), an exit function, takes the lock of each log handler, that of one with a hook inside too.
    ended = run(
        tmp_path,
        """
        import logging
        class Dead(logging.Handler):
            def emit(self, record):
                write_row(record.getMessage())
                time.sleep(1000)
        logging.basicConfig(filename="log", level="INFO")
        handler = CallbacksHandler(stall_timeout=0.3)
        logging.getLogger("training").addHandler(handler.proxy(Dead()))
        logging.getLogger("training").info("hello")
        wait_for_a_row()
        """,
    ).check()
    assert ended.rows == ["hello"]
    assert "hello" in (tmp_path / "log").read_text()
    assert "still inside a hook: dead" in (tmp_path / "log").read_text()
    assert ended.seconds < 6


def test_a_hook_that_hangs_in_a_log_handler_of_everybody_does_not_hold_the_end_up(tmp_path: Path) -> None:
    ended = run(
        tmp_path,
        """
        import logging
        from async_trainer.runtime import exits
        exits.PATIENCE = 0.3
        class Dead(logging.Handler):
            def emit(self, record):
                write_row("emitting")
                time.sleep(1000)
        class Logs(Callback):
            background = {}
            def on_batch_end(self, **kwargs):
                logging.getLogger().warning("hello")
        logging.getLogger().addHandler(Dead())
        handler = CallbacksHandler([Logs(), AsyncRows("async_rows")], stall_timeout=0.3)
        handler.call_event("on_batch_end", step=0)
        wait_for_a_row()
        sys.exit(3)
        """,
    ).check(3)
    assert ended.seconds < 8


def test_a_program_that_runs_the_exit_functions_itself_goes_on_after_them(tmp_path: Path) -> None:
    run(
        tmp_path,
        """
        import atexit
        callback = hangs("sleeps")
        handler = CallbacksHandler([callback], stall_timeout=0.2)
        handler.call_event("on_batch_end", step=0)
        callback.entered.wait()
        threading._shutdown()  # as multiprocessing's children end, in newer Pythons
        atexit._run_exitfuncs()
        os._exit(5)
        """,
    ).check(5)


def test_a_hook_that_hangs_in_an_interactive_session_ends_with_status_0(tmp_path: Path) -> None:
    (tmp_path / "session").write_text(
        "from tests.endings.kit import *\n"
        "from async_trainer import CallbacksHandler\n"
        "callback = hangs('sleeps')\n"
        "handler = CallbacksHandler([callback], stall_timeout=0.2)\n"
        "handler.call_event('on_batch_end')\n"
        "callback.entered.wait()\n"
        "1 / 0\n"
    )
    ended = run(
        tmp_path,
        """
        import subprocess
        done = subprocess.run([sys.executable, "-i"], stdin=open("session"), stderr=subprocess.PIPE, text=True)
        print(done.returncode, "ZeroDivisionError" in done.stderr, "still inside a hook" in done.stderr)
        """,
    ).check()
    assert ended.out.splitlines()[-1] == "0 True True"


@pytest.mark.parametrize(("end", "status"), [("pass", 0), ("raise ValueError", 1)])
def test_what_hooks_had_asyncios_executor_do_is_waited_for_within_bounds_where_nobody_closes(
    tmp_path: Path, end: str, status: int
) -> None:
    script = f"""
        import asyncio
        class Sleeps(Callback):
            background = {{"timeout": 0.1}}
            async def on_batch_end(self, *, step):
                asyncio.get_running_loop().run_in_executor(None, lambda: (time.sleep(0.3), write_row(step)))
                if step == 1:
                    await asyncio.to_thread(time.sleep, FOREVER)
        handler = CallbacksHandler([Sleeps()], stall_timeout=1.0, shutdown_timeout=1.0)
        for step in range(2):
            handler.call_event("on_batch_end", step=step)
        handler.flush()
        {end}
    """
    ended = run(tmp_path, script, "asyncio").check(status)
    assert ended.seconds < 8
    assert sorted(ended.rows) == numbers(2), "what ends in time is waited for"
    assert "still inside a hook: the event loop" in ended.err
