"""The command ``async-trainer merge-traces``: a run's timeline and torch.profiler's, on one time axis."""

from __future__ import annotations

import argparse
from pathlib import Path

NAME = "merge-traces"
HELP = "put a run's timeline and torch.profiler's traces into one file"

_DESCRIPTION = """\
Puts Chrome traces on one time axis, in one file: timeline.json.gz of a run whose handler has timeline=True, and what
torch.profiler's export_chrome_trace wrote of the same run. Open it at ui.perfetto.dev.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of the command."""
    parser.description = _DESCRIPTION
    parser.add_argument("traces", nargs="+", metavar="TRACE", type=Path, help="a .json or .json.gz file")
    parser.add_argument(
        "--output", metavar="FILE", type=Path, default=Path("merged.json.gz"), help="the file (default: %(default)s)"
    )


def run(arguments: argparse.Namespace) -> int:
    """Run the command.

    Raises:
        ConfigurationError: a file is no Chrome trace.
    """
    from async_trainer.watching.trace_file import merge_traces

    count = merge_traces(arguments.traces, arguments.output)
    print(f"{arguments.output}: {count:,} events of {len(arguments.traces)} traces")
    return 0
