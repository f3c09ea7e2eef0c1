"""Progress: what people see, on a terminal and elsewhere."""

from __future__ import annotations

import io
import logging
import os
import re
import struct
import subprocess
import sys
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from async_trainer import CallbacksHandler, TrainerState, background
from async_trainer.callbacks import EarlyStopping, Progress
from async_trainer.callbacks.progress import _duration
from async_trainer.errors import ConfigurationError
from async_trainer.testing import check_callback, play

ERASE = "\r\x1b[K"


class Terminal(io.StringIO):
    """A terminal of 80 columns, and what is on it."""

    encoding = "utf-8"  # type: ignore[assignment]

    def isatty(self) -> bool:
        return True

    @property
    def drawn(self) -> list[str]:
        """What was drawn on the line, one after the other."""
        return [part for part in self.getvalue().split(ERASE)[1:] if "\n" not in part]

    @property
    def screen(self) -> list[str]:
        """The lines as they stand there in the end."""
        return [line.split(ERASE)[-1] for line in self.getvalue().split("\n")]


class Clock:
    """The time, in seconds."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    time = Clock()
    monkeypatch.setattr("async_trainer.callbacks.progress.clock", time)
    monkeypatch.setattr("async_trainer.callbacks.status_line.clock", time)
    monkeypatch.setenv("TERM", "xterm")
    return time


class Run:
    """A training of batches that take ``seconds`` each, and validations that take none."""

    def __init__(self, progress: Progress, clock: Clock, *, epochs: int = 2, batches: int = 10, **state: Any) -> None:
        self.handler, self.clock, self.batches = CallbacksHandler([progress]), clock, batches
        self.state = TrainerState(
            called="train", num_epochs=epochs, num_train_batches=batches, num_val_batches=2, **state
        )

    def start(self, event: str = "on_train_start") -> Run:
        self.handler.call_event(event, state=self.state)
        return self

    def begin_epoch(self) -> None:
        self.state.current_epoch += 1
        self.state.stage, self.state.current_train_batch = "training", 0
        self.handler.call_event("on_epoch_start", state=self.state)

    def batch(self, loss: Any = None, seconds: float = 1.0) -> None:
        self.state.current_train_batch += 1
        self.clock.now += seconds
        number = self.state.current_train_batch
        loss = torch.tensor(1 / number, requires_grad=True) if loss is None else loss
        self.handler.call_event("on_backward_step_start", state=self.state, loss=loss)
        self.handler.call_event("on_batch_end", state=self.state)

    def end_epoch(self, metrics: Mapping[str, float] | None = None) -> None:
        if metrics is not None:
            self.state.stage = "evaluation"
            for number in (1, 2):
                self.state.current_val_batch = number
                self.clock.now += 1
                self.handler.call_event("on_batch_end", state=self.state)
            self.handler.call_event("on_validation_end", state=self.state, metrics=metrics)
        self.handler.call_event("on_epoch_end", state=self.state)

    def end(self) -> None:
        self.handler.call_event("on_train_end", state=self.state)


def test_without_a_terminal_there_is_a_line_for_each_epoch(clock: Clock) -> None:
    out = io.StringIO()
    run = Run(Progress(file=out), clock, split_idx=1).start()
    for metrics in ({"loss": 0.51234, "accuracy": 0.75}, None):
        run.begin_epoch()
        for _ in range(10):
            run.batch()
        run.end_epoch(metrics)
    run.end()
    assert out.getvalue().splitlines() == [
        "split 1, epoch 1 of 2: loss 0.1, validation: loss 0.5123, accuracy 0.75, 12 s, 12 s left",
        "split 1, epoch 2 of 2: loss 0.1, 10 s",
        "trained: 2 epochs, 22 s",
    ]


@pytest.mark.parametrize("told", [True, False])
def test_the_last_line_says_why_a_training_was_stopped_early(clock: Clock, told: bool) -> None:
    out = io.StringIO()
    run = Run(Progress(file=out), clock, epochs=5)
    run.handler.add_callbacks([EarlyStopping(patience=1)])
    run.start()
    run.state.num_epochs = 5
    for loss in (0.5, 0.75):
        run.begin_epoch()
        run.batch()
        run.end_epoch({"loss": loss})
    run.handler.call_event("on_train_end", state=run.state, **({"callbacks": run.handler} if told else {}))
    why = ": loss has not improved on 0.5 in 1 validation" if told else ""
    assert out.getvalue().splitlines()[-1] == f"trained: 2 epochs, 6.0 s, stopped early{why}"


def test_on_a_terminal_a_line_is_drawn_over_and_the_epochs_stay_above_it(clock: Clock) -> None:
    out = Terminal()
    run = Run(Progress(file=out), clock, epochs=3).start()
    run.begin_epoch()
    for _ in range(10):
        run.batch()
    run.end_epoch({"loss": 0.5})
    run.begin_epoch()
    run.batch({"g": torch.tensor(0.5), "d": 2.0})
    assert out.drawn[0] == "epoch 1 of 3  ━━──────────────────────   1/10  loss 1  29 s left"
    assert out.drawn[4] == "epoch 1 of 3  ━━━━━━━━━━━━────────────   5/10  loss 0.2  25 s left"
    assert out.drawn[11] == "epoch 1 of 3  ━━━━━━━━━━━━━━━━━━━━━━━━  2/2  validation"
    assert out.screen == [
        "epoch 1 of 3: loss 0.1, validation: loss 0.5, 12 s, 24 s left",
        "epoch 2 of 3  ━━──────────────────────   1/10  loss g 0.5, loss d 2  22 s left",
    ]
    run.end()
    assert out.screen[1:] == ["trained: 2 epochs, 13 s", ""]


def test_it_draws_ten_times_a_second_at_most(clock: Clock) -> None:
    out = Terminal()
    run = Run(Progress(file=out), clock, batches=1000).start()
    run.begin_epoch()
    for _ in range(1000):
        run.batch(seconds=0.001)
    assert 9 <= len(out.drawn) <= 11


class OnDevice(torch.Tensor):
    """A loss that says it is on an accelerator, and counts how often it is read."""

    device = torch.device("cuda")  # type: ignore[assignment]
    reads = 0

    def item(self) -> float:
        OnDevice.reads += 1
        return float(super().item())


def test_a_loss_on_an_accelerator_is_read_once_a_second_and_once_an_epoch(clock: Clock) -> None:
    OnDevice.reads = 0
    out = Terminal()
    run = Run(Progress(file=out), clock, batches=301).start()
    run.begin_epoch()
    for number in range(301):
        run.batch(torch.tensor(float(number)).as_subclass(OnDevice), seconds=0.01)
    assert OnDevice.reads in (3, 4)
    assert len(out.drawn) > 25
    batch, loss = re.search(r"(\d+)/301  loss (\d+)", out.drawn[-1]).groups()  # type: ignore[union-attr]
    assert int(batch) - int(loss) < 120  # of 10 ms
    run.end_epoch()
    assert "loss 300" in out.screen[-2]
    assert OnDevice.reads in (4, 5)


def test_it_reads_no_loss_between_two_epochs_where_there_is_no_terminal(clock: Clock) -> None:
    OnDevice.reads = 0
    run = Run(Progress(file=io.StringIO()), clock).start()
    run.begin_epoch()
    for _ in range(10):
        run.batch(torch.tensor(1.0).as_subclass(OnDevice))
    assert OnDevice.reads == 0


def test_it_doesnt_hold_the_autograd_graph_of_the_loss(clock: Clock) -> None:
    progress = Progress(file=io.StringIO())
    run = Run(progress, clock).start()
    run.begin_epoch()
    run.batch(torch.ones(1, requires_grad=True).sum())
    assert progress._loss[""].grad_fn is None
    run.batch({"g": torch.ones(1, requires_grad=True).sum()})
    assert progress._loss["g"].grad_fn is None


def test_a_resumed_training_reckons_from_where_it_goes_on(clock: Clock) -> None:
    out = Terminal()
    progress = Progress(file=out)
    run = Run(progress, clock, epochs=4).start("on_resume")
    run.state.current_epoch = 2
    assert repr(progress) == "<Progress: <StatusLine: Terminal, a terminal>>"
    run.begin_epoch()
    run.batch()
    run.batch()
    assert out.drawn[-1].endswith("2/10  loss 0.5  18 s left")


def test_a_loader_of_unknown_length_is_counted(clock: Clock) -> None:
    out = Terminal()
    run = Run(Progress(file=out), clock, batches=0, epochs=0).start()
    run.begin_epoch()
    run.batch()
    assert out.drawn == ["epoch 1  batch 1  loss 1"]


def test_validate_and_test_runs_are_shown(clock: Clock) -> None:
    for out in (Terminal(), io.StringIO()):
        handler = CallbacksHandler([Progress(file=out)])
        state = TrainerState(called="validate", stage="evaluation", num_val_batches=4)
        handler.call_event("on_validate_start", state=state, model_checkpoint="best-loss")
        state.current_val_batch = 1
        handler.call_event("on_batch_end", state=state)
        handler.call_event("on_validate_end", state=state, metrics={"loss": 0.5})
        state = TrainerState(called="test", stage="evaluation", num_test_batches=2)
        handler.call_event("on_test_start", state=state, model_checkpoint="split-0_final", group_name="held-out")
        state.current_test_batch = 2
        clock.now += 75
        handler.call_event("on_batch_end", state=state)
        handler.call_event("on_test_end", state=state, metrics={"accuracy": 1.0})
        assert out.getvalue().splitlines()[-1].endswith("test held-out split-0_final: accuracy 1, 1:15 min")
        if isinstance(out, Terminal):
            assert out.drawn == [
                "validate best-loss  ━━━━━━──────────────────  1/4",
                "test held-out split-0_final  ━━━━━━━━━━━━━━━━━━━━━━━━  2/2",
            ]
            assert out.screen[0] == "validate best-loss: loss 0.5, 0.0 s"
        else:
            assert out.getvalue().splitlines()[0] == "validate best-loss: loss 0.5, 0.0 s"


def test_an_interrupted_run_leaves_a_line_of_its_own(clock: Clock) -> None:
    for out in (Terminal(), io.StringIO()):
        run = Run(Progress(file=out), clock).start()
        run.begin_epoch()
        run.batch()
        run.handler.call_event("on_exception", state=run.state, exception=KeyboardInterrupt())
        run.handler.call_event("on_exception", state=run.state, exception=KeyboardInterrupt())  # nothing runs any more
        assert out.getvalue().endswith("epoch 1 of 2, batch 1: interrupted by KeyboardInterrupt\n")
        assert out.getvalue().count("interrupted") == 1


@pytest.mark.parametrize("error", [BrokenPipeError(32, "Broken pipe"), ValueError("I/O operation on closed file")])
def test_a_stream_that_breaks_doesnt_end_the_training(
    clock: Clock, error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    class Broken(Terminal):
        def write(self, text: str) -> int:
            raise error

    run = Run(Progress(file=Broken()), clock).start()
    with caplog.at_level(logging.WARNING, "async_trainer"):
        run.begin_epoch()
        for _ in range(10):
            run.batch()
        run.end_epoch()
        run.end()
    assert len(caplog.records) == 1
    assert "Progress can't write any more; the run goes on without it: " in caplog.text


def test_where_there_is_no_stderr_the_training_goes_on(
    clock: Clock, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(sys, "stderr", None)
    run = Run(Progress(), clock).start()
    run.begin_epoch()
    run.batch()
    run.end_epoch()
    run.end()
    assert caplog.text.count("Progress can't write any more") == 1


def test_ascii_streams_and_dumb_terminals_get_what_they_can_show(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    class Ascii(Terminal):
        encoding = "ascii"

    out = Ascii()
    run = Run(Progress(file=out), clock).start()
    run.begin_epoch()
    run.batch()
    assert out.drawn == ["epoch 1 of 2  ##----------------------   1/10  loss 1  19 s left"]
    monkeypatch.setenv("TERM", "dumb")
    out = Ascii()
    run = Run(Progress(file=out), clock).start()
    run.begin_epoch()
    run.batch()
    assert out.getvalue() == ""


def test_a_line_is_cut_to_the_width_of_the_terminal(clock: Clock) -> None:
    out = Terminal()
    run = Run(Progress(file=out), clock).start()
    run.begin_epoch()
    run.batch({f"loss number {number}": torch.tensor(1.0) for number in range(9)})
    assert len(out.drawn[0]) == 79


def test_a_real_terminal_is_left_as_it_was_after_an_interrupt() -> None:
    termios, pty, fcntl = (pytest.importorskip(name) for name in ("termios", "pty", "fcntl"))
    script = """
        import torch
        from async_trainer import CallbacksHandler, TrainerState
        from async_trainer.callbacks import Progress

        handler = CallbacksHandler([Progress()])
        state = TrainerState(stage="training", current_epoch=1, num_epochs=1, num_train_batches=9)
        handler.call_event("on_train_start", state=state)
        state.current_train_batch += 1
        handler.call_event("on_backward_step_start", state=state, loss=torch.tensor(0.5))
        handler.call_event("on_batch_end", state=state)
        handler.call_event("on_exception", state=state, exception=KeyboardInterrupt())
    """
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 50, 0, 0))
    before = termios.tcgetattr(theirs)
    command = [sys.executable, "-c", textwrap.dedent(script)]
    environment = {**os.environ, "TERM": "xterm", "PYTHONIOENCODING": "utf-8"}
    assert subprocess.run(command, stderr=theirs, env=environment, timeout=120, check=False).returncode == 0
    assert termios.tcgetattr(theirs) == before
    os.close(theirs)
    seen = b""
    try:
        while chunk := os.read(ours, 4096):
            seen += chunk
    except OSError:  # its other end is closed
        pass
    os.close(ours)
    bar = "━━" + "─" * 22
    assert seen.decode() == (
        f"{ERASE}epoch 1 of 1  {bar}  1/9  loss{ERASE}epoch 1 of 1, batch 1: interrupted by KeyboardInterrupt\r\n"
    )


def test_it_writes_to_stderr_by_default_and_does_the_same_in_the_background(
    capsys: pytest.CaptureFixture[str],
) -> None:
    play(Progress(), epochs=2)
    inline = capsys.readouterr()
    assert inline.out == ""
    assert inline.err.count("\n") == 3
    play(background(Progress()), epochs=2).raise_for_errors()
    assert without_times(capsys.readouterr().err) == without_times(inline.err)


def without_times(text: str) -> str:
    return re.sub(r"[\d:.]+ (s|min)( left)?", "TIME", text)


def test_it_does_the_same_however_it_is_run() -> None:
    def read(directory: Path) -> dict[str, str]:
        return {"log": without_times((directory / "log.txt").read_text())}

    check_callback(lambda directory: Progress(file=(directory / "log.txt").open("a")), read=read)


def test_durations_are_short() -> None:
    durations = [_duration(seconds) for seconds in (0, 9.94, 9.96, 59.4, 59.6, 185, 3599.9, 7385)]
    assert durations == ["0.0 s", "9.9 s", "10 s", "59 s", "1:00 min", "3:05 min", "1:00:00 h", "2:03:05 h"]


def test_a_file_that_is_no_stream_is_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"file must be a text stream .* not 'log'"):
        Progress(file="log")  # type: ignore[arg-type]
