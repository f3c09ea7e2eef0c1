"""Beside a process lane, a loop forks the workers of its loader: nothing hangs, nothing is left."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("loader_script.py")


def ended(pid: int) -> bool:
    """Whether that process ends soon."""
    deadline = time.monotonic() + 15
    while time.monotonic() < deadline:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            return True
        if state == "Z":  # nobody reaps it here
            return True
        time.sleep(0.02)
    return False


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(SCRIPT), *arguments], capture_output=True, text=True, timeout=100, check=False
    )


def test_a_loop_with_a_loaders_workers_ends_and_its_child_with_it() -> None:
    ran = run("fork")
    words = ran.stdout.split()
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.startswith(f"ROWS {[1.0, 5.0, 9.0, 13.0] * 2} 8 ")
    assert int(words[-1]) != os.getpid()
    assert ended(int(words[-1]))


@pytest.mark.slow
def test_a_child_ends_when_its_parent_is_killed_while_the_loaders_workers_live_on() -> None:
    ran = run("fork", "killed")
    assert ran.returncode == -9, ran.stderr
    assert ended(int(ran.stdout.split()[1]))
