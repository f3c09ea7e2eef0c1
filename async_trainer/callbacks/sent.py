"""What was sent to a store, noted beside the files: a process that is killed has sent more than its last state says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from async_trainer.files.appended import AppendedFile


class Sent:
    """Notes of objects that are sent, a line of JSON each, on disk before and after. The thread of the upload.

    Args:
        path: of the notes.
    """

    def __init__(self, path: Path) -> None:
        self._file = AppendedFile(path)
        self._path = path

    def __repr__(self) -> str:
        return f"<Sent: {self._path}>"

    def recall(self) -> dict[str, dict[str, Any] | None]:
        """The last note of each object: what is there under its name; None: it may be this or that."""
        self._file.resume()
        notes: dict[str, dict[str, Any] | None] = {}
        for line in self._path.read_bytes().splitlines():
            name, known = json.loads(line)
            notes[name] = known
        return notes

    def note(self, name: str, known: dict[str, Any] | None) -> None:
        """Before an object is sent: None; after it: its version and SHA-256."""
        self._file.write(json.dumps([name, known]) + "\n")
        self._file.sync()

    def begin(self) -> None:
        """Forget what another run has sent."""
        self._file.replace()

    def end(self) -> None:
        """All is sent: nothing of it is resumed."""
        self._file.close()
        self._path.unlink(missing_ok=True)
