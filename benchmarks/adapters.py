"""Steps of other people's trainers beside a slow callback: inline, and in the background; all in one run.

    pip install lightning transformers accelerate
    python benchmarks/adapters.py [--steps 200] [--wait 20] [--rounds 3] [--only lightning]

The callback waits at each step, as one that talks to a network does: its lane gets longer until the run ends, which
waits for it. "step": the median from the start of one to the start of the next, on one torch thread; the median of some
rounds. Ratios are what to compare: to the steps of the same training without it, in the same round.
"""

from __future__ import annotations

import argparse
import logging
import platform
import tempfile
import time
import warnings
from collections.abc import Callable
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

BATCH = 64
WIDTH = 256
WAYS = ("without", "inline", "background")

Run = Callable[[str, int, float, Path], list[float]]


class Samples(Dataset[dict[str, torch.Tensor]]):
    """Random samples."""

    def __init__(self, steps: int) -> None:
        self.x = torch.randn(steps * BATCH, WIDTH)

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {"x": self.x[index]}


class Net(torch.nn.Module):
    """Two layers; returns its loss, as transformers' Trainer wants it."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = torch.nn.Sequential(*(torch.nn.Linear(WIDTH, WIDTH) for _ in range(4)))

    def forward(self, x: torch.Tensor, **kwargs: Any) -> dict[str, torch.Tensor]:
        return {"loss": (self.layers(x) - x).square().mean()}


def with_lightning(how: str, steps: int, wait: float, folder: Path) -> list[float]:
    """``how``: "without", "inline" or "background". Returns when each step started, s."""
    import lightning

    from async_trainer.adapters import lightning as adapter

    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = Net()

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            loss = self.net(**batch)["loss"]
            self.log("loss", loss)
            return loss

        def configure_optimizers(self) -> Any:
            return torch.optim.Adam(self.parameters())

    class Starts(lightning.Callback):
        at: list[float] = []  # noqa: RUF012  # of this run

        def on_train_batch_start(self, *live: Any) -> None:
            self.at.append(time.perf_counter())

    class Slow(lightning.Callback):
        def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
            time.sleep(wait if trainer.global_step and float(outputs["loss"]) >= 0 else 0.0)

    callbacks: list[Any] = [starts := Starts()]
    if how != "without":
        callbacks.append(Slow() if how == "inline" else adapter.background(Slow(), queue_size=10 * steps))
    trainer = lightning.Trainer(
        max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=folder, callbacks=callbacks,
    )  # fmt: skip
    trainer.fit(Module(), DataLoader(Samples(steps), batch_size=BATCH))
    return starts.at


def with_transformers(how: str, steps: int, wait: float, folder: Path) -> list[float]:
    """As with Lightning."""
    from transformers import Trainer, TrainerCallback, TrainingArguments

    from async_trainer.adapters import huggingface

    class Starts(TrainerCallback):
        at: list[float] = []  # noqa: RUF012  # of this run

        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            self.at.append(time.perf_counter())

    class Slow(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            time.sleep(wait if state.global_step else 0.0)

    settings = TrainingArguments(
        str(folder), num_train_epochs=1, per_device_train_batch_size=BATCH, report_to=[], use_cpu=True,
        save_strategy="no", logging_strategy="no", disable_tqdm=True, remove_unused_columns=False,
    )  # fmt: skip
    callbacks: list[Any] = [starts := Starts()]
    if how != "without":
        callbacks.append(Slow())
    trainer = Trainer(Net(), settings, train_dataset=Samples(steps), callbacks=callbacks)
    if how == "background":
        huggingface.offload(trainer, Slow, queue_size=10 * steps)
    trainer.train()
    return starts.at


def with_accelerate(how: str, steps: int, wait: float, folder: Path) -> list[float]:
    """As with Lightning; it is a tracker that waits."""
    from accelerate import Accelerator
    from accelerate.tracking import GeneralTracker

    from async_trainer.adapters import accelerate as adapter

    class Slow(GeneralTracker):
        name = "slow"
        requires_logging_directory = False
        tracker = None

        def log(self, values: Any, step: Any = None, **kwargs: Any) -> None:
            time.sleep(wait)

    tracker = Slow() if how == "inline" else adapter.background(Slow(), queue_size=10 * steps)
    accelerator = Accelerator(cpu=True, log_with=[] if how == "without" else [tracker])
    accelerator.init_trackers("run")
    net = Net()
    batches = DataLoader(Samples(steps), batch_size=BATCH)
    net, optimizer, batches = accelerator.prepare(net, torch.optim.Adam(net.parameters()), batches)
    starts: list[float] = []
    for step, batch in enumerate(batches):
        starts.append(time.perf_counter())
        loss = net(**batch)["loss"]
        accelerator.backward(loss)
        optimizer.step()
        optimizer.zero_grad()
        accelerator.log({"loss": loss}, step=step)
    accelerator.end_training()
    return starts


LIBRARIES: dict[str, Run] = {
    "lightning": with_lightning,
    "transformers": with_transformers,
    "accelerate": with_accelerate,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--wait", type=float, default=20.0, help="ms of the callback at each step")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", choices=LIBRARIES)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    print(f"{platform.machine()}, Python {platform.python_version()}, torch {torch.__version__}")
    print(f"{options.steps} steps, a callback that waits {options.wait:g} ms at each\n")
    print(f"{'':<24}{'without':>12}{'inline':>12}{'background':>12}")
    for name, run in LIBRARIES.items():
        if options.only not in (None, name):
            continue
        measure(run, 20, 0.0)  # imports
        rounds = [measure(run, options.steps, options.wait / 1e3) for _ in range(options.rounds)]
        step = [median(one[how] for one in rounds) for how in WAYS]
        print(f"{name + ' ' + version(name):<24}" + "".join(f"{seconds * 1e3:>9.2f} ms" for seconds in step))
        ratios = [median(one[how] / one["without"] for one in rounds) for how in WAYS[1:]]
        print(f"{'  ratio':<36}" + "".join(f"{ratio:>10.2f} x" for ratio in ratios))


def measure(run: Run, steps: int, wait: float) -> dict[str, float]:
    """The median step without the callback, with it inline, and with it in the background, s."""
    step: dict[str, float] = {}
    for how in WAYS:
        torch.manual_seed(0)
        with tempfile.TemporaryDirectory() as folder:
            starts = run(how, steps, wait, Path(folder))
        step[how] = median(b - a for a, b in pairwise(starts[5:]))
    return step


if __name__ == "__main__":
    main()
