"""The demo as a whole, with one epoch and a store next door."""

from __future__ import annotations

import contextlib
import io
import json
import re
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any, NamedTuple

import pytest

torch = pytest.importorskip("torch")
for _package in ("rich", "matplotlib", "sklearn", "tensorboard"):
    pytest.importorskip(_package)

from async_trainer import cli  # noqa: E402
from async_trainer.demo.store import Store  # noqa: E402

BATCHES = 41
"""Batches of an epoch: training and validation."""


class Demo(NamedTuple):
    status: int
    lines: list[str]
    folder: Path


def run_demo(folder: Path, *options: str) -> Demo:
    output = io.StringIO()
    with contextlib.redirect_stdout(output):
        status = cli.main(["demo", "--epochs", "1", "--latency", "0", "--output", str(folder), *options])
    return Demo(status, output.getvalue().splitlines(), folder)


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Demo:
    return run_demo(tmp_path_factory.mktemp("demo") / "out")


def row(demo: Demo, name: str) -> list[str]:
    """The cells of the first table row that starts with ``name``."""
    line = next(line for line in demo.lines if line.strip().startswith(f"{name} "))
    return line.strip().removeprefix(name).split()


def test_its_last_line_says_that_all_is_well(demo: Demo) -> None:
    assert re.fullmatch(r"inline [\d.]+ s, background [\d.]+ s, identical weights, 0 lost", demo.lines[-1])
    assert demo.status == 0


def test_without_a_terminal_it_prints_plain_lines(demo: Demo) -> None:
    text = "\n".join(demo.lines)
    assert "\x1b" not in text
    assert "\r" not in text
    for name in ("inline", "background"):
        assert re.search(rf"^{name} +[\d.]+ s  epoch 1 of 1, accuracy [\d.]+%$", text, re.MULTILINE)


def test_it_states_the_latency_of_its_store(demo: Demo) -> None:
    assert "a store 0 ms away, 20 MB/s" in " ".join(demo.lines[:8])


def test_each_run_writes_a_log_figures_checkpoints_and_scalars(demo: Demo) -> None:
    for run in ("inline", "background"):
        folder = demo.folder / run
        rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        assert [entry["batch"] for entry in rows[:-1]] == [*range(1, BATCHES + 1)]
        assert 0.05 < rows[-1]["accuracy"] <= 1
        assert sorted(path.name for path in (folder / "store").iterdir()) == ["epoch-001.pt", "step-00030.pt"]
        assert [path.name for path in (folder / "figures").iterdir()] == ["epoch-001.png"]
        assert len(list((folder / "tensorboard").iterdir())) == 1
    assert (demo.folder / "step-times.png").read_bytes().startswith(b"\x89PNG")


def test_the_scalars_of_both_runs_are_the_same(demo: Demo) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    scalars: list[dict[str, list[tuple[int, float]]]] = []
    for run in ("inline", "background"):
        events = EventAccumulator(str(demo.folder / run / "tensorboard"))
        events.Reload()
        tags = events.Tags()["scalars"]
        scalars.append({tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in tags})
    assert len(scalars[0]["training/loss"]) == BATCHES
    assert scalars[0] == scalars[1]


def test_its_tables_account_for_time_and_events(demo: Demo) -> None:
    assert len(row(demo, "wall time, until all is written")) == 4
    assert len(row(demo, "step time, p99")) == 4
    assert float(row(demo, "checkpoints")[0]) > 0
    assert float(row(demo, "capturing")[0]) > 0
    lanes = {}
    for line in demo.lines:
        if found := re.match(r" +(\w+) +(thread|process) +(\d+) +0 +0 +0 *$", line):
            lanes[found[1]] = (found[2], int(found[3]))
    assert {name: where for name, (where, _) in lanes.items()} == {
        "metrics_log": "thread", "figures": "process", "checkpoints": "thread", "tensorboard": "thread",
    }  # fmt: skip
    assert lanes["metrics_log"][1] >= BATCHES + 1


@pytest.mark.slow
def test_a_second_demo_replaces_the_files_of_the_first(demo: Demo, tmp_path: Path) -> None:
    folder = shutil.copytree(demo.folder, tmp_path / "out")
    mine = folder / "inline" / "store" / "mine.pt"
    mine.touch()
    before = (folder / "inline" / "metrics.jsonl").read_bytes()
    assert run_demo(folder).status == 0
    assert (folder / "inline" / "metrics.jsonl").read_bytes() == before
    assert len(list((folder / "background" / "tensorboard").iterdir())) == 1
    assert mine.exists()


@pytest.mark.slow
def test_a_checkpoint_that_fails_in_the_background_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    put = Store.put

    def fail(store: Store, *args: Any) -> None:
        if threading.current_thread() is not threading.main_thread():
            raise OSError("the store is full")
        put(store, *args)

    monkeypatch.setattr(Store, "put", fail)
    demo = run_demo(tmp_path / "out")
    assert demo.status == 1
    assert demo.lines[-1].endswith("identical weights, 0 lost, 2 failed")
    assert any("the store is full" in line for line in demo.lines)
    assert any("DIFFERENT files: store/epoch-001.pt, store/step-00030.pt" in line for line in demo.lines)


@pytest.mark.slow
def test_ctrl_c_ends_it_with_a_line(tmp_path: Path) -> None:
    argv = [
        sys.executable,
        "-u",
        "-m",
        "async_trainer.cli",
        "demo",
        "--epochs",
        "6",
        "--output",
        str(tmp_path / "out"),
    ]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("inline"):
                process.send_signal(signal.SIGINT)
                break
        _, error = process.communicate(timeout=60)
    assert process.returncode == 130
    assert error == "async-trainer demo: stopped by Ctrl-C\n"


@pytest.mark.slow
def test_a_trainer_runs_it_too_and_arrives_at_the_same_weights(demo: Demo, tmp_path: Path) -> None:
    trained = run_demo(tmp_path / "out", "--trainer")
    assert trained.status == 0, trained.lines
    assert re.fullmatch(r"inline [\d.]+ s, background [\d.]+ s, identical weights, 0 lost", trained.lines[-1])
    assert "a Trainer" in " ".join(trained.lines[:4])
    for run in ("inline", "background"):
        ours = torch.load(demo.folder / run / "store" / "epoch-001.pt", weights_only=True)["model"]
        theirs = torch.load(trained.folder / run / "maps/split-0/checkpoints/final.pt", weights_only=True)["weights"]
        for name, weight in ours.items():
            assert torch.equal(weight, theirs[f"net.{name}"]), name
        log = (trained.folder / run / "metrics.jsonl").read_text()
        assert log == (demo.folder / run / "metrics.jsonl").read_text()
