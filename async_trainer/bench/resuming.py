"""What a checkpoint of all resume state does to the step that captures it, and to those while it is written.

Writing wants a core, and the memory's bandwidth. What that costs a step, wherever it is done, is shown by a process
that has nothing to do with the training, and writes as much in the same way. So no ratio is gated here: on two cores
that others wanted too, that process made the step 1.2 to 1.6 times as long.
"""

from __future__ import annotations

import logging
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median

import torch

from async_trainer.bench.row import Row
from async_trainer.bench.timing import Effort, clock
from async_trainer.bench.training import Loop
from async_trainer.callback import background
from async_trainer.handler import CallbacksHandler

MEGABYTES, TENSORS = 300, 150
STEPS = 3  # after the one that captures, to see what writing does to them; 1 with --quick


class OtherWriter:
    """Another process, that writes as much: torch.save, a hash, fsync; whenever it is told."""

    CODE = """
import hashlib, os, sys, torch
torch.set_num_threads(1)
path, megabytes = sys.argv[1], int(sys.argv[2])
state = {str(n): torch.ones(250_000) for n in range(megabytes)}
print("ready", flush=True)
for line in sys.stdin:
    with open(path, "wb") as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())
    with open(path, "rb") as file:
        hashlib.file_digest(file, "sha256")
    print("done", flush=True)
"""

    def __init__(self, path: Path) -> None:
        command = [sys.executable, "-c", self.CODE, str(path), str(MEGABYTES)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def start(self) -> None:
        """Have it write."""
        assert self.process.stdin is not None
        self.process.stdin.write("write\n")
        self.process.stdin.flush()

    def wait(self) -> None:
        """Until it has started, or written."""
        assert self.process.stdout is not None
        if not self.process.stdout.readline():
            raise RuntimeError("the other process has died")

    def close(self) -> None:
        """End it."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


class Counts:
    """A callback with a state, so that the cut has something to hold."""

    def __init__(self) -> None:
        self.count = 0

    def on_batch_end(self, *, step: int) -> None:
        self.count += 1

    def state_dict(self) -> dict[str, int]:
        return {"count": self.count}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        self.count = state_dict["count"]


def measure(effort: Effort) -> list[Row]:
    """The rows of ``resume``."""
    torch.set_num_threads(1)
    logging.getLogger("async_trainer").setLevel(logging.ERROR)
    most = STEPS if effort.full else 1
    plain: list[float] = []
    held: list[float] = []
    captures: list[float] = []
    writes: list[float] = []
    inline: list[float] = []
    control: list[float] = []
    with (
        tempfile.TemporaryDirectory() as temporary,
        CallbacksHandler([background(Counts())]) as handler,
    ):
        folder = Path(temporary)
        other = OtherWriter(folder / "other.pt")
        loop = Loop(MEGABYTES, TENSORS, batch=192 if effort.full else 64)  # with --quick a step of some 200 ms
        other.wait()
        for number in range(effort.times(12, 2) + 1):
            plain += [_step(loop), _step(loop)]
            handler.call_event("on_batch_end", step=number)
            began = clock()
            checkpoint = handler.checkpoint(folder / "ours", model=loop.model, optimizer=loop.optimizer, step=number)
            held.append(clock() - began)
            captures.append(held[-1] + _step(loop))
            while not checkpoint.done and len(writes) < most * (number + 1):
                writes.append(_step(loop))
            checkpoint.wait()
            if not number:
                continue
            other.start()
            control.append(_step(loop))
            other.wait()
            began = clock()
            torch.save({"model": loop.model.state_dict(), "adam": loop.optimizer.state_dict()}, folder / "inline.pt")
            inline.append(clock() - began)
        other.close()
        fence = handler.stats().waits.fence / len(captures)
    step, capture = median(plain[2:]), median(captures[1:])
    # A capture beside the two plain steps before it, as the machine was just then.
    pairs = zip(captures[1:], plain[2::2], plain[3::2], strict=True)
    ratio = median(2 * with_it / (one + two) for with_it, one, two in pairs)
    return [
        Row(
            f"a step that captures a resume bundle of {MEGABYTES} MB",
            capture * 1e3,
            "ms",
            beside="a plain step",
            other=step * 1e3,
            ratio=ratio,
            budget=1.1,
            of="ratio",
            note=f"held {median(held[1:]) * 1e3:.1f} ms, and {fence * 1e3:.1f} ms at the fence",
        ),
        Row(
            f"a step that captures a resume bundle of {MEGABYTES} MB",
            capture * 1e3,
            "ms",
            beside="a step while another process writes as much",
            other=median(control) * 1e3,
            ratio=median(one / beside for one, beside in zip(captures[1:], control, strict=True)),
            budget=1.1,
            of="ratio",
        ),
        Row(
            "a step while the bundle is written",
            median(writes) * 1e3,
            "ms",
            beside="a plain step",
            other=step * 1e3,
            ratio=median(writes) / step,
        ),
        Row(
            "(torch.save of the same on the loop, no fsync)",
            median(inline) * 1e3,
            "ms",
            beside="a plain step",
            other=step * 1e3,
            ratio=median(inline) / step,
        ),
    ]


def _step(loop: Loop) -> float:
    began = clock()
    loop.step()
    return clock() - began
