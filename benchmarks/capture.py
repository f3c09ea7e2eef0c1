"""How long the loop is held by capturing a model and its optimizer, beside what one would do instead; all in one run.

    python benchmarks/capture.py [--megabytes 300] [--tensors 150] [--repeats 12]

Each way captures once per step, on one torch thread. "held": from the event to the next line of the loop. "step": a
whole step, the capture included, beside a plain one. Medians; ratios are what to compare. The design's budgets: held
1 ms up to 200 tensors, then 4 µs each; a step that captures at most 1.1 of a plain one where a step takes 100 ms or
more; a frame of 100 MB in 0.1 ms on pandas 3.
"""

from __future__ import annotations

import argparse
import gc
import platform
import tempfile
import time
import warnings
from collections.abc import Callable
from statistics import median
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import nn

from async_trainer import CallbacksHandler, TrainerState, background

clock = time.perf_counter


class Checkpoint:
    """Names what a checkpoint holds, and looks at it."""

    def on_batch_end(self, *, model: nn.Module, optimizers: Any, state: TrainerState) -> None:
        model.state_dict()
        optimizers["adam"].state_dict()


class Loop:
    """A training with ``megabytes`` of weights and Adam state in about ``tensors`` tensors; a step takes a while."""

    def __init__(self, megabytes: int, tensors: int) -> None:
        layers = max(1, tensors // 3)  # a weight and two of Adam's
        width = int((megabytes * 1e6 / 4 / 3 / layers) ** 0.5)
        self.model = nn.Sequential(*(nn.Linear(width, width, bias=False) for _ in range(layers)))
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=1e-4)
        self.x = torch.randn(192, width)
        self.state = TrainerState()
        for _ in range(3):
            self.step()
        big = [*self.model.parameters(), *(t for s in self.optimizer.state.values() for t in s.values() if t.dim())]
        self.big: list[torch.Tensor] = [tensor.detach() for tensor in big]

    def step(self) -> None:
        self.model(self.x).square().mean().backward()
        self.optimizer.step()
        self.optimizer.zero_grad()


def measure(loop: Loop, capture: Callable[[], Any], repeats: int) -> tuple[float, float]:
    """The medians of what a capture holds the loop, and of a step with it, in ms; the first third is warm-up."""
    held, steps = [], []
    gc.collect()
    for _ in range(repeats + repeats // 2):
        began = clock()
        capture()
        captured = clock()
        loop.step()
        held.append(captured - began)
        steps.append(clock() - began)
    return 1e3 * median(held[-repeats:]), 1e3 * median(steps[-repeats:])


def ways(loop: Loop) -> dict[str, tuple[Callable[[], Any], Callable[[], Any]]]:
    """By name: what captures, and what ends it."""
    handler = CallbacksHandler([background(Checkpoint())])
    optimizers = {"adam": loop.optimizer}
    handler.call_event("on_train_start", optimizers=optimizers)
    pool = [torch.empty_like(tensor) for tensor in loop.big]

    def ours() -> None:
        handler.call_event("on_batch_end", model=loop.model, optimizers=optimizers, state=loop.state)

    def clones() -> Any:
        return [tensor.clone() for tensor in loop.big]

    def pooled() -> None:
        torch._foreach_copy_(pool, loop.big)

    nothing: Callable[[], Any] = lambda: None  # noqa: E731
    return {
        "plain step": (nothing, nothing),
        "async_trainer, overlapped": (ours, handler.close),
        "fresh clone": (clones, nothing),
        "pooled copy, inline": (pooled, nothing),
        "torch.distributed.checkpoint.async_save": dcp(loop),
    }


def dcp(loop: Loop) -> tuple[Callable[[], Any], Callable[[], Any]]:
    """DCP's own way: staged on the loop by default, written by a thread."""
    from torch.distributed.checkpoint import async_save

    folder = tempfile.TemporaryDirectory()
    pending: list[Any] = []

    def save() -> None:
        while pending:
            pending.pop().result()  # it has one save at a time
        state = {"model": loop.model.state_dict(), "adam": {str(n): tensor for n, tensor in enumerate(loop.big)}}
        pending.append(async_save(state, checkpoint_id=folder.name, no_dist=True))

    def end() -> None:
        while pending:
            pending.pop().result()
        folder.cleanup()

    return save, end


def frame() -> float:
    """The median of what capturing a frame of 100 MB holds the loop, in ms."""

    class Names:
        def on_batch_end(self, *, frame: pd.DataFrame) -> None: ...

    live = pd.DataFrame({str(n): np.zeros(1_250_000) for n in range(10)})
    held = []
    with CallbacksHandler([background(Names())]) as handler:
        for _ in range(50):
            began = clock()
            handler.call_event("on_batch_end", frame=live)
            held.append(clock() - began)
            handler.flush()
    return 1e3 * median(held[10:])


def main() -> None:
    parser = argparse.ArgumentParser(description="What capturing a model and its optimizer holds the loop.")
    parser.add_argument("--megabytes", type=int, default=300)
    parser.add_argument("--tensors", type=int, default=150)
    parser.add_argument("--repeats", type=int, default=12)
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore", module="torch.distributed")
    torch.set_num_threads(1)
    torch.manual_seed(0)
    loop = Loop(arguments.megabytes, arguments.tensors)
    total = sum(tensor.nbytes for tensor in loop.big) / 1e6
    print(f"Python {platform.python_version()}, torch {torch.__version__}, {platform.machine()}, 1 torch thread")
    print(f"{total:.0f} MB in {len(loop.big)} tensors over 64 KiB\n")
    print(f"{'':42}{'held, ms':>12}{'step, ms':>12}{'step / plain':>14}")
    plain = 0.0
    for name, (capture, end) in ways(loop).items():
        held, step = measure(loop, capture, arguments.repeats)
        end()
        plain = plain or step
        print(f"{name:42}{held:12.2f}{step:12.1f}{step / plain:14.2f}")
    print(f"\na DataFrame of 100 MB, pandas {pd.__version__}: held {frame():.3f} ms")


if __name__ == "__main__":
    main()
