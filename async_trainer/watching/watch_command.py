"""The command ``async-trainer watch``: how a run is doing, from another terminal."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from async_trainer.errors import ConfigurationError
from async_trainer.watching import status
from async_trainer.watching.status import Status

NAME = "watch"
HELP = "show how a run is doing, live, from another terminal"

EVERY = 0.5  # s, between two pictures
SHORT = 3.0  # s: a run's split may end, and the next begin
SPLITS = 4  # of a run that trains several at once, shown at once

_DESCRIPTION = """\
Shows what a run publishes, once a second: lane by lane what is queued, how old the oldest event is, the hook that is
running, failures; and what the loop paid. RUN is the folder of a Trainer's run, or what handler.publish(...) was given.
It ends when the run does. The exit status tells whether the run is well: 1 where it was killed, has ended by an error,
or has said nothing for ten seconds.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of the command."""
    parser.description = _DESCRIPTION
    parser.add_argument("run", metavar="RUN", type=Path, help="the folder of the run")
    parser.add_argument("--once", action="store_true", help="show it as it is now, and end")


def run(arguments: argparse.Namespace) -> int:
    """Run the command.

    Raises:
        ConfigurationError: there is no such run; or rich isn't installed.
    """
    try:
        from rich.console import Console
        from rich.live import Live
    except ImportError:
        raise ConfigurationError("it needs rich: pip install 'async_trainer[watch]'") from None

    from async_trainer.watching.screen import picture

    console = Console(highlight=False) if sys.stdout.isatty() else Console(highlight=False, width=80)
    shown = look(arguments.run)
    if arguments.once or not sys.stdout.isatty():
        console.print(picture(shown, console.width))
        return int(not all(one.good for one in shown))
    over_since: float | None = None
    try:
        with Live(console=console, auto_refresh=False, screen=True) as live:
            while over_since is None or time.monotonic() - over_since < SHORT:
                live.update(picture(shown, console.width, console.height), refresh=True)
                time.sleep(EVERY)
                shown = look(arguments.run)
                over_since = (over_since or time.monotonic()) if all(one.over for one in shown) else None
    finally:  # what stays, when the terminal shows again what was there before
        console.print(picture(shown, console.width))
    return int(not all(one.good for one in shown))


def look(run: Path) -> list[Status]:
    """What is to be shown of ``run``: all that is under way, or else what was last.

    Raises:
        ConfigurationError: there is no such run.
    """
    found = []
    for path in status.find(run):
        try:
            found.append(status.read(path))
        except FileNotFoundError:  # an overwrite=True has just deleted it
            continue
    if not found:
        raise ConfigurationError(f"{run} is being deleted")
    going = [one for one in found if not one.over]
    return going[-SPLITS:] or found[-1:]
