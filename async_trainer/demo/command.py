"""The command ``async-trainer demo``: its options, and what must be installed for it."""

from __future__ import annotations

import argparse
from importlib.util import find_spec
from pathlib import Path

from async_trainer.errors import AsyncTrainerError

NAME = "demo"
HELP = "train a small net twice, with callbacks inline and in the background, and compare"

_DESCRIPTION = """\
Trains a small convolutional net on handwritten digits (they come with scikit-learn; nothing is downloaded), with
callbacks that are slow as real ones are: TensorBoard, a metrics log that fsyncs each row, figures, checkpoints to a
slow store. Once inline, once in the background, with the same seed; about a minute in all on two cores.
"""

_NEEDED = {
    "torch": "torch",
    "rich": "rich",
    "tensorboard": "tensorboard",
    "sklearn": "scikit-learn",
    "matplotlib": "matplotlib",
}


class MissingExtraError(AsyncTrainerError, ImportError):
    """Packages of the extra ``demo`` aren't installed."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of the command."""
    parser.description = _DESCRIPTION
    parser.add_argument("--epochs", type=_positive, default=16, metavar="N", help="of each run (default: %(default)s)")
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("async-trainer-demo"),
        metavar="DIR",
        help="where all files go; files of an earlier demo in it are replaced (default: ./%(default)s)",
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of data, weights, training (default: 0)")
    parser.add_argument(
        "--latency",
        type=_milliseconds,
        default=0.12,
        metavar="MS",
        help="the round trip to the checkpoint store, in ms (default: 120)",
    )
    parser.add_argument("--trainer", action="store_true", help="have a Trainer run the loop, not the demo's own")
    parser.add_argument(
        "--kill",
        action="store_true",
        help="show this instead: a training kills itself half-way (SIGKILL), and is resumed as if nothing had happened",
    )


def run(arguments: argparse.Namespace) -> int:
    """Run the demo.

    Returns:
        The exit status: 0, or 1 where the runs differ or an event was lost.

    Raises:
        MissingExtraError: names the packages, and the command that installs them.
    """
    missing = [package for module, package in _NEEDED.items() if find_spec(module) is None]
    if missing:
        raise MissingExtraError(f"the demo needs {', '.join(missing)}: pip install 'async_trainer[demo]'")
    from async_trainer.demo.demo import run_demo

    fine = run_demo(
        arguments.output,
        epochs=arguments.epochs,
        seed=arguments.seed,
        latency=arguments.latency,
        trainer=arguments.trainer,
        kill=arguments.kill,
    )
    return 0 if fine else 1


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be 1 or more, not {text}")
    return number


def _milliseconds(text: str) -> float:
    number = float(text)
    if not 0 <= number <= 60_000:
        raise argparse.ArgumentTypeError(f"must be from 0 to 60000, not {text}")
    return number / 1000
