"""TensorBoard: what its own reader finds, after a training, a resume, a kill, a full disk."""

from __future__ import annotations

import errno
import logging
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("tensorboard")

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from async_trainer import CallbacksHandler, TrainerState, background, inline
from async_trainer.callbacks.event_files import EventFiles, our_files
from async_trainer.callbacks.tensorboard import TensorBoard
from async_trainer.errors import ConfigurationError, LaneError
from async_trainer.routes import EventInfo
from async_trainer.testing import check_callback, play
from async_trainer.train.maps import Maps
from tests.callbacks.loops import sgd


def points(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """By tag: step and value, as TensorBoard reads them."""
    reader = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    reader.Reload()
    tags = reader.Tags()["scalars"]
    return {tag: [(one.step, round(one.value, 6)) for one in reader.Scalars(tag)] for tag in tags}


def raw_steps(folder: Path) -> list[int]:
    """The steps of all records that are in the files, whatever a reader would leave out."""
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

    events = [event for path in our_files(folder) for event in EventFileLoader(str(path)).Load()]
    return [event.step for event in events if event.HasField("summary")]


def at(number: int, **fields: Any) -> TrainerState:
    return TrainerState(current_epoch=1, current_train_batch=number, optim_step=number - 1, **fields)


def log_batches(log: TensorBoard, numbers: range) -> None:
    for number in numbers:
        log.on_backward_step_start(state=at(number), loss=torch.tensor(float(number)), optimizers={"sgd": sgd()})


@pytest.mark.slow
def test_it_does_the_same_inline_and_in_the_background_and_after_a_resume() -> None:
    check_callback(lambda directory: TensorBoard(directory), read=points)


def test_tensorboard_reads_the_loss_of_each_batch_and_the_metrics_of_each_validation(tmp_path: Path) -> None:
    report = play(TensorBoard(), epochs=2, batches=3, directory=tmp_path)
    report.raise_for_errors()
    found = points(Maps(tmp_path).split(0).logs / "tensorboard")
    assert set(found) == {"loss", "lr", "validation/loss"}
    assert [step for step, _ in found["loss"]] == [1, 2, 3, 4, 5, 6]
    assert found["lr"] == [(step, 0.1) for step in range(1, 7)]
    assert [step for step, _ in found["validation/loss"]] == [3, 6]


def test_a_name_that_is_no_text_is_written_escaped(tmp_path: Path) -> None:
    log = TensorBoard(tmp_path)
    log.on_train_start()
    log.on_validation_end(state=at(2), metrics={"file-\udc80": 0.5, "loss": 0.25})
    log.on_train_end()
    assert points(tmp_path) == {"validation/file-\\udc80": [(1, 0.5)], "validation/loss": [(1, 0.25)]}


def test_only_each_nth_batch_is_written(tmp_path: Path) -> None:
    play(TensorBoard(tmp_path / "board", every=2), epochs=2, batches=3, directory=tmp_path).raise_for_errors()
    found = points(tmp_path / "board")
    assert [step for step, _ in found["loss"]] == [2, 4, 6]
    assert [step for step, _ in found["validation/loss"]] == [3, 6]


@pytest.mark.parametrize("first", ["state", "event"])
def test_a_resume_in_the_middle_of_an_accumulation_doubles_nothing_and_loses_nothing(
    tmp_path: Path, first: str
) -> None:
    before = TensorBoard(tmp_path)
    before.on_train_start()
    log_batches(before, range(1, 4))
    before.on_backward_step_start(state=at(4), loss=1.0)
    state = before.state_dict()
    before.on_backward_step_start(state=at(4), loss=2.0)  # of the same optimization step
    log_batches(before, range(5, 9))
    with before._files.path.open("ab") as file:  # type: ignore[union-attr]
        file.write(b"torn")  # and then the process is killed

    after = TensorBoard(tmp_path)
    steps: list[Callable[[], None]] = [lambda: after.load_state_dict(state), after.on_resume]
    for step in steps if first == "state" else reversed(steps):
        step()
    assert raw_steps(tmp_path) == [1, 2, 3, 4]
    after.on_backward_step_start(state=at(4), loss=3.0)
    log_batches(after, range(5, 7))
    after.on_train_end()
    expected = [(1, 1.0), (2, 2.0), (3, 3.0), (4, 1.0), (4, 3.0), (5, 5.0), (6, 6.0)]
    assert points(tmp_path)["loss"] == expected
    assert after.state_dict() == {"records": 7, "step": 6}

    third = TensorBoard(tmp_path)  # resumed once more, from the first state: two files are cut
    third.load_state_dict(state)
    third.on_resume()
    third.on_train_end()
    assert raw_steps(tmp_path) == [1, 2, 3, 4]


def test_a_tensorboard_that_reads_on_forgets_what_came_after_the_state(tmp_path: Path) -> None:
    log = TensorBoard(tmp_path)
    log.on_train_start()
    log_batches(log, range(1, 4))
    state = log.state_dict()
    log_batches(log, range(4, 9))
    reader = EventAccumulator(str(tmp_path), size_guidance={"scalars": 0})
    reader.Reload()
    assert [one.step for one in reader.Scalars("loss")] == [1, 2, 3, 4, 5, 6, 7, 8]
    after = TensorBoard(tmp_path)
    after.load_state_dict(state)
    after.on_resume()
    log_batches(after, range(4, 6))
    reader.Reload()
    assert [one.step for one in reader.Scalars("loss")] == [1, 2, 3, 4, 5]
    after.on_train_end()
    log.on_train_end()


def test_a_training_that_starts_replaces_our_files_and_no_others(tmp_path: Path) -> None:
    foreign = tmp_path / "events.out.tfevents.1700000000.host.1.0"
    foreign.write_bytes(b"")
    for last in (5, 3):
        log = TensorBoard(tmp_path)
        log.on_train_start()
        log_batches(log, range(1, last))
        log.on_train_end()
    assert raw_steps(tmp_path) == [1, 2]
    assert foreign.exists()


def test_a_resume_without_a_state_keeps_all_whole_points(tmp_path: Path) -> None:
    log = TensorBoard(tmp_path)
    log.on_train_start()
    log_batches(log, range(1, 4))
    with log._files.path.open("ab") as file:  # type: ignore[union-attr]
        file.write(b"\x40" + b"\0" * 20)
    after = TensorBoard(tmp_path)
    after.on_resume()
    log_batches(after, range(4, 5))
    after.on_train_end()
    assert raw_steps(tmp_path) == [1, 2, 3, 4]
    log.on_train_end()


def test_files_that_were_lost_are_told_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    log = TensorBoard(tmp_path)
    log.load_state_dict({"records": 9, "step": 9})
    with caplog.at_level(logging.WARNING, "async_trainer"):
        log.on_resume()
    assert "9 of 9 points are lost" in caplog.text
    log.on_train_end()


def test_a_retried_event_is_written_once(tmp_path: Path) -> None:
    log = TensorBoard(tmp_path)
    log.on_train_start()
    for number, attempt in ((1, 1), (1, 2), (2, 1), (3, 1), (3, 2), (3, 3), (4, 1)):
        info = EventInfo("on_backward_step_start", number, attempt)
        log.on_backward_step_start(state=at(number), loss=0.5, event=info)
    log.on_train_end()
    assert raw_steps(tmp_path) == [1, 2, 3, 4]
    assert log.state_dict() == {"records": 4, "step": 4}


def test_one_that_takes_a_dead_process_s_place_goes_on_from_its_state(tmp_path: Path) -> None:
    """It has a state, and no start."""
    first = TensorBoard(tmp_path)
    first.on_train_start()
    log_batches(first, range(1, 3))
    state = first.state_dict()
    log_batches(first, range(3, 5))
    second = TensorBoard(tmp_path)
    second.load_state_dict(state)
    log_batches(second, range(3, 4))
    second.on_train_end()
    assert raw_steps(tmp_path) == [1, 2, 3]
    first.on_train_end()


@pytest.mark.slow
def test_in_a_process_that_is_killed_each_point_is_there_once(tmp_path: Path) -> None:
    class Deadly(TensorBoard):
        def _begin(self, maps: Any, state: TrainerState, event: Any) -> None:
            if state.current_train_batch == 5 and not event.redelivered:
                os.kill(os.getpid(), signal.SIGKILL)
            super()._begin(maps, state, event)

    with CallbacksHandler([background(Deadly(tmp_path), placement="process")]) as handler:
        handler.call_event("on_train_start")
        for number in range(1, 4):
            handler.call_event("on_backward_step_start", state=at(number), loss=torch.tensor(1.0))
        handler.flush()  # it has sent its state
        for number in range(4, 9):
            handler.call_event("on_backward_step_start", state=at(number), loss=torch.tensor(1.0))
        handler.call_event("on_train_end")
    report = handler.close()
    report.raise_for_errors()
    assert raw_steps(tmp_path) == [1, 2, 3, 4, 5, 6, 7, 8]


def test_after_kill_9_all_points_are_there(tmp_path: Path) -> None:
    script = """
        import os, signal, sys
        import torch
        from async_trainer import CallbacksHandler, TrainerState, inline
        from async_trainer.callbacks import TensorBoard

        handler = CallbacksHandler([inline(TensorBoard(sys.argv[1]))])
        handler.call_event("on_train_start")
        for number in range(1, 101):
            state = TrainerState(current_epoch=1, current_train_batch=number, optim_step=number - 1)
            handler.call_event("on_backward_step_start", state=state, loss=torch.tensor(1.0))
        os.kill(os.getpid(), signal.SIGKILL)
    """
    command = [sys.executable, "-c", textwrap.dedent(script), str(tmp_path)]
    assert subprocess.run(command, check=False, timeout=120).returncode == -signal.SIGKILL
    assert [step for step, _ in points(tmp_path)["loss"]] == list(range(1, 101))


def test_a_disk_that_is_full_for_a_while_costs_the_points_of_that_while_and_they_are_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = os.write

    def full(file: int, data: Any) -> int:
        write(file, data[: len(data) // 2])
        raise OSError(errno.ENOSPC, "No space left on device")

    handler = CallbacksHandler([background(TensorBoard(tmp_path), retries=0)])
    handler.call_event("on_train_start")
    for number in range(1, 10):
        if number == 4:
            handler.flush()
            monkeypatch.setattr("async_trainer.files.appended.os.write", full)
        if number == 7:
            handler.flush()
            monkeypatch.setattr("async_trainer.files.appended.os.write", write)
        handler.call_event("on_backward_step_start", state=at(number), loss=torch.tensor(1.0))
    handler.call_event("on_train_end")
    with pytest.raises(LaneError, match="No space left on device"):
        handler.close()
    lane = handler.stats().lanes["tensor_board"]
    assert (lane.delivered, lane.failed) == (8, 3)
    assert [step for step, _ in points(tmp_path)["loss"]] == [1, 2, 3, 7, 8, 9]


def test_while_retries_last_a_full_disk_costs_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write, failures = os.write, iter(range(3))

    def full(file: int, data: Any) -> int:
        if next(failures, None) is not None:
            write(file, data[: len(data) // 2])
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(file, data)

    with CallbacksHandler([background(TensorBoard(tmp_path), retries=5, backoff=0)]) as handler:
        handler.call_event("on_train_start")
        handler.call_event("on_backward_step_start", state=at(1), loss=torch.tensor(1.0))
        handler.flush()
        monkeypatch.setattr("async_trainer.files.appended.os.write", full)
        for number in range(2, 5):
            handler.call_event("on_backward_step_start", state=at(number), loss=torch.tensor(1.0))
        handler.call_event("on_train_end")
    assert [step for step, _ in points(tmp_path)["loss"]] == [1, 2, 3, 4]


def test_without_a_folder_and_without_maps_it_says_what_to_give(tmp_path: Path) -> None:
    handler = CallbacksHandler([inline(TensorBoard())])
    with pytest.raises(ConfigurationError, match="give a folder="):
        handler.call_event("on_train_start", state=at(1), maps=tmp_path)
    with pytest.raises(RuntimeError, match="on_train_start or on_resume comes first"):
        log_batches(TensorBoard(tmp_path), range(1, 2))


def test_what_it_is_shows_in_its_repr(tmp_path: Path) -> None:
    log = TensorBoard(tmp_path)
    assert repr(log) == f"<TensorBoard: {tmp_path}>"
    files = EventFiles(tmp_path, {})
    assert repr(files).startswith(f"<EventFiles: {tmp_path}/events.out.tfevents.")
    files.close()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"every": 0}, "TensorBoard: every must be"), ({"folder": 3}, "folder must be a path"), ({"evry": 2}, "did you")],
)
def test_a_bad_argument_is_refused_by_name(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        TensorBoard(**arguments)
