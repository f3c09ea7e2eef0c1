"""The command ``async-trainer report``: one HTML page of what a run has left in its folder."""

from __future__ import annotations

import argparse
from pathlib import Path

from async_trainer.files.atomic import output_file

NAME = "report"
HELP = "make one HTML page of a run: step times, where its time went, lanes, failures, metrics"

_DESCRIPTION = """\
Makes one HTML page, which needs nothing else, of what a run has left in its folder: step times, where the loop's time
went, lanes, failures, and the metrics' curves. Also of a run that is under way, or was killed. RUN is the folder of a
Trainer's run, of one of its splits, or what handler.publish(...) was given.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of the command."""
    parser.description = _DESCRIPTION
    parser.add_argument("run", metavar="RUN", type=Path, help="the folder of the run")
    parser.add_argument("--output", metavar="FILE", type=Path, help="the page (default: report.html in RUN)")


def run(arguments: argparse.Namespace) -> int:
    """Run the command.

    Raises:
        ConfigurationError: there is no such run.
    """
    from async_trainer.watching.report.gather import gather
    from async_trainer.watching.report.page import page

    folder: Path = arguments.run if arguments.run.is_dir() else arguments.run.parent
    text = page(gather(arguments.run), title=arguments.run.absolute().name)
    output: Path = arguments.output or folder / "report.html"
    with output_file(output) as file:
        file.write(text.encode("utf-8", errors="replace"))
    print(output)
    return 0
