"""What resume state costs the loop: the cut, and the step that captures, beside what one would do instead, in one run.

    python benchmarks/resume.py [--backlog 10000] [--megabytes 300] [--tensors 150] [--repeats 8]

First ``barrier()`` on the calling thread, with a backlog of events waiting in a lane, beside a drain of that backlog.
Then a step that takes a checkpoint of model and optimizer, on one torch thread, beside a plain step, and beside a
blocking drain and ``torch.save``, synced. Medians; ratios are what to compare. "cpu" is that of the training thread:
it tells whether a step that took longer had more to do, or had to wait for a core. The design's budgets: ``barrier()``
50 µs; the step 1.1 of a plain one where a step takes 100 ms or more.
"""

from __future__ import annotations

import argparse
import gc
import os
import platform
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
from capture import Loop

from async_trainer import CallbacksHandler, background

clock = time.perf_counter


class Log:
    """Takes 50 µs for each event, as a row of a file does, once its gate is open."""

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.count = 0

    def on_batch_end(self, *, n: int) -> None:
        self.gate.wait()
        time.sleep(50e-6)
        self.count += 1

    def state_dict(self) -> dict[str, int]:
        return {"count": self.count}


def barrier(backlog: int, repeats: int = 20) -> tuple[float, float, float]:
    """With ``backlog`` events waiting: the median and the longest of ``barrier()``, in µs; a drain, in ms."""
    log = Log()
    handler = CallbacksHandler([background(log, queue_size=backlog + 10)])
    for n in range(backlog):
        handler.call_event("on_batch_end", n=n)
    taken, barriers = [], []
    for _ in range(repeats):
        began = clock()
        barriers.append(handler.barrier())
        taken.append(clock() - began)
        time.sleep(0.001)
    log.gate.set()
    began = clock()
    states = barriers[-1].wait()
    drained = clock() - began
    assert states == {"log": {"count": backlog}}
    handler.close()
    return 1e6 * median(taken), 1e6 * max(taken), 1e3 * drained


def measure(loop: Loop, capture: Callable[[], Any], end: Callable[[], Any], repeats: int) -> tuple[float, float, float]:
    """The medians of what a capture holds the loop, of a step with it, and of its CPU time, in ms; the first third is
    warm-up.

    ``end`` is called between, unmeasured, so that each step has a checkpoint to take.
    """
    held, steps, cpu = [], [], []
    gc.collect()
    for _ in range(repeats + repeats // 2):
        began, worked = clock(), time.thread_time()
        capture()
        captured = clock()
        loop.step()
        held.append(captured - began)
        steps.append(clock() - began)
        cpu.append(time.thread_time() - worked)
        end()
    return 1e3 * median(held[-repeats:]), 1e3 * median(steps[-repeats:]), 1e3 * median(cpu[-repeats:])


def ways(loop: Loop, folder: Path) -> dict[str, tuple[Callable[[], Any], Callable[[], Any]]]:
    """By name: what captures, and what waits until that is done."""
    handler = CallbacksHandler([background(Log())])
    handler.attached[0].callback.gate.set()
    taken: list[Any] = []
    nothing: Callable[[], Any] = lambda: None  # noqa: E731

    def ours() -> None:
        taken.append(handler.checkpoint(folder / "ours", model=loop.model, optimizer=loop.optimizer))

    def ended() -> None:
        checkpoint = taken.pop()
        checkpoint.wait()
        assert not checkpoint.skipped

    def blocking() -> None:
        handler.flush()
        with (folder / "blocking.pt").open("wb") as file:
            torch.save({"model": loop.model.state_dict(), "optimizer": loop.optimizer.state_dict()}, file)
            file.flush()
            os.fsync(file.fileno())

    return {
        "plain step": (nothing, nothing),
        "handler.checkpoint, not waited for": (ours, ended),
        "a drain, and a blocking save": (blocking, nothing),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="What resume state costs the loop.")
    parser.add_argument("--backlog", type=int, default=10_000)
    parser.add_argument("--megabytes", type=int, default=300)
    parser.add_argument("--tensors", type=int, default=150)
    parser.add_argument("--repeats", type=int, default=8)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    print(f"Python {platform.python_version()}, torch {torch.__version__}, {platform.machine()}, 1 torch thread\n")
    middle, longest, drained = barrier(arguments.backlog)
    print(
        f"barrier(), {arguments.backlog:,} events waiting   p50 {middle:.1f} µs, longest {longest:.1f} µs (budget 50)"
    )
    print(f"a drain of them, in its place       {drained:,.0f} ms\n")
    loop = Loop(arguments.megabytes, arguments.tensors)
    total = sum(tensor.nbytes for tensor in loop.big) / 1e6
    print(f"{total:.0f} MB in {len(loop.big)} tensors over 64 KiB (budget 1.1)\n")
    print(f"{'':42}{'held, ms':>12}{'step, ms':>12}{'step / plain':>14}{'cpu / plain':>14}")
    plain = plain_cpu = 0.0
    with tempfile.TemporaryDirectory() as folder:
        for name, (capture, end) in ways(loop, Path(folder)).items():
            held, step, cpu = measure(loop, capture, end, arguments.repeats)
            plain, plain_cpu = plain or step, plain_cpu or cpu
            print(f"{name:42}{held:12.2f}{step:12.1f}{step / plain:14.2f}{cpu / plain_cpu:14.2f}")


if __name__ == "__main__":
    main()
