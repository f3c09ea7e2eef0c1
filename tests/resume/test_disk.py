"""A disk that is full, and a folder that can't be written: real mounts, in a mount namespace of their own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import sys
from pathlib import Path
import torch
from async_trainer import CallbacksHandler
from async_trainer.errors import LaneError
from async_trainer.resume.bundles import Bundles

folder = Path(sys.argv[1])
model = torch.nn.Linear(500, 1000)  # 2 MB
handler = CallbacksHandler()
handler.checkpoint(folder / "resume", model=model).wait(60)
before = {path.name: path.read_bytes() for path in (folder / "resume" / "bundle-000001").iterdir()}
print("ready", flush=True)
input()
try:
    handler.checkpoint(folder / "resume", model=model).wait(60)
except LaneError as error:
    print(error, flush=True)
assert sorted(path.name for path in (folder / "resume").iterdir()) == ["bundle-000001", "latest"]
assert {path.name: path.read_bytes() for path in (folder / "resume" / "bundle-000001").iterdir()} == before
print("kept", flush=True)
input()
handler.checkpoint(folder / "resume", model=model).wait(60)
assert [path.name for path in Bundles(folder / "resume").paths] == ["bundle-000002", "bundle-000001"]
try:
    handler.close()
except LaneError as error:
    print("raised at the end", flush=True)
"""

SHELL = """
set -e
mount -t tmpfs -o size=8m tmpfs "$1"
"$2" -c "$3" "$1" < <(
    until grep -q ready "$4/said" 2>/dev/null; do sleep 0.02; done
    {spoil}; echo
    until grep -q kept "$4/said"; do sleep 0.02; kill -0 $PPID 2>/dev/null || exit; done
    {mend}; echo
) > "$4/said"
"""


def namespaces() -> bool:
    """Whether file systems may be mounted here."""
    try:
        probe = subprocess.run(
            ["unshare", "-rm", "mount", "-t", "tmpfs", "tmpfs", "/mnt"], capture_output=True, timeout=60
        )
    except OSError:
        return False
    return probe.returncode == 0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("spoil", "mend", "message"),
    [
        ('head -c 5000000 /dev/zero > "$1/filler"', 'rm "$1/filler"', "No space left on device"),
        ('mount -o remount,ro "$1"', 'mount -o remount,rw "$1"', "Read-only file system"),
    ],
    ids=["full", "read-only"],
)
def test_on_a_disk_that_takes_nothing_the_last_checkpoint_stays_and_later_ones_are_taken(
    tmp_path: Path, spoil: str, mend: str, message: str
) -> None:
    if not namespaces():
        pytest.skip("no file systems may be mounted here: unshare -rm is not permitted")
    (disk := tmp_path / "disk").mkdir()
    shell = SHELL.format(spoil=spoil, mend=mend)
    command = ["unshare", "-rm", "bash", "-c", shell, "bash", str(disk), sys.executable, SCRIPT, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    said = (tmp_path / "said").read_text()
    assert done.returncode == 0, done.stderr
    assert message in said.splitlines()[1], said
    assert said.splitlines()[-2:] == ["kept", "raised at the end"]
