"""The command ``async-trainer bench``."""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

from async_trainer.bench import report
from async_trainer.bench import run as runs
from async_trainer.bench.machine import describe_machine, line
from async_trainer.bench.scenarios import SCENARIOS
from async_trainer.bench.timing import QUICK, Effort

NAME = "bench"
HELP = "measure what callbacks in the background cost, beside what one would use instead"

_DESCRIPTION = """\
Measures, and prints for each scenario a table: the figure, what was measured beside it in the same run, the ratio of
the two, and the budget. Compare ratios: absolute times vary from machine to machine. Without names, all scenarios run,
in a few minutes, each in a process of its own. Leave the machine alone meanwhile.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of the command."""
    parser.description = _DESCRIPTION
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = "scenarios:\n" + "\n".join(f"  {name:<12}{what}" for name, (_, what) in SCENARIOS.items())
    # Not choices=: argparse then checks the empty list, too.
    parser.add_argument("scenario", nargs="*", metavar="SCENARIO", type=_scenario, help="which to run (default: all)")
    parser.add_argument("--quick", action="store_true", help="fewer repetitions: all scenarios in about a minute")
    parser.add_argument("--json", type=Path, metavar="PATH", help="write the figures, and the machine, to this file")
    parser.add_argument("--check", action="store_true", help="exit status 1 where a gated ratio misses its budget")


def run(arguments: argparse.Namespace) -> int:
    """Run the scenarios, and return the exit status.

    Raises:
        BenchError: a scenario could not be measured.
        OSError: the file can't be written.
    """
    effort = QUICK if arguments.quick else Effort()
    about = describe_machine()
    print(line(about), flush=True)
    if arguments.json is not None:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.open("a").close()  # else minutes are lost where it can't be written

    began = time.perf_counter()
    results = runs.run_all(arguments.scenario or SCENARIOS, effort, _show)
    print(f"\n{report.summary(results)}\n{time.perf_counter() - began:.0f} s in all")
    if arguments.json is not None:
        scenarios = {one.scenario: one.to_json() for one in results}
        plain = {"machine": about, "quick": arguments.quick, "scenarios": scenarios}
        arguments.json.write_text(json.dumps(plain, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    failed = report.failures(results) if arguments.check else []
    for row in failed:
        print(f"--check: {row.what}: {row.ratio:.3g} x {row.beside}, budget {row.budget:g}", file=sys.stderr)
    return 1 if failed else 0


def _show(result: runs.Result) -> None:
    print(f"\n{report.table(result)}", flush=True)


def _scenario(name: str) -> str:
    if name not in SCENARIOS:
        raise argparse.ArgumentTypeError(f"there is no scenario {name!r}; there are {', '.join(SCENARIOS)}")
    return name
