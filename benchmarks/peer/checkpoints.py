"""What saves weights in the background: 40 MB of them, a file per call."""

from __future__ import annotations

import threading
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import nn

from peer.base import Peer

WIDTH = 3162  # a square matrix of it: 40 MB


class Saves(Peer):
    """The weights of one layer, all of them ``value``."""

    what = "40 MB of weights"
    calls = 12

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.model = nn.Linear(WIDTH, WIDTH, bias=False)
        self.go = threading.Event()
        self.go.set()

    def prepare(self, value: Any) -> None:
        """Not measured: the weights as they are at the call."""
        self.before_change()
        with torch.no_grad():
            self.model.weight.fill_(float(value))

    def hang(self) -> None:
        self.go.clear()

    def write(self, path: Path, state: Any) -> None:
        """The sink: a file of torch's."""
        self.go.wait()
        torch.save(state, path)

    @staticmethod
    def read(folder: Path) -> list[tuple[int, float]]:
        found = []
        for path in sorted(folder.glob("*.pt"), key=lambda path: path.stat().st_mtime_ns):
            try:
                weights = torch.load(path, map_location="cpu")["weight"]
            except Exception:  # torn: not delivered
                continue
            low, high = weights.min().item(), weights.max().item()
            found.append((int(path.stem), low if low == high else float("nan")))
        return found


class Ours(Saves):
    name = "async_trainer, weights in a thread"

    def open(self) -> None:
        from async_trainer import CallbacksHandler, background

        peer = self

        class Save:
            def on_batch_end(self, *, step: int, model: nn.Module) -> None:
                peer.write(peer.folder / f"{step}.pt", model.state_dict())

        self.handler = CallbacksHandler([background(Save())], stall_timeout=5.0)

    def log(self, step: int, value: Any) -> None:
        self.handler.call_event("on_batch_end", step=step, model=self.model)

    def before_change(self) -> None:
        self.handler.fence()

    def close(self) -> None:
        self.handler.close()


class OursOverlapped(Ours):
    """The weights are those of an optimizer that the run was given: copied while the training goes on."""

    name = "async_trainer, an optimizer's weights"

    def open(self) -> None:
        super().open()
        self.optimizer = torch.optim.SGD(self.model.parameters())
        self.handler.call_event("on_train_start", optimizers={"sgd": self.optimizer})


class Lightning(Saves):
    name = "Lightning AsyncCheckpointIO"
    needs = ("lightning",)

    def open(self) -> None:
        from lightning.fabric.plugins import TorchCheckpointIO
        from lightning.pytorch.plugins.io import AsyncCheckpointIO

        peer = self

        class Hangs(TorchCheckpointIO):
            def save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
                peer.go.wait()
                super().save_checkpoint(*args, **kwargs)

        self.io = AsyncCheckpointIO(Hangs())

    def log(self, step: int, value: Any) -> None:
        self.io.save_checkpoint(dict(self.model.state_dict()), str(self.folder / f"{step}.pt"))

    def close(self) -> None:
        self.io.teardown()


class DCP(Saves):
    """One save at a time, as torch's tutorial has it: the call waits for the one before."""

    name = "torch DCP async_save"

    def open(self) -> None:
        warnings.filterwarnings("ignore", module="torch.distributed")
        from torch.distributed.checkpoint import FileSystemWriter, async_save

        peer = self

        class Hangs(FileSystemWriter):
            def write_data(self, *args: Any, **kwargs: Any) -> Any:
                peer.go.wait()
                return super().write_data(*args, **kwargs)

        self.writer, self.save = Hangs, async_save
        self.pending: Any = None

    def log(self, step: int, value: Any) -> None:
        if self.pending is not None:
            self.pending.result()
        writer = self.writer(str(self.folder / f"dcp-{step}"))
        self.pending = self.save(dict(self.model.state_dict()), storage_writer=writer, no_dist=True)

    def close(self) -> None:
        if self.pending is not None:
            self.pending.result()

    @staticmethod
    def read(folder: Path) -> list[tuple[int, float]]:
        from torch.distributed.checkpoint import load

        found = []
        done = [path for path in folder.glob("dcp-*") if (path / ".metadata").exists()]
        for path in sorted(done, key=lambda path: (path / ".metadata").stat().st_mtime_ns):
            state = {"weight": torch.empty(WIDTH, WIDTH)}
            load(state, checkpoint_id=str(path), no_dist=True)
            low, high = state["weight"].min().item(), state["weight"].max().item()
            found.append((int(path.name.partition("-")[2]), low if low == high else float("nan")))
        return found


PEERS = (Ours, OursOverlapped, Lightning, DCP)
