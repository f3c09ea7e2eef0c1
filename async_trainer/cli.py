"""The command line: ``async-trainer <command>``. Importing it loads neither torch nor a command's other needs."""

from __future__ import annotations

import argparse
import io
import os
import sys
from collections.abc import Sequence
from typing import Protocol

import async_trainer
from async_trainer import explain_command
from async_trainer.bench import command as bench
from async_trainer.bench import profile_command as profile
from async_trainer.demo import command as demo
from async_trainer.errors import AsyncTrainerError
from async_trainer.watching import merge_command, report_command, watch_command

INTERRUPTED = 130
"""The exit status after Ctrl-C: 128 and the number of SIGINT, as shells have it."""


class Command(Protocol):
    """A subcommand: a module with these names, light to import, listed in ``COMMANDS``."""

    NAME: str
    HELP: str

    def add_arguments(self, parser: argparse.ArgumentParser, /) -> None:
        """Declare the options of the command."""

    def run(self, arguments: argparse.Namespace, /) -> int:
        """Run the command, and return its exit status."""


COMMANDS: tuple[Command, ...] = (
    demo, explain_command, bench, profile, watch_command, report_command, merge_command,
)  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command, and return its exit status.

    Args:
        argv: the arguments after the program's name. Default: those of this process.

    Returns:
        0, or 1 where the command failed, or 130 after Ctrl-C. Messages go to stderr.

    Raises:
        SystemExit: for ``--help`` and ``--version`` (0), and for arguments that make no sense (2).
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a name may be one that the terminal can't show
            stream.reconfigure(errors="backslashreplace")
    arguments = make_parser().parse_args(argv)
    command: Command = arguments.command
    try:
        return command.run(arguments)
    except KeyboardInterrupt:
        return _fail(command, "stopped by Ctrl-C", INTERRUPTED)
    except BrokenPipeError:
        # The reader of our output is gone (`| head`): leave the interpreter nothing to flush into the pipe.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        named = error.filename is not None and error.strerror is not None
        return _fail(command, f"{error.filename}: {error.strerror}" if named else str(error), 1)
    except AsyncTrainerError as error:
        return _fail(command, str(error), 1)


def make_parser() -> argparse.ArgumentParser:
    """The parser of all commands; ``command`` of what it returns is the module of the chosen one."""
    parser = argparse.ArgumentParser(
        prog="async-trainer", description="Training callbacks in the background, each in order, on snapshots."
    )
    parser.add_argument("--version", action="version", version=f"async-trainer {async_trainer.__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for command in COMMANDS:
        subparser = commands.add_parser(command.NAME, help=command.HELP)
        command.add_arguments(subparser)
        subparser.set_defaults(command=command)
    return parser


def _fail(command: Command, message: str, status: int) -> int:
    print(f"async-trainer {command.NAME}: {message}", file=sys.stderr)
    return status


if __name__ == "__main__":
    sys.exit(main())
