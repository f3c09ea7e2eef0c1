"""SIGTERM, which schedulers send before they take the machine away: in real processes."""

from __future__ import annotations

import signal
import threading
from pathlib import Path
from typing import Any

import pytest

from tests.endings.child import Child
from tests.train.kit import Recorder, split, trainer

SCRIPT = """
PAUSE = 0.1
from pathlib import Path
from tests.train.kit import *

class Log:
    def on_batch_end(self, *, state, event): write_row(f"batch {state.current_train_batch}")
    def on_exception(self, *, exception): write_row(f"told of {exception!r}")

class Waits:
    def on_forward_step_start(self, *, state):
        if state.current_train_batch == 3:
            print("in batch 3", flush=True)
            while signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
                time.sleep(0.01)
            print("noted", flush=True)
            time.sleep(PAUSE)

study = trainer(Path.cwd(), [Waits(), background(Log())], num_epochs=100)
study.train(split())
"""


def test_sigterm_ends_the_training_after_the_batch_with_status_143(tmp_path: Path) -> None:
    child = Child(tmp_path, SCRIPT)
    child.wait_for("in batch 3")
    child.send(signal.SIGTERM)
    ended = child.end().check(143)
    assert ended.rows == ["batch 1", "batch 2", "batch 3", "told of SystemExit(143)"]
    assert '"status": "ended by SIGTERM (status 143)"' in (tmp_path / "maps" / "split-0" / "split.json").read_text()


def test_a_second_sigterm_ends_the_process_at_once(tmp_path: Path) -> None:
    child = Child(tmp_path, SCRIPT.replace("PAUSE = 0.1", "PAUSE = 1000"))
    child.wait_for("in batch 3")
    child.send(signal.SIGTERM)
    child.wait_for("noted")
    child.send(signal.SIGTERM)
    assert child.end().status == -signal.SIGTERM


def test_sigterm_is_left_to_whoever_handles_it_and_restored_afterwards(tmp_path: Path) -> None:
    seen: list[Any] = []

    class Looks:
        def on_batch_end(self) -> None:
            seen.append(signal.getsignal(signal.SIGTERM))

    def ours(number: int, frame: Any) -> None:
        raise AssertionError

    study = trainer(tmp_path, [Looks()], num_epochs=1)
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    study.train(split())
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    assert signal.SIG_DFL not in seen, "a training on the main thread handles it"
    seen.clear()
    signal.signal(signal.SIGTERM, ours)
    try:
        study.train(split(1))
        assert set(seen) == {ours}
        assert signal.getsignal(signal.SIGTERM) is ours
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def test_a_training_on_another_thread_leaves_signals_alone(tmp_path: Path) -> None:
    recorder = Recorder()
    seen: list[Any] = []

    class Looks:
        def on_batch_end(self) -> None:
            seen.append(signal.getsignal(signal.SIGTERM))

    study = trainer(tmp_path, [Looks(), recorder], num_epochs=1)
    thread = threading.Thread(target=study.train, args=(split(),))
    thread.start()
    thread.join()
    assert set(seen) == {signal.SIG_DFL}
    assert recorder.names[-1] == "on_train_end"


def test_sigterm_in_the_last_moment_still_ends_the_process(tmp_path: Path) -> None:
    class Sends:
        def on_train_end(self) -> None:
            signal.raise_signal(signal.SIGTERM)

    study = trainer(tmp_path, [Sends()], num_epochs=1)
    with pytest.raises(SystemExit) as raised:
        study.train(split())
    assert raised.value.code == 143
    assert study.maps.split(0).read()["status"] == "finished"
