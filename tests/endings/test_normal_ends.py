"""The process ends by itself, and everything that was emitted is there."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.endings.child import numbers, run

backends = pytest.mark.parametrize("backend", ["asyncio", "trio"])


def test_a_script_that_never_closes_its_handler_loses_nothing(tmp_path: Path) -> None:
    ended = run(
        tmp_path,
        """
        handler = CallbacksHandler([Rows(pause=0.001)])
        for step in range(300):
            handler.call_event("on_batch_end", step=step)
        print("the end")
        """,
    ).check()
    assert ended.rows == numbers(300)
    assert ended.out == "the end\n"
    assert ended.err == ""


@backends
def test_async_hooks_of_a_script_that_never_closes_its_handler_lose_nothing(tmp_path: Path, backend: str) -> None:
    script = """
        handler = CallbacksHandler([AsyncRows(pause=0.001)])
        for step in range(100):
            handler.call_event("on_batch_end", step=step)
        """
    ended = run(tmp_path, script, backend).check()
    assert ended.rows == numbers(100)
    assert ended.err == ""


def test_a_handler_in_a_function_that_never_closes_it_loses_nothing(tmp_path: Path) -> None:
    ended = run(
        tmp_path,
        """
        def main():
            handler = CallbacksHandler([Rows(pause=0.001)])
            for step in range(300):
                handler.call_event("on_batch_end", step=step)
        main()
        """,
    ).check()
    assert ended.rows == numbers(300)
    assert ended.err == ""


def test_leaving_with_means_that_everything_is_there(tmp_path: Path) -> None:
    ended = run(
        tmp_path,
        """
        with CallbacksHandler([Rows(pause=0.001)]) as handler:
            for step in range(300):
                handler.call_event("on_batch_end", step=step)
        print(len(open("rows").readlines()), threading.active_count())
        """,
    ).check()
    assert ended.out == "300 1\n"


def test_several_handlers_are_all_drained(tmp_path: Path) -> None:
    ended = run(
        tmp_path,
        """
        handlers = [CallbacksHandler([Rows(f"rows{n}", pause=0.001), AsyncRows(f"async{n}")]) for n in range(4)]
        for step in range(100):
            for handler in handlers:
                handler.call_event("on_batch_end", step=step)
        """,
    ).check()
    assert ended.err == ""
    for n in range(4):
        assert (tmp_path / f"rows{n}").read_text().split() == numbers(100)
        assert (tmp_path / f"async{n}").read_text().split() == numbers(100)


def test_hooks_may_use_executors_print_and_log_while_the_interpreter_ends(tmp_path: Path) -> None:
    ended = run(
        tmp_path,
        """
        import asyncio, logging
        from concurrent.futures import ThreadPoolExecutor
        logging.basicConfig(level="INFO", format="%(message)s")
        go = threading.Event()
        pool = ThreadPoolExecutor(2)

        class Busy(Callback):
            background = {}
            def on_batch_end(self, *, step):
                go.wait()
                pool.submit(write_row, step).result()
                with ThreadPoolExecutor(1) as own:
                    own.submit(print, "printed", step).result()
                logging.info("logged %d", step)

        class AsyncBusy(Callback):
            background = {}
            async def on_batch_end(self, *, step):
                while not go.is_set():
                    await asyncio.sleep(0.001)
                await asyncio.to_thread(write_row, step, "async_rows")

        handler = CallbacksHandler([Busy(), AsyncBusy()])
        for step in range(20):
            handler.call_event("on_batch_end", step=step)
        threading._register_atexit(go.set)  # the exit has begun, and nothing is handled yet
        """,
    ).check()
    assert ended.rows == numbers(20)
    assert (tmp_path / "async_rows").read_text().split() == numbers(20)
    assert ended.out.split("\n")[:-1] == [f"printed {step}" for step in range(20)]
    assert [line for line in ended.err.split("\n") if line.startswith("logged")] == [f"logged {n}" for n in range(20)]


def test_hooks_may_use_a_process_pool_that_was_made_after_the_start(tmp_path: Path) -> None:
    ended = run(
        tmp_path,
        """
        import operator
        go = threading.Event()

        class Busy(Callback):
            background = {}
            def on_batch_end(self, *, step):
                from concurrent.futures import ProcessPoolExecutor
                go.wait()
                with ProcessPoolExecutor(1) as own:
                    write_row(own.submit(operator.mul, step, 1).result())

        if __name__ == "__main__":
            handler = CallbacksHandler([Busy()])
            handler.call_event("on_batch_end", step=0)
            import concurrent.futures.process
            threading._register_atexit(go.set)
        """,
    ).check()
    assert ended.rows == ["0"]


def test_what_a_hook_calls_in_another_lane_while_the_handler_closes_is_delivered(tmp_path: Path) -> None:
    ended = run(
        tmp_path,
        """
        go = threading.Event()

        class Uses(Callback):
            background = {}
            def on_batch_end(self, *, step):
                go.wait()
                writer(step)

        handler = CallbacksHandler([Uses()])
        writer = handler.proxy(write_row)
        for step in range(50):
            handler.call_event("on_batch_end", step=step)
        threading._register_atexit(go.set)
        """,
    ).check()
    assert ended.rows == numbers(50)
    assert ended.err == ""


def test_threads_that_outlive_the_main_thread_may_go_on_training(tmp_path: Path) -> None:
    ended = run(
        tmp_path,
        """
        handler = CallbacksHandler([Rows()])
        def train():
            threading.main_thread().join()
            for step in range(100):
                handler.call_event("on_batch_end", step=step)
        threading.Thread(target=train).start()
        handler.call_event("on_epoch_end")
        """,
    ).check()
    assert ended.rows == numbers(100)
    assert ended.err == ""


def test_os_exit_ends_the_process_at_once(tmp_path: Path) -> None:
    ended = run(
        tmp_path,
        """
        handler = CallbacksHandler([Rows(), hangs("sleeps")])
        handler.call_event("on_batch_end", step=0)
        wait_for_a_row()
        os._exit(7)
        """,
    ).check(7)
    assert ended.rows == ["0"]


def test_a_handler_that_starts_in_an_exit_function_hangs_nothing(tmp_path: Path) -> None:
    ended = run(
        tmp_path,
        """
        import atexit
        @atexit.register
        def late():
            handler = CallbacksHandler([Rows()])
            with handler:
                handler.call_event("on_batch_end", step=0)
            other = CallbacksHandler([Rows(), AsyncRows()])
            other.call_event("on_batch_end", step=1)
            other.flush()
        """,
    ).check()
    assert ended.rows == ["0", "1", "1"]


def test_events_in_an_exit_function_are_told_to_be_lost(tmp_path: Path) -> None:
    ended = run(
        tmp_path,
        """
        import atexit
        handler = CallbacksHandler([Rows()])
        handler.call_event("on_batch_end", step=0)
        atexit.register(lambda: handler.call_event("on_batch_end", step=1))
        """,
    ).check()
    assert ended.rows == ["0"]
    assert "on_batch_end for rows came after close()" in ended.err
