"""The scripts in ``benchmarks/``: the trials see what is so, and the slopes are slopes."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
TRIALS = BENCHMARKS / "peer" / "trials.py"


def run_trial(peer: str, trial: str, folder: Path) -> tuple[int, dict[str, Any]]:
    """Its exit status, and what it said."""
    command = [sys.executable, str(TRIALS), peer, trial, str(folder)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(BENCHMARKS.parent)}
    done = subprocess.run(command, stdout=subprocess.PIPE, env=environment, timeout=120)
    return done.returncode, json.loads(done.stdout)


def read(peer: str, folder: Path) -> list[list[float]]:
    rows: list[list[float]] = run_trial(peer, "read", folder)[1]["delivered"]
    return rows


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"benchmarks_{name}", BENCHMARKS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_what_a_timeline_costs_is_told_beside_what_a_run_costs_without(monkeypatch: pytest.MonkeyPatch) -> None:
    timeline = load("timeline")
    fixed = {"not published": (5e-6, 10e-6), "published": (6e-6, 11e-6), "with a timeline": (8e-6, 43e-6)}
    rows = timeline.measure(2, fixed.get)
    assert [round(row.value, 6) for row in rows] == [5.0, 6.0, 8.0, 10.0, 11.0, 43.0, 10.0]
    assert [row.note for row in rows[:3]] == ["", "1.0 µs more", "3.0 µs more"]
    monkeypatch.setattr(timeline, "STEPS", 50)
    for way in fixed:
        own, everything = timeline.run(way)  # it looks at the file itself
        assert 0 < own < everything


def test_the_steps_beside_a_sink_are_told_with_what_it_has_logged(monkeypatch: pytest.MonkeyPatch) -> None:
    slow_sink = load("slow_sink")
    monkeypatch.setattr(slow_sink, "COUNT", 5)
    logged: list[tuple[int, float]] = []
    for way, count in (("alone", 0), ("inline", 5), ("in the background", 5)):
        logged.clear()
        times, behind = slow_sink.run(way, lambda: None, lambda *values: logged.append(values))
        assert (len(times), behind > 0) == (4, True)
        assert logged == [(step, 0.0) for step in range(count)]

    def refuses(step: int, loss: float) -> None:
        raise OSError("refused")

    with pytest.raises(AssertionError, match="0 of 5 were logged"):
        slow_sink.run("in the background", lambda: None, refuses)
    fixed = {"alone": ([0.02] * 4, 0.0), "inline": ([0.03] * 4, 0.0), "in the background": ([0.021] * 4, 0.05)}
    monkeypatch.setattr(slow_sink, "run", lambda way, step, log: fixed[way])
    rows = slow_sink.measure("a sink", lambda: None, lambda *_: None, rounds=3)
    assert [round(row.ratio, 3) if row.ratio else None for row in rows] == [None, 1.5, 1.05]
    assert rows[-1].note == "50 ms behind at the end"


@pytest.mark.slow
def test_a_trial_tells_snapshots_from_live_values(tmp_path: Path) -> None:
    right = {}
    for peer in ("ours.Ours", "standard.Executor"):
        folder = tmp_path / peer
        folder.mkdir()
        assert run_trial(peer, "snapshot", folder) == (0, {"calls": 500})
        rows = read(peer, folder)
        assert [step for step, _ in rows] == list(range(500))
        right[peer] = sum(step == value for step, value in rows)
    assert right["ours.Ours"] == 500
    assert right["standard.Executor"] < 500


@pytest.mark.slow
def test_a_trial_that_kills_itself_leaves_what_was_delivered_by_then(tmp_path: Path) -> None:
    status, said = run_trial("standard.Executor", "kill", tmp_path)
    assert (status, said) == (-signal.SIGKILL, {"calls": 500})
    rows = read("standard.Executor", tmp_path)
    assert [step for step, _ in rows] == list(range(len(rows)))


@pytest.mark.parametrize(("power", "slope"), [(0, 0.0), (1, 1.0), (2, 2.0)])
def test_a_slope_is_that_of_the_larger_half(power: int, slope: float) -> None:
    pytest.importorskip("matplotlib")
    sizes = [10**n for n in range(6)]
    line = load("growth").Line("a thing", "sizes", sizes, [100.0 if n < 1000 else 1e-6 * n**power for n in sizes])
    assert line.slope == pytest.approx(slope, abs=1e-9)
