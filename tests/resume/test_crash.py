"""SIGKILL at each step of a commit, and at random moments: every resume works, and no row is lost or doubled."""

from __future__ import annotations

import os
import pickle
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.resume.child import has_ended
from tests.resume.kit import difference

Outcome = tuple[dict[str, Any], bytes, int]


def start(folder: Path, kill_at: int = 0) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "tests.resume.child", str(folder), str(kill_at)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def run(folder: Path, kill_at: int = 0) -> bool:
    """Whether it came to its end."""
    with start(folder, kill_at) as child:
        _, said = child.communicate(timeout=120)
    assert child.returncode in (0, -9), said
    return child.returncode == 0


def read(folder: Path) -> Outcome:
    outcome: Outcome = pickle.loads((folder / "outcome").read_bytes())
    return outcome


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    folder = tmp_path_factory.mktemp("whole")
    assert run(folder)
    return read(folder)


def check(folder: Path, whole: Outcome) -> None:
    found = read(folder)
    assert difference(whole[0], found[0]) == []
    assert found[1] == whole[1]


def go_on(folder: Path, whole: Outcome) -> None:
    """To the end, where it was not killed after that; and all is as it was without any kill."""
    if not has_ended(folder):
        assert run(folder)
    if (folder / "outcome").exists():
        check(folder, whole)


@pytest.mark.parametrize(
    ("mode", "count"),
    [
        pytest.param(
            "commits", 800, id="each step of a commit, and files torn at each 800th byte", marks=pytest.mark.slow
        ),
        pytest.param("steps", 1000, id="each step of a training", marks=[pytest.mark.slow, pytest.mark.soak]),
        pytest.param("moments", 200, id="200 moments of a training", marks=[pytest.mark.slow, pytest.mark.soak]),
    ],
)
def test_killed_over_and_over_it_goes_on(tmp_path: Path, mode: str, count: int) -> None:
    command = [sys.executable, "-m", "tests.resume.forks", mode, str(tmp_path), str(count)]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=600, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("kills", [2, pytest.param(20, marks=pytest.mark.soak)])
def test_killed_at_random_moments_it_goes_on(tmp_path: Path, whole: Outcome, kills: int) -> None:
    moments, folder = random.Random(), tmp_path / "0"
    folder.mkdir()
    for killed in range(1, kills + 1):
        with start(folder) as child:
            assert child.stdout is not None
            child.stdout.readline()
            time.sleep(moments.uniform(0, 0.5))  # nothing is waited for: it is the moment of the kill
            child.kill()
            _, said = child.communicate()
        assert child.returncode in (0, -9), said
        if has_ended(folder):  # it was faster
            go_on(folder, whole)
            folder = tmp_path / str(killed)
            folder.mkdir()
    go_on(folder, whole)
