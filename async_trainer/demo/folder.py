"""The directory that the demo writes to: it replaces what an earlier demo made, and nothing else."""

from __future__ import annotations

from pathlib import Path

MARKER = ".made-by-async-trainer-demo"

_MADE = (
    "step-times.png",
    "*/metrics.jsonl",
    "*/figures/epoch-*.png",
    "*/store/epoch-*.pt",
    "*/store/step-*.pt",
    "*/store/.*.pt.partial",
    "*/tensorboard/events.out.tfevents.*",
)
"""What a demo writes, as patterns within its directory."""


def fresh_folder(folder: Path) -> None:
    """Make ``folder``, or empty it of what an earlier demo wrote; files of others stay.

    Raises:
        FileExistsError: ``folder`` holds something, and no demo made it.
        NotADirectoryError: ``folder`` is a file.
    """
    folder.mkdir(parents=True, exist_ok=True)
    marker = folder / MARKER
    if not marker.exists() and any(folder.iterdir()):
        raise FileExistsError(f"{folder} holds files that are not the demo's: choose a new directory with --output")
    marker.touch()
    for pattern in _MADE:
        for path in folder.glob(pattern):
            path.unlink()
