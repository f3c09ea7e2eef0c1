"""A disk of a few megabytes, which a test fills, and empties again."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BLOCK = 4096
NAMESPACE = ("unshare", "-rm")  # in which anyone may mount a disk


class SmallDisk:
    """A tmpfs of its own, mounted at ``path``."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def free(self) -> int:
        """Bytes."""
        return shutil.disk_usage(self.path).free

    def fill(self) -> None:
        """Leave no block free."""
        with (self.path / "ballast").open("wb", buffering=0) as file, contextlib.suppress(OSError):
            while True:
                file.write(b"x" * BLOCK)
        assert self.free == 0

    def clear(self) -> None:
        """Give back what :meth:`fill` took."""
        (self.path / "ballast").unlink()
        assert self.free > 0


@contextlib.contextmanager
def small_disk(folder: Path, megabytes: int = 4) -> Iterator[SmallDisk]:
    """Mounted at ``folder``, which is made. Who is not root has the test run in a namespace of its own."""
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(folder)], capture_output=True, text=True
    )
    if mounted.returncode:
        _run_in_a_namespace(mounted.stderr.strip(), folder.with_name("namespace"))
    try:
        yield SmallDisk(folder)
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def _run_in_a_namespace(why: str, folder: Path) -> None:
    """Run the test that is under way there, with ``folder`` for its own, and fail if it fails; here it ends."""
    with contextlib.suppress(OSError):
        if subprocess.run([*NAMESPACE, "true"], capture_output=True).returncode == 0:
            test = os.environ["PYTEST_CURRENT_TEST"].rpartition(" ")[0]
            command = [*NAMESPACE, sys.executable, "-m", "pytest", "-q", "-n", "0", "-m", "slow or not slow", test]
            ran = subprocess.run(
                [*command, "-p", "no:cacheprovider", "--basetemp", folder], cwd=ROOT, capture_output=True, text=True
            )
            assert ran.returncode == 0, ran.stdout
            pytest.skip("passed in a namespace of its own")
    pytest.skip(f"no disk can be mounted here: {why}")
