"""What a slow handler does to the iterations of an Ignite trainer, inline and in the background; all in one run.

    python benchmarks/adapters_ignite.py [--batch 256]

A handler writes the net and its optimizer every 5 iterations (some 60 ms), and waits as a network would: 20 ms, so that
it keeps up, or 100 ms, so that its lane gets longer until the run ends, which waits for it. "CPU": of the training
thread. Compare ratios: to the iterations of the same trainer without it. An event costs the training thread some
0.5 ms, of which the shorter an iteration is (``--batch``) the more shows.
"""

from __future__ import annotations

import argparse
import functools
import io
import time
from typing import Any

import torch
from ignite.engine import Engine, Events
from ignite.handlers import Checkpoint
from peer.rounds import Moment, compare, summary

from async_trainer.adapters import ignite

EVERY = 5
SKIPPED = 2 * EVERY  # iterations: the first events start threads
CASES = [("alone", 0.0), *((how, wait) for wait in (0.02, 0.1) for how in ("inline", "background"))]


def send(wait: float, checkpoint: Any, *_: Any) -> None:
    torch.save(checkpoint, io.BytesIO())
    time.sleep(wait)


def run(how: str, wait: float, iterations: int, rows: int) -> tuple[float, float, float]:
    """The iterations, without the first."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(256, 512), torch.nn.ReLU(), torch.nn.Linear(512, 1))
    optimizer = torch.optim.Adam(model.parameters())
    ends: list[Moment] = []

    def step(engine: Engine, batch: Any) -> float:
        loss = (model(batch) - batch.sum(1, keepdim=True)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        ends.append((time.perf_counter(), time.thread_time()))
        return loss.item()

    trainer = Engine(step)
    if how != "alone":
        saver: Any = Checkpoint({"model": model, "optimizer": optimizer}, functools.partial(send, wait), n_saved=1)
        saver = ignite.background(saver) if how == "background" else saver
        trainer.add_event_handler(Events.ITERATION_COMPLETED(every=EVERY), saver)
    batch = torch.randn(rows, 256)
    trainer.run([batch] * iterations, max_epochs=1)
    return summary(ends[SKIPPED:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--iterations", type=int, default=150)
    parser.add_argument("--batch", type=int, default=2048)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    run("background", 0.0, 2 * SKIPPED, options.batch)  # imports
    compare(
        [f"{how}, waits {wait * 1e3:.0f} ms" if wait else how for how, wait in CASES],
        options.rounds,
        lambda _, case: run(*CASES[case], options.iterations, options.batch),
    )


if __name__ == "__main__":
    main()
