"""The command ``async-trainer profile``."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from async_trainer import explain_command
from async_trainer.errors import AsyncTrainerError, ConfigurationError

NAME = "profile"
HELP = "measure your own callbacks inline, in a thread, in a process, and say where to run them"

_DESCRIPTION = """\
Runs the same loop without a callback, and with it inline, in a thread and in a process, by turns; then says what each
hook takes, how much of that it computes, what its events cost the training thread, how much is captured, and where to
run it.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of the command."""
    parser.description = _DESCRIPTION
    parser.add_argument(
        "callback", nargs="+", metavar="MODULE:CALLBACK", help="such as my_callbacks:Plots, or plots.py:make"
    )
    parser.add_argument(
        "--loop",
        metavar="MODULE:LOOP",
        help="a function that trains with the handler it is given (default: a synthetic loop)",
    )
    parser.add_argument("--epochs", type=_positive, default=2, metavar="N", help="of the synthetic loop (default: 2)")
    parser.add_argument("--batches", type=_positive, default=50, metavar="N", help="per epoch of it (default: 50)")
    parser.add_argument("--width", type=_positive, default=512, metavar="N", help="of its model (default: 512)")
    parser.add_argument(
        "--rounds", type=_positive, default=3, metavar="N", help="runs of each placement, after a warm-up (default: 3)"
    )
    parser.add_argument("--threads", type=_positive, default=1, metavar="N", help="of torch, in all runs (default: 1)")
    parser.add_argument("--plot", type=Path, metavar="PNG", help="draw what a step takes, into this file")
    parser.add_argument("--json", type=Path, metavar="PATH", help="write the figures, and the machine, to this file")


def run(arguments: argparse.Namespace) -> int:
    """Run the command.

    Raises:
        ConfigurationError: there is no such callback or loop, or it can't work.
    """
    if arguments.plot is not None and find_spec("matplotlib") is None:
        raise AsyncTrainerError("--plot needs matplotlib: pip install 'async_trainer[figures]'")
    import torch

    from async_trainer.bench.machine import describe_machine, line
    from async_trainer.bench.profile_report import text
    from async_trainer.bench.profiled import profile
    from async_trainer.bench.synthetic import synthetic

    torch.set_num_threads(arguments.threads)
    makers = [maker for target in arguments.callback for maker in _makers(target)]
    loop = synthetic(arguments.epochs, arguments.batches, arguments.width)
    if arguments.loop is not None:
        loop = explain_command.load(arguments.loop)
        if not callable(loop):
            raise ConfigurationError(f"--loop {arguments.loop}: it is no function that takes a handler")
    about = describe_machine()
    print(f"{line(about)}; torch threads: {arguments.threads}", flush=True)
    profiles = []
    for make in makers:
        profiles.append(profile(make, loop, arguments.rounds))
        print(f"\n{text(profiles[-1])}", flush=True)
    if arguments.plot is not None:
        from async_trainer.bench.profile_plot import plot

        plot(arguments.plot, profiles)
        print(f"\n{arguments.plot}")
    if arguments.json is not None:
        plain = {"machine": about, "callbacks": [asdict(one) for one in profiles]}
        arguments.json.write_text(json.dumps(plain, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return 0


def _makers(target: str) -> list[Callable[[], Any]]:
    """What makes the callbacks of ``target``, a new one at each call: it may be a function that gives a list."""
    from async_trainer.bench.profiled import fresh

    found = _find(target)
    if not isinstance(found, (list, tuple)):
        return [lambda: _find(target)] if _makes(target) else [fresh(found)]
    if _makes(target):
        return [lambda place=place: _find(target)[place] for place in range(len(found))]  # type: ignore[misc]
    return [fresh(one) for one in found]


def _makes(target: str) -> bool:
    named = explain_command.load(target)
    return isinstance(named, type) or callable(named)


def _find(target: str) -> Any:
    return explain_command.make(target, explain_command.load(target))


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be 1 or more, not {text}")
    return number
