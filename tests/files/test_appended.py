"""AppendedFile: what was written for an event is there once, over retries, kills and resumes."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from async_trainer.files import AppendedFile, appended
from async_trainer.routes import EventInfo


def event(seq: int, attempt: int = 1) -> EventInfo:
    return EventInfo("on_batch_end", seq, attempt)


def begun(path: Path) -> AppendedFile:
    file = AppendedFile(path)
    file.replace()
    return file


def test_what_a_failed_attempt_has_written_is_cut_off(tmp_path: Path) -> None:
    file = begun(tmp_path / "a")
    for seq in (1, 2):
        for attempt in (1, 2, 3):
            file.begin(event(seq, attempt))
            file.write(f"{seq}\n")
            file.write(b"more\n")
    assert (tmp_path / "a").read_text() == "1\nmore\n2\nmore\n"


def test_a_retry_of_an_attempt_that_had_not_come_to_the_file_cuts_off_nothing(tmp_path: Path) -> None:
    file = begun(tmp_path / "a")
    file.begin(event(1))
    file.write("1\n")
    file.begin(event(2, attempt=2))  # the first has failed before begin()
    file.write("2\n")
    assert (tmp_path / "a").read_text() == "1\n2\n"


def test_inline_events_of_one_number_are_no_retries(tmp_path: Path) -> None:
    file = begun(tmp_path / "a")
    for _ in range(2):
        file.begin(event(1))
        file.write("x")
    assert (tmp_path / "a").read_text() == "xx"


def test_the_state_counts_what_is_on_disk_and_loading_it_cuts_off_the_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[int] = []
    file = begun(tmp_path / "a")
    fsync = os.fsync
    monkeypatch.setattr(
        os, "fsync", lambda descriptor: (synced.append(os.fstat(descriptor).st_size), fsync(descriptor))
    )
    file.write("one\n")
    assert synced == []
    state = file.state_dict()
    assert (state, synced) == ({"size": 4}, [4])
    file.write("two\n")  # and here the process is killed

    again = pickle.loads(pickle.dumps(AppendedFile(tmp_path / "a")))
    again.resume()
    again.load_state_dict(state)
    assert (tmp_path / "a").read_text() == "one\n"
    again.begin(event(2, attempt=2))
    again.write("two\n")
    again.close()
    assert (tmp_path / "a").read_text() == "one\ntwo\n"


def test_one_that_takes_the_place_of_another_goes_on_from_its_state_alone(tmp_path: Path) -> None:
    file = AppendedFile()
    file.replace(tmp_path / "folder" / "a")
    file.write("one\n")
    state = file.state_dict()
    file.write("two\nthr")
    other = AppendedFile()
    other.load_state_dict(state)
    other.write("two\n")
    assert (tmp_path / "folder" / "a").read_text() == "one\ntwo\n"
    assert other.state_dict() == {"size": 8, "path": str(tmp_path / "folder" / "a")}


def test_a_start_tells_another_path_than_the_state_of_a_run_that_was_moved(tmp_path: Path) -> None:
    file = AppendedFile()
    file.replace(tmp_path / "a")
    file.write("one\n")
    state = file.state_dict()
    file.write("two\n")
    (tmp_path / "a").rename(tmp_path / "b")
    moved = AppendedFile()
    moved.load_state_dict(state)
    moved.resume(tmp_path / "b")
    assert (tmp_path / "b").read_text() == "one\n"
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize("act", [lambda file: file.write("x"), lambda file: file.cut(0)])
def test_a_file_of_an_earlier_run_is_not_touched_where_nobody_told_of_a_start(tmp_path: Path, act: Any) -> None:
    (tmp_path / "a").write_text("earlier\n")
    with pytest.raises(RuntimeError, match=r"no file is open: on_train_start or on_resume comes first"):
        act(AppendedFile(tmp_path / "a"))
    ended = begun(tmp_path / "b")
    ended.close()
    with pytest.raises(RuntimeError, match="no file is open"):
        act(ended)
    assert (tmp_path / "a").read_text() == "earlier\n"


def test_without_a_path_it_says_so() -> None:
    with pytest.raises(RuntimeError, match="it has no path"):
        AppendedFile().replace()


HOLDS = """
import sys
from async_trainer.files import AppendedFile
file = AppendedFile(sys.argv[1])
file.replace()
file.write("1\\n")
print("has it", flush=True)
sys.stdin.read()
"""


def test_a_second_process_waits_for_the_file_then_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "rows"
    with subprocess.Popen(
        [sys.executable, "-c", HOLDS, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as first:
        assert first.stdout is not None
        assert first.stdout.readline() == "has it\n"
        monkeypatch.setattr(appended, "PATIENCE", 0.1)
        second = AppendedFile(path)
        with pytest.raises(BlockingIOError, match=r"another process writes to it.*another path"):
            second.replace()
        assert path.read_text() == "1\n"
        monkeypatch.setattr(appended, "PATIENCE", 60.0)
        threading.Timer(0.2, first.kill).start()
        second.resume()
    second.write("2\n")
    second.close()
    assert path.read_text() == "1\n2\n"


def test_a_file_that_was_deleted_meanwhile_is_an_error_at_the_end(tmp_path: Path) -> None:
    file = AppendedFile(tmp_path / "rows")
    file.replace()
    file.write("1\n")
    (tmp_path / "rows").unlink()
    with pytest.raises(FileNotFoundError, match="deleted while it was written to"):
        file.close()
