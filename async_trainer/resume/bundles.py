"""Bundles: folders of resume state, of which each is there as a whole, on disk, or not at all.

::

    resume/
        bundle-000012/    objects.pt, callbacks.pt, manifest.json: what is in it, with hashes; written last
        bundle-000013/
        latest            the name of the newest

A bundle is written under another name, synced, and renamed: that commits it. Older ones go only after that.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import logging
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from async_trainer.errors import ConfigurationError
from async_trainer.files.atomic import atomic_write, disk_errors, name_file, sync_folder, write_json

logger = logging.getLogger("async_trainer")

FORMAT = 1
_numbers = itertools.count()
MANIFEST = "manifest.json"
_NAME = re.compile(r"bundle-(\d+)")


class DamagedBundleError(Exception):
    """A bundle can't be used: a file of it is missing, or is not what was written."""


@dataclass(frozen=True, slots=True)
class Bundle:
    """A bundle that was read.

    Attributes:
        path: its folder.
        objects: their states, by name.
        callbacks: their states, by name.
        manifest: what it says of itself.
    """

    path: Path
    objects: dict[str, Any]
    callbacks: dict[str, Any]
    manifest: dict[str, Any]


class Draft:
    """A bundle that is being written. Any one thread."""

    def __init__(self, folder: Path, number: int) -> None:
        self.name = f"bundle-{number:06d}"
        self._final = folder / self.name
        self._path = folder / f".{self.name}.{os.getpid()}-{next(_numbers)}.partial"
        self._files: dict[str, dict[str, Any]] = {}
        folder.mkdir(parents=True, exist_ok=True)
        remove_partials(folder)  # first: there may be no room for another
        self._path.mkdir()

    def write(self, name: str, content: Mapping[str, Any]) -> None:
        """Write ``<name>.pt``, and sync it.

        Raises:
            OSError: the disk is full, say.
        """
        path = self._path / f"{name}.pt"
        with self._named(path.name), path.open("wb") as file:
            with disk_errors():
                torch.save(dict(content), file)
            file.flush()
            os.fsync(file.fileno())
        self._files[path.name] = {"bytes": path.stat().st_size, "sha256": _hash(path)}

    def commit(self, about: Mapping[str, Any]) -> Path:
        """Write the manifest; from the rename on the bundle is there.

        Raises:
            OSError: it is not.
        """
        with self._named(MANIFEST), (self._path / MANIFEST).open("w", encoding="utf-8") as file:
            json.dump({"format": FORMAT, "files": self._files, **about}, file, indent=2)
            file.flush()
            os.fsync(file.fileno())
        sync_folder(self._path)
        os.rename(self._path, self._final)
        sync_folder(self._final.parent)
        return self._final

    @contextmanager
    def _named(self, name: str) -> Iterator[None]:
        """An error within it says which file would have been there."""
        try:
            yield
        except OSError as error:
            name_file(error, self._final / name)
            raise

    def abandon(self) -> None:
        """Leave nothing of it."""
        shutil.rmtree(self._path, ignore_errors=True)


class Bundles:
    """The bundles in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __repr__(self) -> str:
        return f"<Bundles in {self.folder}: {', '.join(path.name for path in self.paths) or 'none'}>"

    @property
    def paths(self) -> list[Path]:
        """The folders of the bundles, the newest first."""
        found = self.folder.iterdir() if self.folder.is_dir() else ()
        return sorted((path for path in found if _NAME.fullmatch(path.name)), key=_number, reverse=True)

    def draft(self) -> Draft:
        """A new one."""
        there = self.paths
        return Draft(self.folder, _number(there[0]) + 1 if there else 1)

    def publish(self, path: Path, keep: int) -> None:
        """``latest`` names the bundle at ``path``; then older ones go, but the newest ``keep``."""
        with atomic_write(self.folder / "latest") as file:
            file.write(f"{path.name}\n".encode())
        for old in self.paths[keep:]:
            _remove(old)

    def amend(self, path: Path, callbacks: Mapping[str, Any], about: Mapping[str, Any]) -> None:
        """Add states that came late to the bundle at ``path``."""
        file = path / f"callbacks-late-{len(list(path.glob('callbacks-late-*.pt')))}.pt"
        with atomic_write(file) as out:
            torch.save(dict(callbacks), out)
        manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
        manifest["files"][file.name] = {"bytes": file.stat().st_size, "sha256": _hash(file)}
        write_json(path / MANIFEST, {**manifest, **about})

    def read(self) -> Bundle:
        """The newest bundle that is whole.

        Raises:
            ConfigurationError: there is none.
        """
        tried = []
        for path in self.paths:
            try:
                return _read(path)
            except DamagedBundleError as error:
                tried.append(path.name)
                logger.warning("%s is damaged (%s); the one before is used", path, error)
        if tried:
            raise ConfigurationError(f"{self.folder}: all bundles are damaged: {', '.join(tried)}")
        raise ConfigurationError(f"{self.folder}: there is no resume state")


def _number(bundle: Path) -> int:
    match = _NAME.fullmatch(bundle.name)
    assert match is not None
    return int(match[1])


def remove_partials(folder: Path) -> None:
    """What killed processes have left."""
    for partial in [*folder.glob(".bundle-*.partial"), *folder.glob(".latest.*.partial")]:
        match = re.fullmatch(r".*\.(\d+)-\d+\.partial", partial.name)
        if match is not None and _alive(int(match[1])):
            continue
        if partial.is_dir():
            shutil.rmtree(partial, ignore_errors=True)
        else:
            partial.unlink(missing_ok=True)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        pass
    return True


def _remove(path: Path) -> None:
    """Interrupted, nothing is left under the name of a bundle."""
    gone = path.with_name(f".{path.name}.gone.partial")
    try:
        os.rename(path, gone)
    except OSError as error:
        logger.warning("%s can't be removed: %s", path, error)
        return
    shutil.rmtree(gone, ignore_errors=True)


def _read(path: Path) -> Bundle:
    try:
        manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
        files = {str(name): str(one["sha256"]) for name, one in manifest["files"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DamagedBundleError(f"{MANIFEST}: {error}") from error
    if manifest.get("format") != FORMAT:
        raise DamagedBundleError("it is of another version of async_trainer")
    if not {"objects.pt", "callbacks.pt"} <= files.keys():
        raise DamagedBundleError(f"{MANIFEST} names too few files")
    content: dict[str, dict[str, Any]] = {}
    for name, expected in files.items():
        try:
            if _hash(path / name) != expected:
                raise DamagedBundleError(f"{name} is not what was written")
            content[name] = torch.load(path / name, map_location="cpu", weights_only=True)
        except OSError as error:
            raise DamagedBundleError(f"{name}: {error}") from error
    callbacks = dict(content.get("callbacks.pt", {}))
    for name in sorted(content):
        if name.startswith("callbacks-late-"):
            callbacks |= content[name]
    return Bundle(path, content.get("objects.pt", {}), callbacks, manifest)


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
