"""What experiment trackers have kept of a run, without what differs from time to time."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

QUIET = {"x_disable_stats": True, "x_disable_meta": True, "disable_git": True, "save_code": False, "console": "off"}
MEASURED = ("_timestamp", "_runtime", "runtime", "per_second")


def stable(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in sorted(values.items()) if not name.endswith(MEASURED)}


def of_csv(folder: Path) -> Any:
    return {path.parent.name: path.read_text() for path in sorted(folder.rglob("metrics.csv"))}


def of_tensorboard(folder: Path) -> Any:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = {}
    for one in sorted({path.parent for path in folder.rglob("events.out.tfevents.*")}):
        board = EventAccumulator(str(one)).Reload()
        tags = board.Tags()["scalars"]
        found[str(one.relative_to(folder))] = stable(
            {tag: [(e.step, e.value) for e in board.Scalars(tag)] for tag in tags}
        )
    return found


def of_mlflow(uri: str, experiment: str) -> Any:
    """Of each run, in the order of their starts: how it ended, its parameters, its metrics' history, its files."""
    from mlflow import MlflowClient

    client = MlflowClient(uri)
    found = []
    experiments = [client.get_experiment_by_name(experiment).experiment_id]
    for run in client.search_runs(experiments, order_by=["attributes.start_time ASC"]):
        history = {
            name: [(one.step, one.value) for one in client.get_metric_history(run.info.run_id, name)]
            for name in stable(run.data.metrics)
        }
        files = sorted(one.path for one in client.list_artifacts(run.info.run_id))
        found.append((run.info.status, stable(run.data.params), history, files))
    return found


def key_of(item: Any) -> str:
    return item.key or ".".join(item.nested_key)


def of_wandb(folder: Path) -> Any:
    """Of each offline run: its settings, its rows, its summary, and how it ended."""
    from async_trainer.callbacks.wandb_files import read_records

    found = []
    paths = folder.rglob("offline-run-*/*.wandb")  # offline-run-20260101_120000-name
    for path in sorted(paths, key=lambda path: (path.parent.name[:27], path.stat().st_mtime_ns)):
        config: dict[str, Any] = {}
        rows: list[dict[str, Any]] = []
        summary: dict[str, Any] = {}
        exits: list[int] = []
        for record, _ in read_records(path):
            for update in (record.run.config.update, record.config.update):
                config |= {one.key: one.value_json for one in update if one.key not in ("_wandb", "")}
            if record.HasField("history"):
                rows.append(stable({key_of(one): json.loads(one.value_json) for one in record.history.item}))
            summary |= {key_of(one): one.value_json for one in record.summary.update}
            if record.HasField("exit"):
                exits.append(record.exit.exit_code)
        found.append((stable(config), rows, stable(summary), exits))
    return found


@pytest.fixture
def wandb_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """wandb itself, without a network."""
    wandb = pytest.importorskip("wandb")
    for name in ("WANDB_CONFIG_DIR", "WANDB_CACHE_DIR", "WANDB_DATA_DIR"):
        monkeypatch.setenv(name, str(tmp_path / "home" / name.lower()))
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    wandb.teardown()  # it reads its environment once
    yield wandb
    wandb.teardown()


@pytest.fixture(scope="module")
def mlflow_database(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A database that MLflow takes as its server. One for a module: making its tables takes seconds."""
    pytest.importorskip("mlflow")
    pytest.importorskip("sqlalchemy")
    return f"sqlite:///{tmp_path_factory.mktemp('mlflow') / 'mlflow.db'}"
