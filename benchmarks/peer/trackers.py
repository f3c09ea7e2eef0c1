"""Experiment trackers, without a network: files, a loopback server, a local database."""

from __future__ import annotations

import os
import signal
import sqlite3
import struct
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from peer.base import Peer

FOREVER = threading.Event()  # never set


def wait_forever(*args: Any, **kwargs: Any) -> Any:
    """In the place of a write: a disk that doesn't answer."""
    FOREVER.wait()


class TensorBoard(Peer):
    name = "TensorBoard SummaryWriter (torch)"
    needs = ("tensorboard",)

    def open(self) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(str(self.folder / "tb"))

    def log(self, step: int, value: Any) -> None:
        self.writer.add_scalar("loss", value, step)

    def close(self) -> None:
        self.writer.close()

    def hang(self) -> None:
        from tensorboard.summary.writer.record_writer import RecordWriter

        RecordWriter.write = wait_forever

    @staticmethod
    def read(folder: Path) -> list[tuple[int, float]]:
        from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

        found = []
        for path in sorted((folder / "tb").glob("*tfevents*")):
            for event in EventFileLoader(str(path)).Load():
                for value in event.summary.value:
                    tensor = value.tensor
                    number = tensor.float_val[0] if tensor.float_val else value.simple_value
                    found.append((event.step, number))
        return found


class TensorBoardX(TensorBoard):
    name = "tensorboardX SummaryWriter"
    needs = ("tensorboardX", "tensorboard")

    def open(self) -> None:
        from tensorboardX import SummaryWriter

        self.writer = SummaryWriter(str(self.folder / "tb"))

    def hang(self) -> None:
        from tensorboardX.record_writer import RecordWriter

        RecordWriter.write = wait_forever


class MLflow(Peer):
    """Against a server on loopback that the parent has started: ``PEER_MLFLOW_URI``, ``_DB``, ``_PID``."""

    name = "MLflow, synchronous=False, local server"
    needs = ("mlflow", "flask")
    calls = 200

    def open(self) -> None:
        import mlflow

        self.mlflow = mlflow
        mlflow.set_tracking_uri(os.environ["PEER_MLFLOW_URI"])
        mlflow.set_experiment(self.folder.name)
        mlflow.start_run()

    def log(self, step: int, value: Any) -> None:
        self.mlflow.log_metric("loss", value, step=step, synchronous=False)

    def close(self) -> None:
        self.mlflow.flush_async_logging()
        self.mlflow.end_run()

    def hang(self) -> None:
        os.killpg(int(os.environ["PEER_MLFLOW_PID"]), signal.SIGSTOP)

    @staticmethod
    def read(folder: Path) -> list[tuple[int, float]]:
        with sqlite3.connect(os.environ["PEER_MLFLOW_DB"]) as database:
            return database.execute(
                "select m.step, m.value from metrics m join runs r using (run_uuid) "
                "join experiments e on e.experiment_id = r.experiment_id where e.name = ? order by m.rowid",
                (folder.name,),
            ).fetchall()


class WandB(Peer):
    name = "wandb, offline"
    needs = ("wandb",)

    def open(self) -> None:
        os.environ |= {"WANDB_MODE": "offline", "WANDB_SILENT": "true", "WANDB_DIR": str(self.folder)}
        import wandb

        self.run = wandb.init(project="peer", dir=str(self.folder))

    def log(self, step: int, value: Any) -> None:
        self.run.log({"loss": value}, step=step)

    def close(self) -> None:
        self.run.finish()

    def hang(self) -> None:
        for pid in descendants(os.getpid()):
            os.kill(pid, signal.SIGSTOP)

    @staticmethod
    def read(folder: Path) -> list[tuple[int, float]]:
        from wandb.proto import wandb_internal_pb2

        found = []
        for raw in (raw for path in folder.glob("wandb/offline-run-*/*.wandb") for raw in read_log(path)):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(raw)
            if record.WhichOneof("record_type") == "history":
                items = {item.key or item.nested_key[0]: item.value_json for item in record.history.item}
                if "loss" in items:
                    found.append((int(items["_step"]), float(items["loss"])))
        return found


class Trackio(Peer):
    name = "trackio, local"
    needs = ("trackio",)

    def open(self) -> None:
        os.environ["TRACKIO_DIR"] = str(self.folder / "trackio")
        import trackio

        self.trackio = trackio
        trackio.init(project="peer", embed=False)

    def log(self, step: int, value: Any) -> None:
        self.trackio.log({"loss": value}, step=step)

    def close(self) -> None:
        self.trackio.finish()

    def hang(self) -> None:
        self.trackio.sqlite_storage.SQLiteStorage.bulk_log = wait_forever

    @staticmethod
    def read(folder: Path) -> list[tuple[int, float]]:
        import orjson

        found = []
        for path in folder.glob("trackio/*.db"):
            with sqlite3.connect(path) as database:
                rows = database.execute("select step, metrics from metrics order by id").fetchall()
            found += [(step, number(orjson.loads(metrics).get("loss"))) for step, metrics in rows]
        return found


class SwanLab(Peer):
    name = "SwanLab, offline"
    needs = ("swanlab",)

    def open(self) -> None:
        import swanlab

        self.swanlab = swanlab
        swanlab.init(project="peer", mode="offline", logdir=str(self.folder / "swan"))

    def log(self, step: int, value: Any) -> None:
        self.swanlab.log({"loss": value}, step=step)

    def close(self) -> None:
        self.swanlab.finish()

    def hang(self) -> None:
        import swanlab.sdk.internal.core_python.store as store

        for one in vars(store).values():
            if isinstance(one, type) and hasattr(one, "write"):
                one.write = wait_forever

    @staticmethod
    def read(folder: Path) -> list[tuple[int, float]]:
        from swanlab.proto.swanlab.record.v1 import record_pb2

        found = []
        for raw in (raw for path in folder.glob("swan/*/*.swanlab") for raw in read_log(path)):
            record = record_pb2.Record()
            record.ParseFromString(raw)
            if record.WhichOneof("record_type") == "scalar" and record.scalar.key == "loss":
                found.append((record.scalar.step, record.scalar.value.number))
        return found


def number(value: Any) -> float:
    """What is no number (a tensor's text, say) is none."""
    try:
        return float(value)
    except (TypeError, ValueError):
        return float("nan")


def read_log(path: Path) -> Iterator[bytes]:
    """The records of a file in LevelDB's log format, behind a header of 7 bytes: blocks of 32 KiB, records in parts."""
    data, position, parts = path.read_bytes(), 7, b""
    while position + 7 <= len(data):
        left = 32768 - position % 32768
        if left < 7:
            position += left
            continue
        _, length, kind = struct.unpack_from("<IHB", data, position)
        position += 7
        if kind == 0 or position + length > len(data):
            return
        parts += data[position : position + length]
        position += length
        if kind in (1, 4):  # whole, or its last part
            yield parts
            parts = b""


def descendants(pid: int) -> list[int]:
    """The processes that ``pid`` has started, theirs included (Linux)."""
    found = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        for child in (task / "children").read_text().split():
            found += [int(child), *descendants(int(child))]
    return found


PEERS = (TensorBoard, TensorBoardX, MLflow, WandB, Trackio, SwanLab)
