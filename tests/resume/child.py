"""A training in a process of its own, that may kill itself: ``python -m tests.resume.child <folder> <kill at>``."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from async_trainer import background
from async_trainer.callbacks import MetricsLog
from async_trainer.resume.bundles import Bundles
from tests.resume.kit import computational, outcome, split, trainer


class Steps:
    """Counts what is done to the disk, before and after; at the ``kill_at``-th there is no more."""

    def __init__(self, kill_at: int) -> None:
        self.count = 0
        self.kill_at = kill_at

    def counted(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            self.step()
            done = function(*args, **kwargs)
            self.step()
            return done

        return call

    def step(self) -> None:
        self.count += 1
        if self.count == self.kill_at:
            os.kill(os.getpid(), signal.SIGKILL)


def has_ended(folder: Path) -> bool:
    """Whether the training was finished: it may have been killed after that, before its outcome was written."""
    record = folder / "maps" / "split-0" / "split.json"
    return record.exists() and json.loads(record.read_text())["status"] == "finished"


def main(folder: Path, kill_at: int) -> None:
    """Train, or resume where there is something to go on from; the outcome goes to ``<folder>/outcome``."""
    steps = Steps(kill_at)
    maps, second = folder / "maps", folder / "second.jsonl"
    resumes = bool(Bundles(maps / "split-0" / "resume").paths)
    if not resumes:
        shutil.rmtree(maps, ignore_errors=True)
    made = trainer(maps, background(MetricsLog(second), placement="process"), resume=resumes, steps=None)
    os.fsync, os.rename, os.replace = map(steps.counted, (os.fsync, os.rename, os.replace))
    torch.save, shutil.rmtree = steps.counted(torch.save), steps.counted(shutil.rmtree)  # type: ignore[assignment]
    print("started", flush=True)
    frame = made.resume(0, split()) if resumes else made.train(split(), computational())
    content = outcome(made, frame), second.read_bytes(), steps.count
    (folder / "outcome").write_bytes(pickle.dumps(content))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
