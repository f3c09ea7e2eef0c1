"""``demo --kill``: killed half-way and resumed, a training ends as if nothing had happened; and if not, it says so."""

from __future__ import annotations

import contextlib
import io
import re
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest

torch = pytest.importorskip("torch")
for _package in ("rich", "matplotlib", "sklearn", "tensorboard"):
    pytest.importorskip(_package)

from async_trainer import cli  # noqa: E402
from async_trainer.demo import kill  # noqa: E402
from async_trainer.demo.run import Run  # noqa: E402


class Killed(NamedTuple):
    status: int
    lines: list[str]
    folder: Path
    runs: list[Run]


def run_demo(folder: Path) -> tuple[int, list[str]]:
    output = io.StringIO()
    with contextlib.redirect_stdout(output):
        status = cli.main(["demo", "--kill", "--epochs", "1", "--latency", "0", "--output", str(folder)])
    return status, output.getvalue().splitlines()


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Killed:
    folder, runs, train = tmp_path_factory.mktemp("demo") / "out", [], kill.train

    def recorded(*args: Any, **kwargs: Any) -> Run:
        runs.append(train(*args, **kwargs))
        return runs[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kill, "train", recorded)
        status, lines = run_demo(folder)
    return Killed(status, lines, folder, runs)


@pytest.mark.slow
def test_it_is_killed_half_way_resumed_from_before_and_ends_as_if_nothing_had_happened(killed: Killed) -> None:
    last = r"killed at step 20, resumed from step (7|14): identical weights, identical log and 2 checkpoints, 0 lost"
    assert re.fullmatch(last, killed.lines[-1]), killed.lines
    assert killed.status == 0
    assert "killed     after step 20, by SIGKILL" in killed.lines
    whole, resumed = (killed.folder / name / "maps" / "split-0" / "metrics.tsv" for name in ("whole", "killed"))
    assert whole.read_bytes() == resumed.read_bytes()


@pytest.mark.slow
def test_a_single_bit_that_differs_is_told_and_the_status_is_1(
    killed: Killed, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    whole, resumed = killed.runs
    name = next(iter(resumed.weights))
    changed = {**resumed.weights, name: torch.nextafter(resumed.weights[name], torch.tensor(torch.inf))}
    runs = [whole, replace(resumed, weights=changed)]
    folder = tmp_path / "out"
    monkeypatch.setattr(kill, "train", lambda *args, **kwargs: runs.pop(0))
    # It was killed before: its files are the real ones.
    monkeypatch.setattr(
        kill, "_be_killed", lambda *args: folder.joinpath("killed").symlink_to(killed.folder / "killed")
    )
    status, lines = run_demo(folder)
    assert status == 1
    assert "DIFFERENT weights" in lines[-1]


def test_a_training_that_ends_otherwise_than_by_the_kill_is_an_error(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(kill, "train", lambda *args, **kwargs: None)
    monkeypatch.setattr(sys, "executable", "/bin/false")
    assert run_demo(tmp_path / "out")[0] == 1
    assert "ended with the status 1" in capsys.readouterr().err
