"""What the scripts in ``benchmarks/`` that print tables have in common: their option, the machine, the file."""

from __future__ import annotations

import argparse
import json
import logging
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from async_trainer.bench.machine import describe_machine, line
from async_trainer.bench.report import table
from async_trainer.bench.row import Row
from async_trainer.bench.run import Result


def run_script(doc: str | None, parts: Iterable[tuple[str, Callable[[], Iterable[Row]]]]) -> int:
    """Measure, and print the tables; the exit status. The main thread.

    Args:
        doc: the script's own, whose first line says what it measures.
        parts: titles of tables, and what measures their rows; one is done before the next is asked for.
    """
    parser = argparse.ArgumentParser(description=(doc or "").partition("\n")[0])
    parser.add_argument("--json", type=Path, metavar="PATH", help="write the figures, and the machine, to this file")
    arguments = parser.parse_args()
    logging.getLogger("async_trainer").setLevel(logging.ERROR)  # it says what such callbacks cost, rightly
    about = describe_machine()
    print(line(about), flush=True)
    results = []
    for title, measure in parts:
        began = time.perf_counter()
        rows = tuple(measure())
        results.append(Result(title, rows, time.perf_counter() - began, about["load_before"]))
        print(f"\n{table(results[-1])}", flush=True)
    if arguments.json is not None:
        plain = {"machine": about, "results": [{"title": one.scenario, **one.to_json()} for one in results]}
        arguments.json.write_text(json.dumps(plain, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return 0
