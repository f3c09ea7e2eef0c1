"""SIGKILL at random moments: what is there is whole, from_maps and validate go on with it."""

from __future__ import annotations

import json
import random
import signal
import time
from pathlib import Path

import pandas as pd
import pytest

from async_trainer import OptimizationConfig, Trainer
from async_trainer.files.weights import load_weights
from tests.endings.child import Child
from tests.train.kit import loader, net, split

SCRIPT = """
from pathlib import Path
from async_trainer.callbacks import MetricsLog, ModelCheckpoint
from tests.train.kit import *

class Tells:
    def on_trainer_init(self): print("made", flush=True)
    def on_validation_end(self): print("validated", flush=True)

callbacks = [Tells(), ModelCheckpoint("loss", last=True, epochs=range(1, 1000)), MetricsLog()]
study = trainer(Path.cwd(), callbacks, num_epochs=1000)
print("ready", flush=True)
for index in range(100):
    study.train(split(index))
"""


@pytest.mark.parametrize("seed", [1, 2, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(3, 20))])
def test_a_killed_training_leaves_maps_that_can_be_used(tmp_path: Path, seed: int) -> None:
    moment = random.Random(seed)
    child = Child(tmp_path, SCRIPT)
    child.wait_for(moment.choice(["made", "ready", "validated"]))
    time.sleep(moment.uniform(0, 0.5))
    child.send(signal.SIGKILL)
    assert child.end().status == -signal.SIGKILL

    study = Trainer.from_maps(tmp_path / "maps", model=net(), optimization=OptimizationConfig(num_epochs=1))
    for index in study.maps.splits:
        folder = study.maps.split(index)
        for name in folder.checkpoint_names:
            load_weights(folder.checkpoint(name))
        if folder.metrics.exists():
            epochs = list(pd.read_csv(folder.metrics, sep="\t")["epoch"])
            assert epochs == [*range(1, 1 + len(epochs))]
        if (folder.logs / "metrics.jsonl").exists():
            lines = (folder.logs / "metrics.jsonl").read_text().split("\n")
            assert [json.loads(line) for line in lines[:-1]] or not lines[0]
        if folder.checkpoint_names:
            frame = study.validate(index, ["loss"], dataloader=loader(10, 4))
            assert list(frame["model_checkpoint"]) == list(folder.checkpoint_names)
    study.train(split(len(study.maps.splits)))  # the next one
