"""MetricsLog as Parquet: one table, whatever its segments; cut back at a resume, whole after a kill or a full disk."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

pytest.importorskip("pyarrow")

from async_trainer import TrainerState
from async_trainer.callbacks import MetricsLog, parquet_rows
from async_trainer.callbacks.parquet_rows import ParquetRows
from async_trainer.routes import EventInfo
from async_trainer.testing import check_callback, play


def at(number: int) -> TrainerState:
    return TrainerState(current_epoch=1, current_train_batch=number, optim_step=number - 1)


def log_batches(log: MetricsLog, numbers: range) -> None:
    for number in numbers:
        log.on_backward_step_start(state=at(number), loss=torch.tensor(float(number)))


def values(folder: Path) -> list[float]:
    return list(pd.read_parquet(folder)["value"])


def test_a_second_writer_or_a_folder_that_was_deleted_is_told(tmp_path: Path) -> None:
    first, second = ParquetRows(tmp_path / "rows"), ParquetRows(tmp_path / "rows")
    for rows in (first, second):
        rows.replace()
        rows.write_row({"step": 1}, {"loss": 1.0})
    first.sync()
    with pytest.raises(OSError, match="somebody else writes there"):
        second.sync()
    shutil.rmtree(tmp_path / "rows")
    first.write_row({"step": 2}, {"loss": 1.0})
    with pytest.raises(FileNotFoundError, match="it was deleted, or replaced, while it was written to"):
        first.sync()


@pytest.mark.slow
def test_it_does_the_same_however_it_is_run_and_a_resume_doubles_no_row() -> None:
    def read(directory: Path) -> Mapping[str, Any]:
        return {"rows": pd.read_parquet(directory / "metrics.parquet")}

    check_callback(lambda directory: MetricsLog(directory / "metrics.parquet"), read=read)


def test_pandas_reads_the_same_of_it_as_of_the_csv(tmp_path: Path) -> None:
    logs = [MetricsLog(tmp_path / "metrics.parquet"), MetricsLog(tmp_path / "metrics.csv")]
    play(logs, epochs=2, batches=3, directory=tmp_path).raise_for_errors()
    found, wanted = pd.read_parquet(tmp_path / "metrics.parquet"), pd.read_csv(tmp_path / "metrics.csv")
    assert list(found.columns) == list(wanted.columns)
    assert len(found) == 2 * (3 * 2 + 1)
    pd.testing.assert_frame_equal(found, wanted, check_dtype=False, check_exact=True)


def test_a_resumed_log_goes_on_where_its_state_was_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet_rows, "SEGMENT", 4)
    folder = tmp_path / "metrics.parquet"
    before = MetricsLog(folder)
    before.on_train_start()
    log_batches(before, range(1, 7))
    state = before.state_dict()
    assert state == {"size": 6}
    log_batches(before, range(7, 16))
    assert len(list(folder.iterdir())) == 4
    after = MetricsLog(folder)
    after.load_state_dict(state)
    after.on_resume()
    log_batches(after, range(7, 9))
    after.on_train_end()
    assert values(folder) == [float(n) for n in range(1, 9)]
    again = MetricsLog(folder)
    again.on_train_start()
    again.on_train_end()
    assert list(folder.iterdir()) == []


def test_a_cut_in_the_middle_of_a_segment_keeps_what_was_before(tmp_path: Path) -> None:
    rows = ParquetRows(tmp_path)
    rows.replace()
    for number in range(5):
        rows.write_row({"epoch": 1, "step": number}, {"loss": float(number)})
    rows.sync()
    rows.write_row({"epoch": 1, "step": 5}, {"loss": 5.0})
    rows.cut(3)
    rows.write_row({"epoch": 1, "step": 9}, {"loss": 9.0})
    assert repr(rows) == f"<ParquetRows: {tmp_path}, 4 rows>"
    rows.close()
    assert values(tmp_path) == [0.0, 1.0, 2.0, 9.0]


def test_a_retried_event_and_a_full_disk_double_and_lose_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = MetricsLog(tmp_path / "metrics.parquet")
    log.on_train_start()
    log_batches(log, range(1, 3))
    info = EventInfo("on_validation_end", 1, 1)
    with monkeypatch.context() as patch:
        patch.setattr("async_trainer.files.atomic.os.fsync", _full)
        with pytest.raises(OSError, match="No space"):
            log.on_validation_end(state=at(3), metrics={"loss": 0.5}, event=info)
    log.on_validation_end(state=at(3), metrics={"loss": 0.5}, event=info._replace(attempt=2))
    log.on_train_end()
    assert values(tmp_path / "metrics.parquet") == [1.0, 2.0, 0.5]


def _full(descriptor: int) -> None:
    raise OSError(28, "No space left on device")


def test_after_kill_9_all_segments_are_there_and_whole(tmp_path: Path) -> None:
    script = """
        import os, signal, sys
        from async_trainer.callbacks import parquet_rows
        parquet_rows.SEGMENT = 10
        from pathlib import Path
        rows = parquet_rows.ParquetRows(Path(sys.argv[1]))
        rows.replace()
        for number in range(105):
            rows.write_row({"epoch": 1, "step": number}, {"loss": float(number)})
        os.kill(os.getpid(), signal.SIGKILL)
    """
    command = [sys.executable, "-c", textwrap.dedent(script), str(tmp_path)]
    assert subprocess.run(command, check=False, timeout=120).returncode == -signal.SIGKILL
    assert values(tmp_path) == [float(n) for n in range(100)]
    rows = ParquetRows(tmp_path)
    rows.resume()
    assert rows.size == 100
    assert os.listdir(tmp_path)
