"""The demo from start to end: both runs, their comparison, and where the files are."""

from __future__ import annotations

import copy
import io
from pathlib import Path

import torch
from rich.console import Console
from torch import nn

from async_trainer.demo.compare import compare
from async_trainer.demo.data import Digits, load_digits
from async_trainer.demo.figure import draw_epoch
from async_trainer.demo.folder import fresh_folder
from async_trainer.demo.kill import run_kill
from async_trainer.demo.net import make_net
from async_trainer.demo.plot import plot_steps
from async_trainer.demo.progress import show_progress
from async_trainer.demo.report import print_report
from async_trainer.demo.run import CHECKPOINT_EVERY, Setup, run_background, run_inline

MOST_THREADS = 4
"""Of torch, in both runs: fewer where that would leave no core to the callbacks; more don't help so small a net."""


def run_demo(
    output: Path, *, epochs: int, seed: int, latency: float, trainer: bool = False, kill: bool = False
) -> bool:
    """Train inline and in the background, and print how that went.

    Args:
        output: the directory for all files.
        epochs: of each run.
        seed: of the data split, the initial weights and the training.
        latency: seconds of the store's round trip.
        trainer: whether a Trainer runs the loop, and not the demo's own.
        kill: train without an interruption, and with a kill in the middle, in place of inline and in the background.

    Returns:
        Whether both runs did the same and nothing was lost.

    Raises:
        OSError: ``output`` can't be made, or holds files of another origin.
    """
    console = Console()
    fresh_folder(output)
    threads = torch.get_num_threads()
    torch.set_num_threads(max(1, min(threads - 1, MOST_THREADS)))
    try:
        if kill:
            digits = load_digits(seed=seed)
            return run_kill(
                console, Setup(digits=digits, epochs=epochs, seed=seed, latency=latency, trainer=True), output
            )
        return _run(console, output, epochs=epochs, seed=seed, latency=latency, trainer=trainer)
    finally:
        torch.set_num_threads(threads)


def _run(console: Console, output: Path, *, epochs: int, seed: int, latency: float, trainer: bool) -> bool:
    digits = load_digits(seed=seed)
    net = make_net(seed=seed)
    setup = Setup(digits=digits, epochs=epochs, seed=seed, latency=latency, trainer=trainer)
    _introduce(console, setup, net)
    _warm_up(digits, copy.deepcopy(net))

    batches = epochs * len(digits.training_batches(seed=seed))
    with show_progress(console, ("inline", "background"), batches=batches) as progress:
        inline = run_inline(setup, copy.deepcopy(net), output / "inline", progress["inline"])
        background = run_background(setup, copy.deepcopy(net), output / "background", progress["background"])
    plot = output / "step-times.png"
    plot_steps(plot, inline, background)
    comparison = compare(inline, background)
    print_report(console, inline, background, comparison, plot=plot)
    return comparison.fine


def _introduce(console: Console, setup: Setup, net: nn.Module) -> None:
    parameters = sum(parameter.numel() for parameter in net.parameters())
    console.print(
        f"Handwritten digits: {len(setup.digits.training):,} to train on, {len(setup.digits.held_out)} held out; "
        f"a convolutional net of {parameters:,} parameters, on {_count(torch.get_num_threads(), 'CPU thread')}; "
        f"{_count(setup.epochs, 'epoch')}, seed {setup.seed}; {'a Trainer' if setup.trainer else 'a plain loop'}.\n"
        "Each batch: TensorBoard, and a metrics log that fsyncs. Each epoch: a figure, and a checkpoint (also each "
        f"{CHECKPOINT_EVERY} steps) to {setup.store(Path())} (a local directory, slowed down by just that).\n",
        highlight=False,
    )


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _warm_up(digits: Digits, net: nn.Module) -> None:
    """Do once what is slow the first time, so that the first run isn't charged for it.

    The first optimizer of a process takes 2 s (it imports torch's compiler), the first figure loads fonts.
    """
    images, labels = digits.held_out[:64]
    optimizer = torch.optim.Adam(net.parameters())
    logits = net(images)
    nn.functional.cross_entropy(logits, labels).backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    torch.save(optimizer.state_dict(), io.BytesIO())
    draw_epoch(images, labels, logits.detach(), title="").savefig(io.BytesIO())
