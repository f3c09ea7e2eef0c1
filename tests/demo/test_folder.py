"""The directory of the demo."""

from __future__ import annotations

from pathlib import Path

import pytest

from async_trainer.demo.folder import fresh_folder


def write(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("text")
    return path


def test_files_of_an_earlier_demo_are_removed_and_all_others_stay(tmp_path: Path) -> None:
    fresh_folder(tmp_path / "out")
    made = [
        write(tmp_path / "out" / name)
        for name in ("step-times.png", "inline/metrics.jsonl", "inline/figures/epoch-001.png", "inline/store/step-1.pt")
    ]
    others = [write(tmp_path / "out" / name) for name in ("notes.txt", "inline/store/mine.pt", "inline/figures/a.png")]
    fresh_folder(tmp_path / "out")
    assert not any(path.exists() for path in made)
    assert all(path.exists() for path in others)


def test_a_directory_of_someone_else_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    theirs = write(tmp_path / "inline" / "metrics.jsonl")
    with pytest.raises(FileExistsError, match=r"not the demo's: .*--output"):
        fresh_folder(tmp_path)
    assert theirs.exists()
    assert [path.name for path in tmp_path.iterdir()] == ["inline"]


def test_an_empty_directory_is_taken(tmp_path: Path) -> None:
    fresh_folder(tmp_path)
    assert len(list(tmp_path.iterdir())) == 1
