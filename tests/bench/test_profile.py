"""``async-trainer profile``: where it says that a callback should run."""

from __future__ import annotations

import json
import os
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from async_trainer import cli
from async_trainer.bench.advice import Figures, advise
from async_trainer.bench.watched import Spent, thread_wants

CALLBACKS = """
import time
from async_trainer import background

class Computes:
    def on_batch_end(self, *, step):
        for n in range(150_000): pass

class Waits:
    def on_batch_end(self, *, step): time.sleep(0.005)

class Tiny:
    def on_batch_end(self, *, step): pass

class Names:
    def on_batch_end(self, *, model, state): model.state_dict()

class Webhook:
    async def on_batch_end(self, *, state): pass

class Locked:
    def __init__(self):
        import threading
        self.lock = threading.Lock()
    def on_batch_end(self, *, state): pass

class NeedsItsOwnProcess:
    def on_batch_end(self, *, step):
        import os
        if os.environ.get("PYTEST_PID") == str(os.getpid()):
            raise RuntimeError("not here")
        for n in range(10_000): pass

class Fails:
    def on_batch_end(self, *, step): raise RuntimeError("never")

def make(): return [Computes(), background(Waits(), queue_size=100), Tiny()]

def loop(handler):
    for step in range(40):
        for n in range(60_000): pass
        handler.call_event("on_batch_end", step=step)

number = 3
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "mine.py").write_text(CALLBACKS)
    monkeypatch.chdir(tmp_path)
    return "mine.py"


@pytest.mark.slow
def test_it_sends_what_computes_to_a_process_what_waits_to_a_thread_and_leaves_the_tiny_inline(
    module: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib")
    picture, figures = tmp_path / "p.png", tmp_path / "p.json"
    argv = ["profile", f"{module}:make", "--loop", f"{module}:loop", "--plot", str(picture), "--json", str(figures)]
    assert cli.main(argv) == 0
    out = capsys.readouterr().out
    assert "computes: run it in a process: it computes for" in out
    assert "waits: run it in a thread: its hooks wait for" in out
    assert "tiny: run it inline: its hooks take 0." in out
    assert picture.read_bytes().startswith(b"\x89PNG")
    computes, waits, tiny = json.loads(figures.read_text())["callbacks"]
    assert [set(one["runs"]) for one in (computes, waits, tiny)] == 3 * [{"without", "inline", "thread", "process"}]
    for one in (computes, waits, tiny):
        assert one["runs"]["inline"]["hooks"]["on_batch_end"]["calls"] == 40
        assert one["runs"]["thread"]["events"]["on_batch_end"]["calls"] == 40


def test_a_synthetic_loop_brings_what_a_training_has_and_says_what_is_captured(
    module: str, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["profile", f"{module}:Names", "--epochs", "1", "--batches", "3", "--width", "300", "--rounds", "1"]
    assert cli.main(argv) == 0
    row = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("names.on_batch_end"))
    assert row.split()[1] == "5"  # three of training, two of validation
    assert row.endswith("0.4 MB")  # 300 x 300 weights; vectors are no big values


def test_async_hooks_are_a_task_and_what_can_t_be_sent_is_said_so(
    module: str, capsys: pytest.CaptureFixture[str]
) -> None:
    targets = [f"{module}:Webhook", f"{module}:Locked"]
    assert cli.main(["profile", *targets, "--epochs", "1", "--batches", "2", "--width", "8", "--rounds", "1"]) == 0
    out = capsys.readouterr().out
    assert "webhook: run it as a task: its hooks are async" in out
    hooks = [line.split()[0] for line in out.splitlines() if line.startswith("webhook.on_")]
    assert hooks == ["webhook.on_batch_end"], "no other events' captures"
    refused = next(line for line in out.splitlines() if line.startswith("process "))
    assert "lock" in refused


def test_what_fails_inline_and_in_a_thread_is_told_and_goes_where_it_can(
    module: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTEST_PID", str(os.getpid()))
    argv = ["profile", f"{module}:NeedsItsOwnProcess", "--loop", f"{module}:loop", "--rounds", "1"]
    assert cli.main(argv) == 0
    out = capsys.readouterr().out
    where = {line.split()[0]: line for line in out.splitlines() if line.startswith(("inline", "thread", "process"))}
    assert where["inline"].endswith("RuntimeError: not here")
    assert "needs_its_own_process.on_batch_end" in where["thread"]
    assert "ms" in where["process"]
    assert "needs_its_own_process: run it in a process: it fails in a thread" in out
    assert [line.split()[1] for line in out.splitlines() if line.startswith("needs_its_own_process.on")] == ["40"]


def test_what_fails_everywhere_is_said_in_a_line_with_the_status_1(
    module: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["profile", f"{module}:Fails", "--loop", f"{module}:loop", "--rounds", "1"]) == 1
    assert "async-trainer profile: fails can't be profiled: RuntimeError: never\n" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["nowhere.py:make"], "there is no file 'nowhere.py'"),
        (["mine.py:makes"], "did you mean 'make'"),
        (["mine.py:make", "--loop", "mine.py:number"], "no function that takes a handler"),
    ],
)
def test_what_can_t_be_found_is_named(
    argv: list[str], message: str, module: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["profile", *argv]) == 1
    assert message in capsys.readouterr().err


COMPUTES = Figures(hooks=2.0, cpu=1.9, loop=1.0, handing=0.01, beside_thread=2.2)


@pytest.mark.parametrize(
    ("seen", "placement", "why"),
    [
        (COMPUTES, "process", "computes for 95%"),
        (replace(COMPUTES, process=False), "thread", "can't run in a process"),
        (replace(COMPUTES, beside_thread=1.01), "thread", "gives the interpreter up"),
        (replace(COMPUTES, cpu=0.1), "thread", "wait for 95%"),
        (replace(COMPUTES, hooks=0.1, cpu=0.1), "thread", "10% of the loop's time"),
        (replace(COMPUTES, inline=False, hooks=0.001, cpu=0.0), "thread", "wait for 100%"),
        (replace(COMPUTES, inline=False, thread=False), "process", "fails in a thread"),
        (replace(COMPUTES, thread=False, process=False), "inline", "fails elsewhere"),
        (replace(COMPUTES, hooks=0.009, cpu=0.009), "inline", "0.9% of the loop"),
        (replace(COMPUTES, hooks=0.05, handing=0.06), "inline", "handing its events over"),
        (replace(COMPUTES, steers=True), "inline", "changes the training"),
        (replace(COMPUTES, asynchronous=True), "task", "async"),
    ],
)
def test_the_advice_follows_the_figures(seen: Figures, placement: str, why: str) -> None:
    advice = advise(seen)
    assert advice.placement == placement
    assert why in advice.why


def test_a_callback_that_is_slower_than_the_loop_is_told_so() -> None:
    assert "slower than the loop" in advise(COMPUTES).why
    assert "slower than the loop" not in advise(replace(COMPUTES, hooks=0.9, cpu=0.9)).why


def test_a_thread_that_waits_wants_no_core_and_one_that_computes_does() -> None:
    asleep, awake = Spent(), Spent()

    def measure() -> None:
        for spent, work in ((asleep, lambda: time.sleep(0.1)), (awake, lambda: sum(range(2_000_000)))):
            wanted, began = thread_wants(), time.perf_counter()
            work()
            spent.add(time.perf_counter() - began, thread_wants() - wanted)

    thread = threading.Thread(target=measure)
    thread.start()
    thread.join()
    assert asleep.busy < 0.5 < awake.busy
