"""What telling how a run is doing costs, and its timeline: on the training thread, and in the background.

    python benchmarks/timeline.py [--json PATH]

A step fires two events of the loop, and one hook in a thread lane hears one of them: three entries of a timeline (the
batch, the capture, the hook). The same steps, by turns: not published; published (a status once a second); with a
timeline, too. What is shown is CPU, of the training thread and of
all threads, per step: what others take of the machine doesn't count. The first round is a warm-up; of the others the
median. The last words and the end of the file are in it.
"""

from __future__ import annotations

import gc
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

from async_trainer import CallbacksHandler, background
from async_trainer.bench.row import Row
from async_trainer.bench.script import run_script
from async_trainer.bench.timing import by_turns
from async_trainer.watching.trace_file import read_trace

STEPS = 20_000
ENTRIES = 3  # of a step, in the timeline
ROUNDS = 9
PLAIN, PUBLISHED, TIMELINE = "not published", "published", "with a timeline"


class Quiet:
    def on_batch_end(self, *, loss: float) -> None: ...


def run(way: str) -> tuple[float, float]:
    """CPU of the training thread, and of all, in s per step."""
    with TemporaryDirectory() as folder:
        gc.collect()
        everything, own = time.process_time(), time.thread_time()
        handler = CallbacksHandler([background(Quiet(), queue_size=STEPS)], timeline=way == TIMELINE)
        if way != PLAIN:
            handler.publish(folder)
        for _ in range(STEPS):
            handler.call_event("on_batch_start")
            handler.call_event("on_batch_end", loss=0.5)
        own = time.thread_time() - own
        handler.close()
        everything = time.process_time() - everything
        path = Path(folder) / "timeline.json.gz"
        entries = sum(one["ph"] == "X" for one in read_trace(path)["traceEvents"]) if path.exists() else 0
        if not (ENTRIES * STEPS <= entries < 1.1 * ENTRIES * STEPS if way == TIMELINE else entries == 0):
            raise AssertionError(f"{way}: {entries} entries")
    return own / STEPS, everything / STEPS


def measure(rounds: int, run: Callable[[str], tuple[float, float]] = run) -> list[Row]:
    """The rows: for each way, the training thread and all threads, beside what is not published."""
    took: dict[str, list[tuple[float, float]]] = {way: [] for way in (PLAIN, PUBLISHED, TIMELINE)}
    for way, counts in by_turns(took, rounds):
        seconds = run(way)
        if counts:
            took[way].append(seconds)
    rows = []
    for place, which in enumerate(("the training thread", "all threads")):
        plain = [one[place] for one in took[PLAIN]]
        for way, found in took.items():
            more = median(one[place] - beside for one, beside in zip(found, plain, strict=True))
            rows.append(
                Row(
                    f"{which}, {way}",
                    median(one[place] for one in found) * 1e6,
                    "µs",
                    note="" if way == PLAIN else f"{more * 1e6:.1f} µs more",
                )
            )
    behind = [everything - own for own, everything in took[TIMELINE]]
    without = [everything - own for own, everything in took[PLAIN]]
    each = median((one - other) / ENTRIES for one, other in zip(behind, without, strict=True))
    rows.append(Row("in the background, for each entry of the timeline", each * 1e6, "µs"))
    return rows


if __name__ == "__main__":
    sys.exit(run_script(__doc__, [("CPU per step", lambda: measure(ROUNDS))]))
