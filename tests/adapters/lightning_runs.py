"""Small trainings with Lightning, and callbacks that look at what they get."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from torch.utils.data import DataLoader, TensorDataset


class Net(L.LightningModule):
    """Has weights, running statistics and metrics, and may break at a step."""

    def __init__(self, breaks_at: int = -1) -> None:
        super().__init__()
        self.net = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.BatchNorm1d(8), torch.nn.Linear(8, 1))
        self.breaks_at = breaks_at
        self.save_hyperparameters("breaks_at", logger=False)

    def _loss(self, batch: Any) -> torch.Tensor:
        (x,) = batch
        return (self.net(x) - x.sum(1, keepdim=True)).square().mean()

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        if self.global_step == self.breaks_at:
            raise OSError("the machine breaks")
        loss = self._loss(batch)
        self.log("loss", loss)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val", self._loss(batch))

    test_step = validation_step

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=1e-2)


class Rows(L.Callback):
    """Writes to a file what it sees; after a resume it goes on from its state."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows: list[str] = []

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        self._row("setup", stage, isinstance(trainer, L.Trainer), isinstance(pl_module, Net))

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        loss = outputs["loss"].item()
        assert loss == trainer.callback_metrics["loss"].item() == trainer.logged_metrics["loss"].item()
        self._row(trainer.current_epoch, trainer.global_step, batch_idx, loss, batch[0].sum().item())

    def on_after_backward(self, trainer: Any, pl_module: Any) -> None:
        self._row(trainer.state.stage, *(p.grad.norm().item() for p in pl_module.parameters()))

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: torch.optim.Optimizer) -> None:
        self._row(type(optimizer).__name__, optimizer.param_groups[0]["lr"], len(optimizer.state_dict()["state"]))

    def on_validation_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        lr = trainer.optimizers[0].param_groups[0]["lr"] if trainer.optimizers else None
        weights = {name: value.double().sum().item() for name, value in pl_module.state_dict().items()}
        self._row(trainer.sanity_checking, dict(trainer.callback_metrics), lr, weights, pl_module.current_epoch)

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        self._row("exception", exception)

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        self._row("teardown", stage, trainer.max_epochs)

    def _row(self, *values: Any) -> None:
        self.rows.append(" ".join(map(str, values)))
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.write_text("\n".join(self.rows))

    def state_dict(self) -> dict[str, Any]:
        return {"rows": list(self.rows)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.rows = list(state_dict["rows"])


def data() -> DataLoader[Any]:
    generator = torch.Generator().manual_seed(0)
    return DataLoader(TensorDataset(torch.randn(64, 8, generator=generator)), batch_size=16)


def make_trainer(folder: Path, callbacks: Iterable[Any] = (), logger: Any = None, **options: Any) -> L.Trainer:
    options = {"max_epochs": 2, "log_every_n_steps": 1, "logger": logger or False, **options}
    return L.Trainer(
        default_root_dir=folder,
        accelerator="cpu",
        callbacks=list(callbacks),
        enable_progress_bar=False,
        enable_model_summary=False,
        **options,
    )


def train(
    folder: Path, wrap: Any, *, breaks_at: int = -1, ckpt_path: Any = None, io: Iterable[Any] = (), **options: Any
) -> L.Trainer:
    """The same training each time, with a callback, a logger, and a checkpoint after each epoch."""
    torch.manual_seed(0)
    name = "resumed" if ckpt_path else "logs"
    trainer = make_trainer(
        folder,
        [wrap(Rows(folder / "rows.txt")), ModelCheckpoint(folder / "checkpoints", save_top_k=1, save_last=True)],
        wrap(CSVLogger(folder, name=name, version=0)),
        plugins=[wrap(one) for one in io],
        **options,
    )
    trainer.fit(Net(breaks_at), data(), data(), ckpt_path=ckpt_path, weights_only=True)
    return trainer


def contents(folder: Path) -> dict[str, Any]:
    """What is in the files of a folder: text, or what torch reads."""
    found: dict[str, Any] = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            name = path.relative_to(folder).as_posix()
            found[name] = torch.load(path, weights_only=True) if path.suffix == ".ckpt" else path.read_text()
    return found
