"""What a slow handler does to the iterations of an Ignite trainer, inline and in the background; all in one run.

    python benchmarks/adapters_ignite.py

A handler writes the net and its optimizer every 5 iterations, and waits 50 ms as a network would. Compare ratios.
"""

from __future__ import annotations

import io
import time
from itertools import pairwise
from statistics import median
from typing import Any

import torch
from ignite.engine import Engine, Events
from ignite.handlers import Checkpoint

from async_trainer.adapters import ignite

ITERATIONS = 100


def send(checkpoint: Any, *_: Any) -> None:
    torch.save(checkpoint, io.BytesIO())
    time.sleep(0.05)


def run(how: str) -> tuple[float, float, float]:
    """The median and the mean iteration in ms, and all of it in s."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(256, 512), torch.nn.ReLU(), torch.nn.Linear(512, 1))
    optimizer = torch.optim.Adam(model.parameters())

    def step(engine: Engine, batch: Any) -> float:
        loss = (model(batch) - batch.sum(1, keepdim=True)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        ends.append(time.perf_counter())
        return loss.item()

    ends: list[float] = []
    trainer = Engine(step)
    if how != "alone":
        saver: Any = Checkpoint({"model": model, "optimizer": optimizer}, send, n_saved=1)
        saver = ignite.background(saver) if how == "background" else saver
        trainer.add_event_handler(Events.ITERATION_COMPLETED(every=5), saver)
    began = time.perf_counter()
    trainer.run([torch.randn(256, 256)] * ITERATIONS, max_epochs=1)
    took = time.perf_counter() - began
    steps = sorted(later - earlier for earlier, later in pairwise(ends))
    return median(steps) * 1e3, (ends[-1] - ends[0]) / (len(ends) - 1) * 1e3, took


def main() -> None:
    torch.set_num_threads(1)
    run("background")  # imports
    results = {how: run(how) for how in ("alone", "inline", "background")}
    plain = results["alone"][1]
    for how, (middle, mean, took) in results.items():
        print(
            f"{how:12} iteration: median {middle:6.2f} ms, mean {mean:6.2f} ms ({mean / plain:.2f} x), run {took:.2f} s"
        )


if __name__ == "__main__":
    main()
