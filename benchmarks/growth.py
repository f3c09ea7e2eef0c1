"""How the cost grows: with callbacks, events that wait, tensors, bytes, workers; nothing may outgrow its input.

    python benchmarks/growth.py [--quick] [--json PATH] [--plot PNG]

Each dimension is measured at sizes that double or grow tenfold; a slope is fitted to the logarithms of the larger half
of them (the smaller ones show the fixed cost): 1 is proportional, 0 is independent. Exit status 1 where a slope
exceeds 1.15. Of several times the least counts, and of what is done on the training thread its CPU: what others take
of the machine grows with nothing here. 1 torch thread.
"""

from __future__ import annotations

import argparse
import gc
import json
import logging
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from async_trainer import CallbacksHandler, TrainerState, background
from async_trainer.bench.machine import describe_machine, line
from async_trainer.runtime.stats import text_table
from async_trainer.testing import hold

clock = time.perf_counter
own = time.thread_time  # of what is done on the training thread: others' turns on the core don't count
MOST = 1.15  # of a slope: proportional, and what noise adds
WORK = 1e-3  # s that a hook waits, where workers are counted


@dataclass(frozen=True, slots=True)
class Line:
    """What was measured over one dimension: seconds, by size."""

    what: str
    over: str
    sizes: Sequence[float]
    seconds: Sequence[float]

    @property
    def slope(self) -> float:
        """Of the logarithms, over the larger half of the sizes."""
        half = len(self.sizes) // 2
        slope, _ = np.polyfit(np.log(self.sizes[half:]), np.log(self.seconds[half:]), 1)
        return float(slope)


class Quiet:
    def on_batch_end(self, *, state: TrainerState) -> None: ...


class Takes:
    def on_batch_end(self, *, batch: Any) -> None: ...


class Waits:
    def on_batch_end(self, *, step: int) -> None:
        time.sleep(WORK)


def over_callbacks(quick: bool) -> Iterator[Line]:
    """call_event where each of n callbacks hears the event, and has a lane of its own."""
    sizes = [2**n for n in range(9)]
    state, found = TrainerState(), []
    for n in sizes:
        with CallbacksHandler([background(Quiet(), name=f"quiet {one}") for one in range(n)]) as handler:
            times = []
            for _ in range(20 if quick else 100):
                began = own()
                handler.call_event("on_batch_end", state=state)
                times.append(own() - began)
                handler.flush()
        found.append(min(times))
    yield Line("call_event", "callbacks", sizes, found)


def over_queued(quick: bool) -> Iterator[Line]:
    """n events fired while the lane is held; then handled; one more event, and a barrier, while they wait."""
    sizes = [10**n for n in range(6 if quick else 7)]
    state = TrainerState()
    pushes, drains, one_more, barriers = [], [], [], []
    for n in sizes:
        with CallbacksHandler([background(Quiet(), queue_size=2 * n + 100)]) as handler:
            handler.call_event("on_batch_end", state=state)
            handler.flush()
            gc.collect()
            rounds: list[tuple[float, ...]] = []
            for _ in range(1 if n > 100_000 else 3 if n > 1000 else 15):
                with hold(handler):
                    began = own()
                    for _ in range(n):
                        handler.call_event("on_batch_end", state=state)
                    push = own() - began
                    more = timed(lambda: handler.call_event("on_batch_end", state=state))
                    mark = timed(handler.barrier)
                began = clock()
                handler.flush()
                rounds.append((push, clock() - began, more, mark))
            for found, times in zip((pushes, drains, one_more, barriers), zip(*rounds, strict=True), strict=True):
                found.append(min(times))
    yield Line("firing them all", "events that wait", sizes, pushes)
    yield Line("handling them all", "events that wait", sizes, drains)
    yield Line("one more event", "events that wait", sizes, one_more)
    yield Line("barrier()", "events that wait", sizes, barriers)


def over_tensors(quick: bool) -> Iterator[Line]:
    """call_event with a list of n tensors: small ones, copied at once; big ones, into pooled buffers."""
    for name, numel, most in (("1 kB each", 256, 10_000), ("100 kB each", 25_600, 10_000)):
        sizes = [n for n in (1, 3, 10, 30, 100, 300, 1000, 3000, 10_000) if n <= (1000 if quick else most)]
        found = [captured([torch.ones(numel) for _ in range(n)], quick) for n in sizes]
        yield Line(f"capturing tensors of {name}", "tensors", sizes, found)


def over_bytes(quick: bool) -> Iterator[Line]:
    """call_event with one tensor of n bytes."""
    sizes = [10**n for n in range(3, 9)] + ([] if quick else [10**9, 2 * 10**9])
    found = [captured(torch.ones(n // 4), quick) for n in sizes]
    yield Line("capturing one tensor", "bytes", sizes, found)


def captured(batch: Any, quick: bool) -> float:
    """The least that capturing ``batch`` holds the loop; buffers are there from the second time on."""
    times = []
    with CallbacksHandler([background(Takes())], max_snapshot_bytes=8 << 30) as handler:
        for _ in range(5 if quick else 9):
            times.append(once(lambda: handler.call_event("on_batch_end", batch=batch)))
            handler.flush()
    return min(times[2:])


def over_workers(quick: bool) -> Iterator[Line]:
    """Until 16 lanes have handled their events, each of which waits for 1 ms; n workers."""
    sizes = [1, 2, 4, 8, 16]
    events, found = (20 if quick else 60), []
    for n in sizes:
        callbacks = [background(Waits(), name=f"waits {one}") for one in range(16)]
        with CallbacksHandler(callbacks, max_workers=n) as handler:
            handler.call_event("on_batch_end", step=0)
            handler.flush()
            began = clock()
            for step in range(events):
                handler.call_event("on_batch_end", step=step)
            handler.flush()
            found.append(clock() - began)
    yield Line("16 lanes whose hooks wait", "workers", sizes, found)


def timed(call: Callable[[], Any]) -> float:
    """The fastest of a few calls."""
    return min([once(call) for _ in range(9)])


def once(call: Callable[[], Any]) -> float:
    """s of this thread's CPU."""
    began = own()
    call()
    return own() - began


def plot(path: Path, lines: Sequence[Line]) -> None:
    """A panel for each dimension, both axes logarithmic, the slopes in the legends."""
    names = list(dict.fromkeys(one.over for one in lines))
    figure = Figure(figsize=(15, 7.6), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle("How the cost grows (slopes of the larger half; 1 is proportional, dotted)", fontsize=13)
    panels = figure.subplots(2, 3).flat
    for name, axes in zip(names, panels, strict=False):
        for one in (one for one in lines if one.over == name):
            axes.plot(one.sizes, one.seconds, marker="o", markersize=4, label=f"{one.what}: {one.slope:.2f}")
        shown = [one for one in lines if one.over == name]
        low, high = shown[0].sizes[0], shown[0].sizes[-1]
        last = shown[0].seconds[-1]
        ends = [last * high / low, last] if name == "workers" else [last * low / high, last]
        axes.plot([low, high], ends, linestyle=":", color="#888888")
        axes.set(xscale="log", yscale="log", xlabel=name, ylabel="s")
        axes.set_ylim(min(min(one.seconds) for one in shown) / 3, max(max(one.seconds) for one in shown) * 8)
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, fontsize=9, loc="upper left")
    for axes in panels:
        axes.set_visible(False)
    figure.savefig(path)


def main() -> int:
    parser = argparse.ArgumentParser(description="How the cost grows.")
    parser.add_argument("--quick", action="store_true", help="smaller sizes, fewer repetitions")
    parser.add_argument("--json", type=Path, metavar="PATH")
    parser.add_argument("--plot", type=Path, metavar="PNG")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    logging.getLogger("async_trainer").setLevel(logging.ERROR)  # it says what such captures cost, rightly
    about = describe_machine()
    print(line(about), flush=True)
    dimensions = (over_callbacks, over_queued, over_tensors, over_bytes, over_workers)
    lines = [one for dimension in dimensions for one in dimension(arguments.quick)]
    rows = [("", "over", "from", "to", "takes, first", "last", "slope", "")]
    for one in lines:
        ends = (
            f"{one.sizes[0]:,g}",
            f"{one.sizes[-1]:,g}",
            f"{one.seconds[0] * 1e3:,.3f} ms",
            f"{one.seconds[-1] * 1e3:,.3f} ms",
        )
        rows.append((one.what, one.over, *ends, f"{one.slope:.2f}", "OUTGROWS ITS INPUT" if one.slope > MOST else ""))
    print(text_table(rows, right=range(2, 7)))
    if arguments.json is not None:
        plain = {"machine": about, "lines": [{**asdict(one), "slope": one.slope} for one in lines]}
        arguments.json.write_text(json.dumps(plain, indent=1, ensure_ascii=False) + "\n")
    if arguments.plot is not None:
        plot(arguments.plot, lines)
    return 1 if any(one.slope > MOST for one in lines) else 0


if __name__ == "__main__":
    sys.exit(main())
