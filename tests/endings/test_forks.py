"""Forked and spawned children: they run no hooks, wait for no lock of ours, and disturb nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.endings.child import numbers, run


def test_a_forked_child_ends_without_its_parents_checkpoint_and_errors(tmp_path: Path) -> None:
    ended = run(
        tmp_path,
        """
        import faulthandler
        class Fails:
            def __init__(self):
                self.go, self.failed = threading.Event(), threading.Event()
            def on_batch_end(self, *, step):
                if step:
                    self.failed.set()
                    self.go.wait()
                raise ValueError("the parent's")
        fails = Fails()
        handler = CallbacksHandler([background(fails, on_error="raise_at_end")])
        for step in range(2):
            handler.call_event("on_batch_end", step=step)
        fails.failed.wait()
        handler.checkpoint("resume", step=1)  # it waits for the lane
        pid = os.fork()
        if pid == 0:
            faulthandler.dump_traceback_later(5, exit=True)
            handler.finish()
            handler.close()
            os._exit(7)
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        fails.go.set()
        try:
            handler.close()
        except Exception as error:
            tell(f"{status} {type(error).__name__}")
        """,
    ).check()
    assert ended.out == "7 LaneError\n", ended.err


def test_a_forked_child_does_not_write_over_what_its_parent_has_written(tmp_path: Path) -> None:
    ended = run(
        tmp_path,
        """
        import faulthandler
        from async_trainer.errors import ConfigurationError
        handler = CallbacksHandler([Rows()])
        handler.publish("run")
        handler.call_event("on_batch_end", step=0)
        handler.checkpoint("resume", step=1).wait()
        pid = os.fork()
        if pid == 0:
            faulthandler.dump_traceback_later(5, exit=True)
            refused = 0
            for call in (handler.publish, handler.checkpoint, handler.restore):
                try:
                    call("run" if call == handler.publish else "resume")
                except ConfigurationError as error:
                    refused += "in a forked child" in str(error)
            os._exit(refused)
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        bundles = [name for name in os.listdir("resume") if name != "latest"]
        handler.close()
        tell(f"{status} {bundles}")
        """,
    ).check()
    assert ended.out == "3 ['bundle-000001']\n", ended.err


@pytest.mark.parametrize("how", ["sys.exit(4)", "os._exit(4)", "raise ValueError('the child')", "pass"])
def test_a_forked_child_runs_no_hook_and_ends_as_it_likes(tmp_path: Path, how: str) -> None:
    ended = run(
        tmp_path,
        f"""
        import faulthandler
        handler = CallbacksHandler([Rows(pause=0.01), AsyncRows("async_rows", pause=0.01)])
        log = handler.proxy(write_row, name="log")
        for step in range(20):
            handler.call_event("on_batch_end", step=step)
        pid = os.fork()
        if pid == 0:
            faulthandler.dump_traceback_later(5, exit=True)
            for step in range(100):
                handler.call_event("on_batch_end", step="child")
                handler.call_event("on_never_heard_of", step="child")
                log("child")
            handler.flush()
            handler.barrier().wait()
            handler.stats()
            handler.state_dict()
            handler.close()
            {how}
            sys.exit(0)
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        handler.close()
        tell(status)
        """,
    ).check()
    assert int(ended.out) == {"sys.exit(4)": 4, "os._exit(4)": 4, "pass": 0}.get(how, 1), ended.err
    assert ended.rows == numbers(20)
    assert (tmp_path / "async_rows").read_text().split() == numbers(20)


def test_a_child_forked_while_every_lock_is_held_does_not_wait(tmp_path: Path) -> None:
    ended = run(
        tmp_path,
        """
        import contextlib, faulthandler
        from async_trainer.runtime.interpreter import switch_interval
        handler = CallbacksHandler([Rows(pause=0.01), AsyncRows("async_rows", pause=0.01)])
        for step in range(20):
            handler.call_event("on_batch_end", step=step)
        forked = threading.Event()
        held = threading.Event()
        def hold():  # another thread, that isn't there in the child
            with handler._pool._lock, handler._pool.failures._lock, switch_interval._lock:
                held.set()
                forked.wait()
        threading.Thread(target=hold).start()
        held.wait()
        pid = os.fork()
        if pid == 0:
            faulthandler.dump_traceback_later(5, exit=True)
            handler.call_event("on_batch_end", step="child")
            handler.flush()
            handler.stats()
            handler.close()
            with CallbacksHandler([Rows()]) as own:  # a handler of its own works
                own.call_event("on_batch_end", step="own")
            os._exit(0)
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        forked.set()
        handler.close()
        tell(status)
        """,
    ).check()
    assert ended.out == "0\n", ended.err
    assert sorted(ended.rows) == sorted([*numbers(20), "own"])


def test_children_forked_again_and_again_while_lanes_are_busy(tmp_path: Path) -> None:
    ended = run(
        tmp_path,
        """
        import faulthandler
        handler = CallbacksHandler([Rows(), AsyncRows("async_rows")])
        log = handler.proxy(write_row, name="log")
        failed = 0
        for step in range(2000):
            handler.call_event("on_batch_end", step=step)
            if step % 20 == 0:
                pid = os.fork()
                if pid == 0:
                    faulthandler.dump_traceback_later(5, exit=True)
                    handler.call_event("on_batch_end", step="child")
                    log("child")
                    handler.close()
                    os._exit(0)
                failed += os.waitpid(pid, 0)[1] != 0
        handler.close()
        tell(failed)
        """,
    ).check()
    assert ended.out == "0\n", ended.err
    assert ended.rows == numbers(2000)
    assert (tmp_path / "async_rows").read_text().split() == numbers(2000)


def test_a_hook_may_fork(tmp_path: Path) -> None:
    ended = run(
        tmp_path,
        """
        import subprocess
        class Forks(Callback):
            background = {}
            def on_batch_end(self, *, step):
                pid = os.fork()
                if pid == 0:
                    handler.call_event("on_epoch_end")
                    os._exit(0)
                os.waitpid(pid, 0)
                subprocess.run(["true"], check=True)
                write_row(step)
        handler = CallbacksHandler([Forks()])
        for step in range(5):
            handler.call_event("on_batch_end", step=step)
        """,
    ).check()
    assert ended.rows == numbers(5)


@pytest.mark.parametrize("persistent", [True, False])
def test_workers_of_a_torch_data_loader_run_no_hooks_and_disturb_nothing(tmp_path: Path, persistent: bool) -> None:
    ended = run(
        tmp_path,
        f"""
        import logging
        from torch.utils.data import DataLoader, Dataset

        class Log(logging.Handler):
            def emit(self, record):
                write_row(record.getMessage(), "log")

        logger = logging.getLogger("data")
        logger.setLevel("INFO")

        class Data(Dataset):
            def __len__(self):
                return 64
            def __getitem__(self, n):
                handler.call_event("on_batch_end", step="child")
                logger.info("item %d", n)
                handler.stats()
                return n

        handler = CallbacksHandler([Rows(pause=0.002), AsyncRows("async_rows", pause=0.002)], stall_timeout=20)
        logger.addHandler(handler.proxy(Log()))
        logger.info("parent")
        data = DataLoader(Data(), batch_size=4, num_workers=2, multiprocessing_context="fork",
                          persistent_workers={persistent})
        with handler:
            step = 0
            for epoch in range(3):
                for batch in data:
                    handler.call_event("on_batch_end", step=step)
                    step += 1
        print(handler.close())
        """,
        OMP_NUM_THREADS="2",
    ).check()
    assert ended.rows == numbers(48)
    assert (tmp_path / "async_rows").read_text().split() == numbers(48)
    assert (tmp_path / "log").read_text() == "parent\n"
    assert ended.out == "97 delivered, 0 failed, 0 dropped, 0 lost\n"
    assert ended.seconds < 20


@pytest.mark.parametrize("method", ["spawn", "forkserver", "fork"])
def test_a_handler_given_to_another_process_is_its_unstarted_list_there(tmp_path: Path, method: str) -> None:
    ended = run(
        tmp_path,
        f"""
        import multiprocessing
        def train(handler):
            with handler:
                for step in range(10):
                    handler.call_event("on_batch_end", step=step)
        if __name__ == "__main__":
            handler = CallbacksHandler([Rows()])
            if {method!r} != "fork":  # there the child has the handler itself
                handler.call_event("on_batch_end", step="parent")
                handler.flush()
            child = multiprocessing.get_context({method!r}).Process(target=train, args=(handler,))
            child.start()
            child.join()
            print(child.exitcode)
            handler.call_event("on_batch_end", step="parent again")
        """,
    ).check()
    assert ended.out == "0\n", ended.err
    first = [] if method == "fork" else ["parent"]
    assert ended.rows == [*first, *numbers(10), "parent again"]


def test_a_forked_child_that_never_closes_its_own_handler_loses_nothing(tmp_path: Path) -> None:
    ended = run(
        tmp_path,
        """
        import multiprocessing
        def train():
            handler = CallbacksHandler([Rows(pause=0.002)])
            for step in range(50):
                handler.call_event("on_batch_end", step=step)
        handler = CallbacksHandler([Rows("parent")])
        handler.call_event("on_batch_end", step=0)
        child = multiprocessing.get_context("fork").Process(target=train)
        child.start()
        child.join()
        """,
    ).check()
    assert ended.rows == numbers(50)


def test_under_pytest_xdist(tmp_path: Path) -> None:
    (tmp_path / "test_it.py").write_text(
        """
import pytest
from async_trainer import CallbacksHandler
from tests.endings.kit import Rows, AsyncRows

@pytest.mark.parametrize("n", range(8))
def test_one(n):
    with CallbacksHandler([Rows(f"rows{n}"), AsyncRows(f"async{n}")]) as handler:
        for step in range(10):
            handler.call_event("on_batch_end", step=step)

@pytest.mark.parametrize("n", range(8, 12))
def test_never_closed(n):
    handler = CallbacksHandler([Rows(f"rows{n}", pause=0.001)])
    for step in range(10):
        handler.call_event("on_batch_end", step=step)
"""
    )
    ended = run(
        tmp_path,
        """
        import subprocess
        done = subprocess.run([sys.executable, "-m", "pytest", "-q", "-n", "2", "-p", "no:cacheprovider", "."])
        sys.exit(done.returncode)
        """,
    ).check()
    assert "12 passed" in ended.out
    for n in range(12):
        assert (tmp_path / f"rows{n}").read_text().split() == numbers(10)
