"""Files that are there as a whole, synced, or not at all."""

from __future__ import annotations

import errno
import os
import resource
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from async_trainer.files import atomic
from async_trainer.files.atomic import atomic_write, write_json
from async_trainer.files.weights import load_weights, save_weights


def test_a_file_appears_when_it_is_whole_and_makes_its_folders(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "c.txt"
    with atomic_write(path) as file:
        file.write(b"whole")
        assert not path.exists()
    assert path.read_bytes() == b"whole"
    assert list(path.parent.iterdir()) == [path]


def test_a_name_may_be_as_long_as_a_name_may_be(tmp_path: Path) -> None:
    path = tmp_path / ("é" * 127)  # of 254 bytes
    with atomic_write(path) as file:
        file.write(b"whole")
    assert path.read_bytes() == b"whole"


@pytest.mark.parametrize("error", [OSError("no"), KeyboardInterrupt(), GeneratorExit()])
def test_what_fails_halfway_leaves_what_was_there(tmp_path: Path, error: BaseException) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"old")

    def write_half() -> None:
        with atomic_write(path) as file:
            file.write(b"ne")
            file.flush()
            raise error

    with pytest.raises(type(error)):
        write_half()
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_the_content_is_synced_before_it_has_its_name_and_the_name_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.txt"
    synced: list[tuple[str, bool]] = []
    real = os.fsync

    def fsync(descriptor: int) -> None:
        target = Path(os.readlink(f"/proc/self/fd/{descriptor}")).name
        synced.append(("folder" if target == tmp_path.name else "file", path.exists()))
        real(descriptor)

    if not Path("/proc/self/fd").exists():
        pytest.skip("tells what a descriptor is of by /proc")
    monkeypatch.setattr(os, "fsync", fsync)
    with atomic_write(path) as file:
        file.write(b"x")
    assert synced == [("file", False), ("folder", True)]


def test_two_writers_of_one_name_do_not_meet(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    with atomic_write(path) as one, atomic_write(path) as other:
        one.write(b"one")
        other.write(b"other")
    assert path.read_bytes() == b"one"  # the last to be left


@contextmanager
def full_disk() -> Iterator[None]:
    """Within it no file may grow over 64 KiB: not the one either that the tests' output goes to, so keep it short."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_where_the_disk_is_full_the_old_weights_stay(tmp_path: Path, suffix: str) -> None:
    if suffix == ".safetensors":
        pytest.importorskip("safetensors")
    path = tmp_path / f"a{suffix}"
    save_weights(path, {"a": torch.zeros(10)}, {"epoch": 1})
    with full_disk(), pytest.raises((OSError, RuntimeError)):
        save_weights(path, {"a": torch.zeros(1 << 20)}, {"epoch": 2})
    assert load_weights(path)[1] == {"epoch": 1}
    assert list(tmp_path.iterdir()) == [path]


def test_a_sync_that_fails_is_an_error_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fsync(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(atomic.os, "fsync", fsync)
    with pytest.raises(OSError, match="No space"), atomic_write(tmp_path / "a") as file:
        file.write(b"x")
    assert not list(tmp_path.iterdir())


def test_json_is_for_people_too_and_what_is_none_leaves_the_old(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_json(path, {"größe": 1})
    assert path.read_text(encoding="utf-8") == '{\n  "größe": 1\n}\n'
    with pytest.raises(TypeError):
        write_json(path, {"a": object()})
    assert "größe" in path.read_text(encoding="utf-8")
