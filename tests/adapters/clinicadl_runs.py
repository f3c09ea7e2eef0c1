"""Small trainings with the real ClinicaDL: 12 images of 4 x 4 x 4 voxels, a linear net."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pandas as pd
import torch
import torchio as tio
from clinicadl.callbacks import Callback, ModelCheckpointCallback, TrainingCheckpointCallback
from clinicadl.data.datasets import Dataset
from clinicadl.data.structures import DataPoint
from clinicadl.losses.config import MSELossConfig
from clinicadl.metrics.config import LossMetricConfig, MAEMetricConfig
from clinicadl.models import SupervisedModel
from clinicadl.optim import OptimizationConfig
from clinicadl.optim.optimizers.config import AdamConfig
from clinicadl.split import Split
from clinicadl.train import ComputationalConfig, Trainer
from clinicadl.utils.config import ObjectConfig
from clinicadl.utils.objects import HasConfig

SETTINGS = {"gpu": False, "amp": False, "seed": 0, "deterministic": True}


class ImagesConfig(ObjectConfig["Images"]):
    """Without one ClinicaDL can't check, on resume, that the data is the same."""

    first: int
    end: int

    @classmethod
    def _get_class(cls) -> Any:
        return Images


class Images(Dataset, HasConfig[ImagesConfig]):
    """Images that are made of the number of their participant."""

    _config_type = ImagesConfig

    def __init__(self, numbers: range) -> None:
        self.config = ImagesConfig(first=numbers.start, end=numbers.stop)
        self.numbers = numbers
        rows = {"participant_id": [f"sub-{n:03}" for n in numbers], "session_id": "ses-M000"}
        self._df = pd.DataFrame(rows)

    def eval(self) -> None: ...

    def train(self) -> None: ...

    def get_sample_info(self, idx: int, column: str) -> Any:
        return self._df.iloc[idx][column]

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, idx: int) -> Any:
        noise = torch.Generator().manual_seed(self.numbers[idx])
        values = torch.randn(1, 4, 4, 4, generator=noise)
        row = self._df.iloc[idx]
        point = DataPoint(tio.ScalarImage(tensor=values), row["participant_id"], row["session_id"])
        point["label"] = float(values.mean())
        return point


class Net(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = torch.nn.BatchNorm3d(1)
        self.layer = torch.nn.Linear(64, 1)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.layer(self.norm(images).flatten(1))


def split() -> Split:
    made = Split(0, Images(range(8)), Images(range(8, 12)))
    made.build_train_loader(batch_size=2, shuffle=True, pin_memory=False)
    made.build_val_loader(batch_size=2, pin_memory=False)
    return made


class Stops(Callback):
    """Breaks a training off, as a crash would."""

    def __init__(self, epoch: int = 3) -> None:
        self.epoch = epoch

    def on_epoch_start(self, *, state: Any, **kwargs: Any) -> None:
        if state.current_epoch == self.epoch:
            raise ZeroDivisionError("a bad epoch")


class Norms(Callback):
    """A callback of a user's, with a state and a file."""

    def __init__(self) -> None:
        self.norms: list[float] = []

    def on_optimization_step_end(self, *, model: Any, **kwargs: Any) -> None:
        self.norms.append(model.network.layer.weight.norm().item())

    def on_train_end(self, *, maps: Any, **kwargs: Any) -> None:
        (Path(maps.path) / "norms.txt").write_text("\n".join(map(str, self.norms)))

    def state_dict(self) -> Any:
        return {"norms": list(self.norms)}

    def load_state_dict(self, state_dict: Any) -> None:
        self.norms = list(state_dict["norms"])


def linear() -> Any:
    torch.manual_seed(0)
    return SupervisedModel(network=Net(), loss=MSELossConfig(), optimizer=AdamConfig(lr=0.05))


def make(folder: Path, callbacks: Any, epochs: int = 4, model: Any = None) -> Trainer:
    return Trainer(
        folder,
        model=model or linear(),
        metrics={"loss": LossMetricConfig(loss_name="loss"), "mae": MAEMetricConfig()},
        optimization=OptimizationConfig(num_epochs=epochs, reset_model=False),
        callbacks=callbacks,
    )


def usual() -> list[Any]:
    """Callbacks that save: the best net, that of epoch 2, and what is needed to resume, each epoch."""
    return [ModelCheckpointCallback(metric="mae", epochs=[2]), TrainingCheckpointCallback(every_n_epochs=1)]


def train(trainer: Trainer) -> None:
    trainer.train(split(), computational=ComputationalConfig(**SETTINGS))


def test(trainer: Trainer) -> None:
    from clinicadl.data.dataloader import DataLoader

    loader = DataLoader(Images(range(20, 24)), batch_size=2)
    trainer.test("split-0_best-mae", "held-out", dataloader=loader, computational=ComputationalConfig(**SETTINGS))


ADDRESS = re.compile(r"0x[0-9a-f]+")  # ClinicaDL writes the repr of what it can't serialize
TIMES = ("exec/", "monitor_callback.pt", "environment", "summary", ".log", "logs/computational.tsv")
"""In the names of files that tell of times, machines and versions."""


def files(folder: Path) -> dict[str, Any]:
    """All files of a MAPS, but those that tell of times and machines: weights as tensors, others as text."""
    found: dict[str, Any] = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_file() and not any(word in name for word in TIMES):
            found[name] = (
                torch.load(path, weights_only=True) if path.suffix == ".pt" else ADDRESS.sub("", path.read_text())
            )
    return found


def same(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor):
        return isinstance(other, torch.Tensor) and torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(value, other[key]) for key, value in one.items())
    return bool(one == other)
