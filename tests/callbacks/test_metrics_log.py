"""MetricsLog: which rows are in its file, and when."""

from __future__ import annotations

import csv
import json
import logging
import math
import os
import pickle
import shutil
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from async_trainer import CallbacksHandler, TrainerState, background, inline
from async_trainer.callbacks import MetricsLog, TensorBoard
from async_trainer.callbacks.rows import RowFile
from async_trainer.errors import ConfigurationError, LaneError
from async_trainer.routes import EventInfo
from async_trainer.testing import check_callback, hold, play
from async_trainer.train.maps import Maps
from tests.callbacks.loops import Metrics, sgd


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def at(batch: int) -> TrainerState:
    """At a batch (counted over the epochs, of five batches each)."""
    epoch, number = divmod(batch - 1, 5)
    return TrainerState(
        called="train",
        current_epoch=epoch + 1,
        current_train_batch=number + 1,
        num_train_batches=5,
        optim_step=batch - 1,
    )


def batches(path: Path) -> list[int | None]:
    """The batches in the log, counted over the epochs; None: a validation."""
    return [(row["epoch"] - 1) * 5 + row["batch"] if "batch" in row else None for row in rows(path)]


def log_batches(log: MetricsLog, numbers: range) -> None:
    for number in numbers:
        log.on_backward_step_start(state=at(number), loss=torch.tensor(number / 2))


@pytest.mark.parametrize("suffix", [".jsonl", pytest.param(".csv", marks=pytest.mark.slow)])
@pytest.mark.parametrize("every", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_it_does_the_same_however_it_is_run_and_a_resume_doubles_no_row(suffix: str, every: int) -> None:
    check_callback(lambda directory: MetricsLog(directory / f"metrics{suffix}", every=every), exactly_once=True)


def test_a_training_has_a_row_for_each_batch_and_each_validation(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "metrics.jsonl"
    play(MetricsLog(path), epochs=2, batches=2).raise_for_errors()
    keys = [["epoch", "batch", "step", "loss", "lr"]] * 2 + [["epoch", "step", "validation/loss"]]
    assert [list(row) for row in rows(path)] == keys * 2
    assert [row["step"] for row in rows(path)] == [0, 1, 2, 2, 3, 4]
    assert rows(path)[0]["lr"] == 0.1


def test_its_class_runs_in_the_background_and_captures_no_optimizer_only_its_rates(tmp_path: Path) -> None:
    weight = torch.nn.Parameter(torch.ones(300, 300))
    weight.grad = torch.ones(300, 300)
    optimizer = torch.optim.Adam([weight])
    optimizer.step()
    handler = CallbacksHandler([MetricsLog(tmp_path / "a.jsonl"), inline(MetricsLog(tmp_path / "b.jsonl"))])
    with handler:
        handler.call_event("on_train_start", optimizers={"adam": optimizer})
        with hold(handler):
            for number in (1, 2):
                handler.call_event("on_backward_step_start", state=at(number), loss=torch.tensor(1.0))
                optimizer.param_groups[0]["lr"] = 0.5
            assert handler.stats().snapshot_bytes == 0
    assert [row["lr"] for row in rows(tmp_path / "a.jsonl")] == [0.001, 0.5]
    assert rows(tmp_path / "a.jsonl") == rows(tmp_path / "b.jsonl")
    assert background(MetricsLog()).options.on_error == "raise_at_end"


def test_losses_and_rates_are_told_apart_by_name(tmp_path: Path) -> None:
    def logged(loss: Any, optimizers: Any) -> dict[str, Any]:
        log = MetricsLog(tmp_path / "metrics.jsonl")
        log.on_train_start()
        log.on_backward_step_start(state=at(1), loss=loss, optimizers=optimizers)
        log.on_train_end()
        (row,) = rows(tmp_path / "metrics.jsonl")
        return {name: value for name, value in row.items() if name not in ("epoch", "batch", "step")}

    two_groups = sgd()
    two_groups.add_param_group({"params": [torch.nn.Parameter(torch.ones(1))], "lr": 3.0})
    assert logged(2.0, None) == {"loss": 2.0}
    assert logged({"g": torch.tensor(1.0), "d": torch.tensor([2.0])}, None) == {"loss/g": 1.0, "loss/d": 2.0}
    assert logged(2.0, {"sgd": sgd(torch.tensor(0.5))}) == {"loss": 2.0, "lr": 0.5}  # type: ignore[arg-type]
    assert logged(2.0, {"g": sgd(), "d": sgd(2.0)}) == {"loss": 2.0, "lr/g": 1.0, "lr/d": 2.0}
    assert logged(2.0, {"sgd": two_groups}) == {"loss": 2.0, "lr/sgd/0": 1.0, "lr/sgd/1": 3.0}


def test_csv_has_a_line_for_each_value_under_one_header(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    log, metrics = MetricsLog(path), Metrics("loss", 'a "b", c')
    metrics.last = {"loss": 0.25, 'a "b", c': math.nan}
    log.on_train_start()
    log.on_backward_step_start(state=at(1), loss=torch.tensor(0.5), optimizers={"sgd": sgd()})
    log.on_validation_end(state=at(2), metrics=metrics)
    log.on_train_end()
    with path.open(newline="") as file:
        assert list(csv.reader(file)) == [
            ["epoch", "batch", "step", "name", "value"],
            ["1", "1", "0", "loss", "0.5"],
            ["1", "1", "0", "lr", "1.0"],
            ["1", "", "1", "validation/loss", "0.25"],
            ["1", "", "1", 'validation/a "b", c', "nan"],
        ]


def test_two_logs_on_one_path_are_told(tmp_path: Path) -> None:
    """Of one training they are refused."""
    runs = [CallbacksHandler([MetricsLog(tmp_path / "log.csv")]) for _ in range(2)]
    for run in runs:
        run.call_event("on_train_start")
    for number in range(1, 4):
        for run in runs:
            run.call_event("on_validation_end", state=at(number), metrics={"loss": 0.5})
            run.flush()
    told = []
    for run in runs:
        try:
            run.close()
        except LaneError as error:
            told.append(str(error))
    assert any("somebody else writes to it" in text and "give it another path" in text for text in told)


def test_a_name_that_is_no_text_costs_no_row_of_parquet(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    log = MetricsLog(tmp_path / "metrics.parquet")
    log.on_train_start()
    for name in ("a", "b-\udc80", "c"):
        log.on_validation_end(state=at(1), metrics={name: 0.5})
    log.on_train_end()
    names = pd.read_parquet(tmp_path / "metrics.parquet")["name"]
    assert list(names) == ["validation/a", "validation/b-\\udc80", "validation/c"]


@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
def test_a_name_that_is_no_text_is_written_escaped(tmp_path: Path, suffix: str) -> None:
    log = MetricsLog(tmp_path / f"metrics{suffix}")
    log.on_train_start()
    log.on_validation_end(state=at(2), metrics={"file-\udc80": 0.5})
    log.on_train_end()
    text = (tmp_path / f"metrics{suffix}").read_text(encoding="utf-8")
    assert "validation/file-\\udc80" in text
    if suffix == ".jsonl":
        assert json.loads(text)["validation/file-\udc80"] == 0.5


def test_what_is_not_finite_is_valid_json_and_can_be_told_apart(tmp_path: Path) -> None:
    for value, written in ((math.nan, "NaN"), (math.inf, "Infinity"), (-math.inf, "-Infinity")):
        log = MetricsLog(tmp_path / "metrics.jsonl")
        log.on_train_start()
        log.on_backward_step_start(state=at(1), loss=torch.tensor(value))
        (row,) = [json.loads(line, parse_constant=pytest.fail) for line in log.path.open()]  # type: ignore[union-attr]
        assert row["loss"] == written
        assert math.isnan(float(written)) if math.isnan(value) else float(written) == value
        log.on_train_end()


def test_only_each_nth_batch_of_the_training_is_written_and_the_others_are_not_captured(tmp_path: Path) -> None:
    logs = [MetricsLog(tmp_path / "a.jsonl", every=3), inline(MetricsLog(tmp_path / "b.jsonl", every=3))]
    with CallbacksHandler(logs) as handler:
        handler.call_event("on_train_start")
        for number in range(1, 11):
            handler.call_event("on_backward_step_start", state=at(number), loss=torch.tensor(1.0))
    assert handler.close().delivered == 1 + 3
    assert batches(tmp_path / "a.jsonl") == batches(tmp_path / "b.jsonl") == [3, 6, 9]

    log = MetricsLog(tmp_path / "c.jsonl", every=3)  # of a loader without a length
    log.on_train_start()
    for epoch in (1, 2):
        for number in range(1, 5):
            state = TrainerState(current_epoch=epoch, current_train_batch=number)
            log.on_backward_step_start(state=state, loss=1.0)
    log.on_train_end()
    assert [(row["epoch"], row["batch"]) for row in rows(tmp_path / "c.jsonl")] == [(1, 3), (2, 3)]


@pytest.mark.parametrize("suffix", [".jsonl", ".csv"])
@pytest.mark.parametrize("first", ["state", "event"])
def test_a_resumed_log_goes_on_where_its_state_was_taken(tmp_path: Path, suffix: str, first: str) -> None:
    path = tmp_path / f"metrics{suffix}"
    before = MetricsLog(path)
    before.on_train_start()
    log_batches(before, range(1, 3))
    state, there = pickle.loads(pickle.dumps(before.state_dict())), path.read_bytes()
    assert state == {"size": len(there)}
    assert repr(before) == f"<MetricsLog: {path}>"
    assert repr(before._file) == f"<RowFile: {path}, {len(there)} bytes>"
    log_batches(before, range(3, 9))  # and then the process is killed, in the middle of a row
    with path.open("ab") as file:
        file.write(b'{"epoch": 1, "bat')

    after = pickle.loads(pickle.dumps(MetricsLog(path)))
    steps: list[Callable[[], None]] = [lambda: after.load_state_dict(state), after.on_resume]
    for step in steps if first == "state" else reversed(steps):
        step()
    assert path.read_bytes() == there
    log_batches(after, range(3, 4))
    after.on_train_end()
    content = path.read_bytes()
    assert content.startswith(there)
    assert content[len(there) :].count(b"\n") == 1
    assert after.state_dict() == {"size": len(content)}


def test_a_resume_without_a_state_keeps_all_whole_rows(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    for content in (
        b'{"epoch": 1, "batch": 1}\n{"bat',
        b'{"epoch": 1, "batch": 1}\n' + b"x" * 200_000,
        b'{"epoch": 1, "batch": 1}\n',
    ):
        path.write_bytes(content)
        log = MetricsLog(path)
        log.on_resume()
        log_batches(log, range(2, 3))
        log.on_train_end()
        assert batches(path) == [1, 2]
    path.write_bytes(b"torn")
    log.on_resume()
    assert path.read_bytes() == b""
    log.on_train_end()


def test_a_log_that_was_lost_is_begun_anew_and_that_is_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    log = MetricsLog(tmp_path / "metrics.jsonl")
    log.load_state_dict({"size": 100})
    with caplog.at_level(logging.WARNING, "async_trainer"):
        log.on_resume()
    assert "metrics.jsonl is shorter than it was: rows up to byte 100 of 0 are lost" in caplog.text
    log_batches(log, range(8, 9))
    log.on_train_end()
    assert batches(tmp_path / "metrics.jsonl") == [8]


def test_a_retried_hook_writes_its_row_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    failures = iter([OSError("no reply"), OSError("no reply")])
    sync = RowFile.sync

    def unreliable(file: RowFile) -> None:  # the row of the validation is there already
        sync(file)
        if error := next(failures, None):
            raise error

    path = tmp_path / "metrics.jsonl"
    log = background(MetricsLog(path), retries=2, backoff=0)
    with CallbacksHandler([log]) as handler:
        handler.call_event("on_train_start")
        handler.call_event("on_backward_step_start", state=at(1), loss=0.5)
        handler.flush()
        monkeypatch.setattr(RowFile, "sync", unreliable)
        handler.call_event("on_validation_end", state=at(3), metrics={"loss": 0.5})
        handler.call_event("on_backward_step_start", state=at(3), loss=0.5)
        handler.call_event("on_train_end")
    handler.close().raise_for_errors()
    assert batches(path) == [1, None, 3]


def test_only_what_the_retried_event_wrote_is_cut_off(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path / "metrics.jsonl")
    log.on_train_start()
    for number, attempt in ((1, 1), (1, 2), (2, 1), (3, 1), (3, 2), (3, 3), (4, 1)):
        info = EventInfo("on_backward_step_start", number, attempt)
        log.on_backward_step_start(state=at(number), loss=0.5, event=info)
    log.on_train_end()
    assert batches(tmp_path / "metrics.jsonl") == [1, 2, 3, 4]


def test_a_row_that_was_written_by_half_is_cut_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = MetricsLog(tmp_path / "metrics.jsonl")
    log.on_train_start()
    log_batches(log, range(1, 2))
    write = os.write

    def full(file: int, data: Any) -> int:
        if len(data) <= 8:
            raise OSError(28, "No space left on device")
        return write(file, data[:8])

    with monkeypatch.context() as patch:
        patch.setattr("os.write", full)
        with pytest.raises(OSError, match="No space"):
            log_batches(log, range(2, 3))
    assert batches(tmp_path / "metrics.jsonl") == [1]

    with monkeypatch.context() as patch:  # nor can it be cut off at once
        patch.setattr("os.write", full)
        patch.setattr("os.ftruncate", full)
        with pytest.raises(TypeError):
            log_batches(log, range(2, 3))
    log_batches(log, range(3, 4))
    log.on_train_end()
    assert batches(tmp_path / "metrics.jsonl") == [1, 3]


def test_rows_are_synced_each_second_at_each_validation_and_for_the_state(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[int] = []
    now = 100.0
    monkeypatch.setattr("async_trainer.callbacks.rows.time.monotonic", lambda: now)
    monkeypatch.setattr("async_trainer.files.appended.os.fsync", lambda file: synced.append(os.fstat(file).st_size))

    def syncs() -> int:
        count = len(synced)
        synced.clear()
        return count

    path = tmp_path / "metrics.jsonl"
    log = MetricsLog(path)
    log.on_train_start()
    syncs()
    log_batches(log, range(1, 9))
    assert syncs() == 0
    assert len(rows(path)) == 8  # there, if not synced
    now += 1
    log_batches(log, range(9, 11))
    assert syncs() == 1
    assert log.state_dict()["size"] == path.stat().st_size == synced[-1]
    log.state_dict()
    assert syncs() == 1
    log.on_validation_end(state=at(11), metrics={"loss": 1.0})
    assert syncs() == 1
    log_batches(log, range(11, 12))
    log.on_train_end()
    assert syncs() == 1


def test_by_default_each_split_has_a_log_in_the_maps(tmp_path: Path) -> None:
    log, maps = MetricsLog(), Maps(tmp_path)
    for split in (0, 1):
        state = TrainerState(called="train", split_idx=split)
        log.on_train_start(maps=maps, state=state)
        log_batches(log, range(1, split + 3))
        log.on_train_end()
    assert [len(rows(maps.split(n).logs / "metrics.jsonl")) for n in (0, 1)] == [2, 3]


def test_a_training_that_starts_replaces_a_path_that_was_given(tmp_path: Path) -> None:
    log = MetricsLog(str(tmp_path / "metrics.jsonl"))
    for last in (5, 3):
        log.on_train_start(maps=Maps(tmp_path), state=TrainerState(split_idx=0))
        log_batches(log, range(1, last))
        log.on_train_end()
    assert len(rows(tmp_path / "metrics.jsonl")) == 2


def test_evaluations_are_not_batches_of_a_training(tmp_path: Path) -> None:
    with CallbacksHandler([MetricsLog(tmp_path / "metrics.jsonl")]) as handler:
        for event in ("on_validate_start", "on_batch_start", "on_batch_end", "on_validate_end"):
            handler.call_event(event, state=TrainerState(called="validate"), metrics={"loss": 1.0})
    assert not (tmp_path / "metrics.jsonl").exists()


class DiesOnce(MetricsLog):
    """Kills its process in the middle of a hook, with rows in the file that are in no state."""

    def on_backward_step_start(
        self, *, state: TrainerState, loss: Any, maps: Any, event: EventInfo, **kwargs: Any
    ) -> None:
        super().on_backward_step_start(state=state, loss=loss, event=event)
        flag = maps.path / "died"
        if state.current_train_batch == 30 and not flag.exists():
            flag.touch()
            os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize("retries", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_a_process_that_dies_costs_no_row_and_doubles_none(tmp_path: Path, retries: int) -> None:
    maps = Maps(tmp_path / "maps")
    handler = CallbacksHandler([background(DiesOnce(), placement="process", retries=retries)])
    state = TrainerState(called="train", split_idx=0, current_epoch=1)
    (tmp_path / "maps").mkdir()
    handler.call_event("on_train_start", state=state, maps=maps)
    for batch in range(1, 41):
        state.current_train_batch = batch
        handler.call_event("on_backward_step_start", state=state, maps=maps, loss=torch.tensor(1.0))
        if batch == 10:
            handler.barrier().wait(60)  # from here on there is a state, and the start is not told again
    handler.call_event("on_train_end", state=state)
    assert handler.close().ok
    assert [row["batch"] for row in rows(maps.split(0).logs / "metrics.jsonl")] == [*range(1, 41)]


def test_after_kill_9_all_rows_are_there_and_whole(tmp_path: Path) -> None:
    script = """
        import os, signal, sys
        import torch
        from async_trainer import CallbacksHandler, TrainerState, inline
        from async_trainer.callbacks import MetricsLog

        handler = CallbacksHandler([inline(MetricsLog(sys.argv[1]))])
        handler.call_event("on_train_start")
        for number in range(1, 101):
            state = TrainerState(current_epoch=1, current_train_batch=number)
            handler.call_event("on_backward_step_start", state=state, loss=torch.tensor(1.0))
        os.kill(os.getpid(), signal.SIGKILL)
    """
    path = tmp_path / "metrics.jsonl"
    command = [sys.executable, "-c", textwrap.dedent(script), str(path)]
    assert subprocess.run(command, check=False, timeout=60).returncode != 0
    assert batches(path) == list(range(1, 101))


def test_without_a_path_and_without_maps_it_says_what_to_give(tmp_path: Path) -> None:
    for arguments in ({}, {"maps": tmp_path}, {"maps": Maps(tmp_path), "state": TrainerState()}):
        with pytest.raises(ConfigurationError, match=r"MetricsLog: path=None .* give a path="):
            MetricsLog().check_training(**arguments)
    handler = CallbacksHandler([MetricsLog()])
    with pytest.raises(ConfigurationError, match="give a path="):  # on the training thread, before anything is trained
        handler.call_event("on_train_start", state=at(1), maps=tmp_path)


def test_what_is_no_number_costs_the_others_nothing_and_is_told_at_the_end(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "metrics.jsonl"
    handler = CallbacksHandler([background(MetricsLog(path), retries=2, backoff=0.0)])
    handler.call_event("on_train_start", state=at(1))
    for number in (1, 2):
        metrics = {"ok": 0.5 * number, "confusion": torch.ones(3, 3), "why": None}
        handler.call_event("on_validation_end", state=at(number), metrics=metrics)
    handler.call_event("on_train_end", state=at(2))
    with pytest.raises(LaneError, match=r"validation/confusion must be a number, .*validation/why must be a number"):
        handler.close()
    assert [row["validation/ok"] for row in rows(path)] == [0.5, 1.0]
    assert caplog.text.count("the others are logged") == 1


def test_a_loss_that_is_no_number_is_named(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path / "metrics.jsonl")
    log.on_train_start()
    with pytest.raises(
        ConfigurationError, match=r"^MetricsLog: loss must be a number, .* not a tensor of shape \(3,\)"
    ):
        log.on_backward_step_start(state=at(1), loss=torch.ones(3))
    with pytest.raises(ConfigurationError, match="loss/g must be a number, or a tensor of one, not NoneType"):
        log.on_backward_step_start(state=at(1), loss={"g": None})
    with pytest.raises(
        ConfigurationError, match="loss must be a number, or a tensor of one, not one that no float can hold"
    ):
        log.on_backward_step_start(state=at(1), loss=10**400)
    with pytest.raises(
        ConfigurationError, match=r"^MetricsLog: validation/recall must be a number, .* of shape \(3,\)"
    ):
        log.on_validation_end(state=at(1), metrics={"recall": torch.ones(3)})
    log.on_train_end()
    assert (tmp_path / "metrics.jsonl").read_bytes() == b""
    with pytest.raises(RuntimeError, match="no file is open"):
        log_batches(log, range(1, 2))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"path": 3}, "path must be a path"),
        ({"path": "metrics.json"}, r"path must end in \.jsonl, \.csv or \.parquet, not 'metrics\.json'"),
        ({"path": "logs"}, "path must end in"),
        ({"every": 0}, "every must be a whole number, 1 or more, not 0"),
        ({"every": 1.5}, "every must be"),
        ({"every": True}, "every must be"),
    ],
)
def test_a_bad_argument_is_refused_by_name(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        MetricsLog(**arguments)


def test_a_file_that_was_deleted_is_told_with_the_next_row(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path / "m.csv")
    log.on_train_start()
    log_batches(log, range(1, 3))
    (tmp_path / "m.csv").unlink()
    for _ in range(2):  # also where somebody makes another
        with pytest.raises(FileNotFoundError, match="it was deleted while it was written to"):
            log_batches(log, range(3, 4))
        (tmp_path / "m.csv").touch()


@pytest.mark.parametrize("make", [MetricsLog, lambda path: TensorBoard(path.parent)])
def test_a_file_that_was_deleted_is_told_also_where_the_end_is_tried_again(
    tmp_path: Path, make: Callable[[Path], Any]
) -> None:
    handler = CallbacksHandler([background(make(tmp_path / "runs" / "m.csv"), retries=2, backoff=0.01)])
    handler.call_event("on_train_start", state=at(1))
    handler.call_event("on_backward_step_start", state=at(1), loss=torch.tensor(1.0))
    handler.flush()
    shutil.rmtree(tmp_path / "runs")
    handler.call_event("on_train_end", state=at(1))
    with pytest.raises(LaneError, match="it was deleted while it was written to"):
        handler.close()


def test_one_that_takes_a_dead_process_s_place_goes_on_from_its_state(tmp_path: Path) -> None:
    """It has a state, and no start."""
    first = MetricsLog(tmp_path / "metrics.jsonl")
    first.on_train_start()
    log_batches(first, range(1, 3))
    state = first.state_dict()
    log_batches(first, range(3, 5))
    second = MetricsLog(tmp_path / "metrics.jsonl")
    second.load_state_dict(state)
    log_batches(second, range(3, 4))
    second.on_train_end()
    assert batches(tmp_path / "metrics.jsonl") == [1, 2, 3]
    first.on_train_end()
