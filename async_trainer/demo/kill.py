"""``demo --kill``: a training kills itself half-way, is resumed, and is compared with one that was left alone."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import torch
from rich.console import Console

from async_trainer.demo.compare import Comparison, compare
from async_trainer.demo.progress import Lines
from async_trainer.demo.report import say
from async_trainer.demo.resumable import half, train
from async_trainer.demo.run import Setup
from async_trainer.errors import AsyncTrainerError
from async_trainer.resume.bundles import Bundles


class NotKilledError(AsyncTrainerError):
    """The training that should have been killed ended otherwise."""


def run_kill(console: Console, setup: Setup, output: Path) -> bool:
    """Train without an interruption, then with one, and print how the two compare.

    Returns:
        Whether nothing tells them apart, and no event was lost.

    Raises:
        NotKilledError: the training came to another end.
    """
    say(
        console,
        f"Handwritten digits, epochs: {setup.epochs}, seed {setup.seed}. First a training without an interruption; "
        "then one that kills itself half-way (SIGKILL), in a process of its own; then that one is resumed, here.\n",
    )
    whole = train(setup, output / "whole", Lines(console, "whole"))
    folder = output / "killed"
    _be_killed(console, setup, folder)
    rows = len((folder / "metrics.jsonl").read_bytes().splitlines())
    state = Bundles(folder / "maps" / "split-0" / "resume").read().objects["extra"]["state"]
    say(console, f"           it leaves {rows} rows of its log, and a checkpoint as of step {state['optim_step']}")
    resumed = train(setup, folder, Lines(console, "resumed"), resume=True)
    comparison = compare(whole, resumed)
    say(console, f"\nfiles      {output}: whole, killed")
    for failure in resumed.failures:
        say(console, f"failed: {failure}")
    if comparison.files:
        say(console, f"DIFFERENT files: {', '.join(comparison.files)}")
    if comparison.random:
        say(console, "DIFFERENT random streams")
    say(console, last_line(half(setup), state["optim_step"], comparison))
    return comparison.fine


def _be_killed(console: Console, setup: Setup, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    numbers = (setup.epochs, setup.seed, setup.latency, torch.get_num_threads())
    command = [sys.executable, "-m", "async_trainer.demo.resumable", str(folder), *map(str, numbers)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        for line in child.stdout:
            say(console, line.rstrip("\n"))
    if child.returncode != -signal.SIGKILL:
        raise NotKilledError(f"the training that was to be killed ended with the status {child.returncode}")


def last_line(killed: int, resumed: int, comparison: Comparison) -> str:
    """``killed at step 328, resumed from step 322: identical weights, identical log and 38 checkpoints, 0 lost``."""
    words = [
        "DIFFERENT weights" if comparison.weights else "identical weights",
        "DIFFERENT files" if comparison.files else f"identical log and {comparison.compared - 1} checkpoints",
        f"{comparison.lost} lost",
    ]
    words += [f"{n} {what}" for n, what in ((comparison.failed, "failed"), (comparison.dropped, "dropped")) if n]
    return f"killed at step {killed}, resumed from step {resumed}: {', '.join(words)}"
