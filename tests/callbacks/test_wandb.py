"""WandB: what wandb has written in the files of an offline run, read back record by record."""

from __future__ import annotations

import logging
import os
import pickle
import re
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("wandb")

from async_trainer import CallbacksHandler, TrainerState, inline
from async_trainer.callbacks.wandb import WandB
from async_trainer.callbacks.wandb_files import read_records, read_rows
from async_trainer.errors import ConfigurationError, LaneError
from async_trainer.testing import check_callback, play
from tests.callbacks.servers import Answer, serving
from tests.callbacks.wandb_backend import KEY, WandBBackend

QUIET = {"x_disable_stats": True, "x_disable_meta": True, "disable_git": True, "save_code": False}


@pytest.fixture(autouse=True)
def isolated(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WANDB_CONFIG_DIR", "WANDB_CACHE_DIR", "WANDB_DATA_DIR"):
        monkeypatch.setenv(name, str(tmp_path_factory.mktemp(name.lower())))
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    monkeypatch.delenv("WANDB_API_KEY", raising=False)


def make(folder: Path, **arguments: Any) -> WandB:
    return WandB("tests", **{"mode": "offline", "folder": folder, "settings": QUIET, **arguments})


def rows(folder: Path, run_id: str | None) -> list[dict[str, Any]]:
    """Of a run's history, without what wandb adds and that differs from time to time."""
    assert run_id is not None
    wanted = ("epoch", "step", "_step", "loss", "lr")
    found = read_rows(folder, run_id)
    return [{key: row[key] for key in row if key in wanted or key.startswith("validation/")} for row in found]


def at(number: int) -> TrainerState:
    return TrainerState(current_epoch=1, current_train_batch=number, optim_step=number - 1)


def log_batches(log: WandB, numbers: range) -> None:
    for number in numbers:
        log.on_backward_step_start(state=at(number), loss=torch.tensor(float(number)))


def losses(folder: Path, run_id: str | None) -> list[float]:
    return [row["loss"] for row in rows(folder, run_id)]


def test_the_offline_files_have_a_row_for_each_batch_and_each_validation(tmp_path: Path) -> None:
    log = make(tmp_path / "logs", config={"seed": 3}, name="first")
    play(log, epochs=2, batches=2, directory=tmp_path).raise_for_errors()
    found = rows(tmp_path / "logs", log.run_id)
    assert [row["_step"] for row in found] == [0, 1, 2, 3, 4, 5]
    assert [(row["epoch"], row["step"]) for row in found] == [(1, 1), (1, 2), (1, 2), (2, 3), (2, 4), (2, 4)]
    assert [set(row) - {"_step", "epoch", "step"} for row in found[:3]] == [{"loss", "lr"}] * 2 + [{"validation/loss"}]
    (path,) = tmp_path.glob("logs/wandb/offline-run-*/*.wandb")
    records = [record for record, _ in read_records(path)]
    (run,) = [record.run for record in records if record.HasField("run")]
    config = {one.key: one.value_json for one in run.config.update}
    assert (run.project, run.display_name, config["seed"]) == ("tests", "first", "3")
    assert '"num_epochs":2' in config["optimization"].replace(" ", "")
    (end,) = [record.exit for record in records if record.HasField("exit")]
    assert end.exit_code == 0


@pytest.mark.slow
def test_it_does_the_same_inline_and_in_the_background_and_after_a_resume() -> None:
    def read(directory: Path) -> Mapping[str, Any]:
        return {"rows": rows(directory, "abc")}

    check_callback(lambda directory: make(directory, run_id="abc"), read=read)


@pytest.mark.parametrize("first", ["state", "event"])
def test_a_resume_goes_on_in_the_same_run_and_doubles_nothing(tmp_path: Path, first: str) -> None:
    before = make(tmp_path)
    before.on_train_start()
    log_batches(before, range(1, 4))
    state = pickle.loads(pickle.dumps(before.state_dict()))
    log_batches(before, range(4, 7))
    before.on_exception(exception=KeyboardInterrupt())

    after = make(tmp_path)
    steps: list[Callable[[], None]] = [lambda: after.load_state_dict(state), after.on_resume]
    for step in steps if first == "state" else reversed(steps):
        step()
    log_batches(after, range(4, 9))
    after.on_train_end()
    assert after.run_id == before.run_id
    assert losses(tmp_path, after.run_id) == [float(n) for n in range(1, 9)]
    assert [row["_step"] for row in rows(tmp_path, after.run_id)] == [*range(8)]


def test_a_training_that_starts_is_another_run(tmp_path: Path) -> None:
    log, runs = make(tmp_path), set()
    for last in (2, 4):
        log.on_train_start()
        log_batches(log, range(1, last))
        log.on_train_end()
        runs.add((log.run_id, len(rows(tmp_path, log.run_id))))
    assert sorted(count for _, count in runs) == [1, 3]


def test_where_no_server_answers_the_run_is_written_offline_and_no_key_is_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    key = "0123456789abcdef0123456789abcdef01234567"
    monkeypatch.setenv("WANDB_API_KEY", key)
    monkeypatch.setattr("async_trainer.callbacks.wandb_run.INIT_SECONDS", 2.0)
    with serving(lambda *_: None) as server, caplog.at_level(logging.INFO):  # it hangs
        log = make(tmp_path, mode="online", settings={**QUIET, "base_url": server.url, "api_key": key})
        with CallbacksHandler([log]) as handler:
            handler.call_event("on_train_start", state=at(1))
            for number in range(1, 4):
                handler.call_event("on_backward_step_start", state=at(number), loss=torch.tensor(float(number)))
            handler.call_event("on_train_end", state=at(4))
        handler.close().raise_for_errors()
    assert losses(tmp_path, log.run_id) == [1.0, 2.0, 3.0]
    assert "is written offline" in caplog.text
    assert "once it can: wandb sync " in caplog.text
    for shown in (caplog.text, repr(log), repr(log.state_dict())):
        assert key not in shown


# ------------------------------------------------------------------------------- online, with a server that goes away


class Online:
    """A training that logs to a backend; without a ``url`` offline."""

    def __init__(self, folder: Path, url: str | None, begin: bool = True, **settings: Any) -> None:
        quick = {"x_file_stream_retry_wait_min_seconds": 0.1, "x_file_stream_retry_wait_max_seconds": 0.3}
        quick |= {"x_file_stream_timeout_seconds": 1.0, "x_graphql_timeout_seconds": 1.0}
        quick |= {"base_url": url, "api_key": KEY} if url is not None else {}
        self.log = make(folder, mode="offline" if url is None else "online", settings={**QUIET, **quick, **settings})
        self.handler = CallbacksHandler([self.log])
        if begin:
            self.handler.call_event("on_train_start", state=at(1))
            self.handler.flush(60)

    def batches(self, numbers: range) -> None:
        for number in numbers:
            self.handler.call_event("on_backward_step_start", state=at(number), loss=torch.tensor(float(number)))
        assert self.handler.flush(60).failed == 0

    def go_on(self, state: dict[str, Any], numbers: range) -> None:
        """A training that is resumed."""
        self.handler.load_state_dict(state)
        self.handler.call_event("on_resume", state=at(numbers.start))
        self.batches(numbers)

    def end(self) -> None:
        self.handler.call_event("on_train_end", state=at(9))
        self.handler.close()


OUTAGES: dict[str, Answer | None] = {"500": (500, {}, b"oops"), "429": (429, {}, b"slow down"), "hangs": None}


@pytest.mark.parametrize("outage", [pytest.param(one, marks=pytest.mark.slow) for one in OUTAGES])
def test_a_server_that_goes_away_in_the_middle_and_comes_back_has_all_rows_once(tmp_path: Path, outage: str) -> None:
    backend = WandBBackend()
    with serving(backend) as server:
        run = Online(tmp_path, server.url)
        backend.outage = lambda: OUTAGES[outage]
        run.batches(range(1, 8))
        assert backend.refused.wait(60)
        backend.outage = None
        run.end()
    assert backend.losses(run.log.run_id) == [float(n) for n in range(1, 8)]
    assert backend.exit_code(run.log.run_id) == 0


@pytest.mark.slow
def test_a_server_that_refuses_connections_in_the_middle_has_all_rows_when_it_is_back(tmp_path: Path) -> None:
    backend = WandBBackend()
    with serving(backend) as server:
        run = Online(tmp_path, server.url)
    run.batches(range(1, 8))
    with serving(backend, int(server.url.rpartition(":")[2])):
        run.end()
    assert backend.losses(run.log.run_id) == [float(n) for n in range(1, 8)]


KILLED = """
import os, pathlib, pickle, signal, sys
from tests.callbacks.test_wandb import Online

folder, url = pathlib.Path(sys.argv[1]), sys.argv[2] or None
run = Online(folder, url, x_transaction_log_flush_interval=float(sys.argv[3]))
run.batches(range(1, 21))
state = run.handler.state_dict()
(folder / "state").write_bytes(pickle.dumps(state))
run.batches(range(21, 23))
os.kill(os.getpid(), signal.SIGKILL)
"""


# 0: as a wandb without that setting; what it keeps is in the state
@pytest.mark.slow
@pytest.mark.parametrize(("mode", "flushes"), [("offline", 0), ("online", 0.1)])
def test_a_run_that_was_killed_and_is_resumed_has_all_rows_once(
    tmp_path: Path, mode: str, flushes: float, caplog: pytest.LogCaptureFixture
) -> None:
    """wandb's process dies with the training's, and what it has not written or sent by then dies with it."""
    backend = WandBBackend()
    with serving(backend) as server:
        url = None if mode == "offline" else server.url
        command = [sys.executable, "-c", KILLED, str(tmp_path), url or "", str(flushes)]
        alone = {
            name: value for name, value in os.environ.items() if name != "WANDB_SERVICE"
        }  # else we share a process
        killed = subprocess.run(command, capture_output=True, text=True, timeout=120, env=alone)
        assert killed.returncode == -signal.SIGKILL, killed.stderr
        state = pickle.loads((tmp_path / "state").read_bytes())
        assert len(state["wandb"]["pending"]) == (0 if flushes else 20)
        run = Online(tmp_path, url, begin=False)
        run.go_on(state, range(21, 25))
        run.end()
        wanted = [float(number) for number in range(1, 25)]
        assert (losses(tmp_path, run.log.run_id) if url is None else backend.losses(run.log.run_id)) == wanted
        assert (len(backend.runs), backend.doubled) == (0 if url is None else 1, 0)
    assert "are lost" not in caplog.text


@pytest.mark.slow
def test_a_resume_of_a_run_that_the_server_has_more_of_doubles_nothing(tmp_path: Path) -> None:
    backend = WandBBackend()
    with serving(backend) as server:
        first = Online(tmp_path / "first", server.url)
        first.batches(range(1, 4))
        state = first.handler.state_dict()
        first.batches(range(4, 7))
        first.end()
        again = Online(tmp_path / "again", server.url, begin=False)  # another machine: no files are there
        again.go_on(pickle.loads(pickle.dumps(state)), range(4, 9))
        assert again.log._run is not None
        assert again.log._run._given == 2  # else wandb would warn of each
        again.end()
    assert backend.losses(again.log.run_id) == [float(number) for number in range(1, 9)]
    assert (backend.runs, backend.doubled) == ([first.log.run_id], 0)


def test_rows_of_the_state_that_are_nowhere_are_told_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    before = make(tmp_path / "before")
    before.on_train_start()
    log_batches(before, range(1, 4))
    state = before.state_dict()
    before.on_train_end()
    after = make(tmp_path / "after")
    after.load_state_dict(state)
    after.on_resume()
    log_batches(after, range(4, 6))
    after.on_train_end()
    assert f"3 of 3 rows of run {before.run_id} are lost" in caplog.text
    assert [row["_step"] for row in rows(tmp_path / "after", after.run_id)] == [3, 4]


def test_a_resume_that_nothing_follows_but_the_end_has_what_was_not_written(tmp_path: Path) -> None:
    log = make(tmp_path)
    log.load_state_dict({"rows": 2, "run_id": "abc", "pending": [(0, {"loss": 1.0}), (1, {"loss": 2.0})]})
    log.on_train_end()
    assert losses(tmp_path, "abc") == [1.0, 2.0]
    log.on_exception(exception=ValueError())  # of a validation after it
    assert len([*tmp_path.glob("wandb/offline-run-*")]) == 1


def script(way: str, folder: Path, url: str, seconds: float) -> subprocess.CompletedProcess[str]:
    """Logs online, and ends so, having waited ``seconds`` for the server."""
    lines = f"""
import sys
from pathlib import Path
import async_trainer.callbacks.wandb_run
from tests.callbacks.test_wandb import Online
async_trainer.callbacks.wandb_run.FINISH_SECONDS = {seconds}
run = Online(Path(sys.argv[1]), sys.argv[2])
run.batches(range(1, 8))
{way}
"""
    command = [sys.executable, "-c", lines, str(folder), url]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


@pytest.mark.slow
@pytest.mark.parametrize("way", ["run.end()", "sys.exit(3)", "pass"])
def test_a_script_with_an_online_run_ends_as_it_should(tmp_path: Path, way: str) -> None:
    backend = WandBBackend()
    with serving(backend) as server:
        ended = script(way, tmp_path, server.url, 30.0)
    assert ended.returncode == (3 if "exit" in way else 0), ended.stderr
    if way == "run.end()":
        assert [backend.losses(one) for one in backend.runs] == [[float(n) for n in range(1, 8)]]


@pytest.mark.slow
@pytest.mark.parametrize("way", ["run.end()", "sys.exit(3)"])
def test_a_script_whose_server_hangs_ends_too(tmp_path: Path, way: str) -> None:
    backend = WandBBackend()

    def answer(method: str, path: str, headers: Mapping[str, str], body: bytes) -> Answer | None:
        return None if path.endswith("/file_stream") else backend(method, path, headers, body)

    with serving(answer) as server:
        ended = script(way, tmp_path, server.url, 1.0)
    assert ended.returncode == (3 if "exit" in way else 1), ended.stderr
    if way == "run.end()":
        assert "is not all on the server" in ended.stderr
    (folder,) = {path.parent for path in tmp_path.glob("wandb/run-*/*.wandb")}
    deadline = time.monotonic() + 60  # wandb's own process outlives the script, until it has written its file
    while (found := losses(tmp_path, folder.name.rpartition("-")[2])) != [float(n) for n in range(1, 8)]:
        assert time.monotonic() < deadline, found
        time.sleep(0.05)


@pytest.mark.parametrize("outage", [pytest.param(one, marks=[pytest.mark.slow] * (one == "500")) for one in OUTAGES])
def test_what_a_server_that_stays_away_has_not_is_told_at_the_end_and_is_in_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, outage: str
) -> None:
    monkeypatch.setattr("async_trainer.callbacks.wandb_run.FINISH_SECONDS", 1.0)
    backend = WandBBackend()
    with serving(backend) as server:
        run = Online(tmp_path, server.url)
        backend.outage = lambda: OUTAGES[outage]
        run.batches(range(1, 8))
        with pytest.raises(LaneError, match=r"is not all on the server .*for: wandb sync") as raised:
            run.end()
    lane = run.handler.stats().lanes["wandb"]
    assert (lane.delivered, lane.failed, lane.lost) == (8, 1, 0)
    assert backend.losses(run.log.run_id) == []
    assert losses(tmp_path, run.log.run_id) == [float(n) for n in range(1, 8)]
    assert Path(str(raised.value).rpartition("--include-online ")[2]).is_dir()


@pytest.mark.slow
def test_a_token_that_expires_is_told_at_the_end_and_is_in_no_text(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    backend = WandBBackend()
    with serving(backend) as server, caplog.at_level(logging.DEBUG):
        run = Online(tmp_path, server.url)
        backend.outage = lambda: (401, {}, b"expired")
        run.batches(range(1, 8))
        assert backend.refused.wait(60)
        backend.outage = None  # a new one would be taken, but wandb has given up
        with pytest.raises(LaneError, match=r"is not all on the server .*401 Unauthorized.*for: wandb sync") as raised:
            run.end()
    assert losses(tmp_path, run.log.run_id) == [float(n) for n in range(1, 8)]
    told = "".join(traceback.format_exception(raised.value))
    for shown in (told, caplog.text, repr(run.log), repr(run.log.state_dict())):
        assert KEY not in shown


def test_with_a_token_that_has_expired_before_the_run_is_written_offline(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    backend = WandBBackend()
    backend.outage = lambda: (401, {}, b"expired")
    with serving(backend) as server, caplog.at_level(logging.INFO):
        run = Online(tmp_path, server.url)
        run.batches(range(1, 4))
        run.end()
    assert losses(tmp_path, run.log.run_id) == [1.0, 2.0, 3.0]
    assert "is written offline" in caplog.text
    assert KEY not in caplog.text


@pytest.mark.slow
def test_what_was_told_to_be_synced_can_be_synced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("async_trainer.callbacks.wandb_run.FINISH_SECONDS", 1.0)
    backend = WandBBackend()
    with serving(backend) as server:
        run = Online(tmp_path, server.url)
        backend.outage = lambda: (500, {}, b"oops")
        run.batches(range(1, 8))
        with pytest.raises(LaneError) as raised:
            run.end()
        backend.outage = None
        printed = sync(server.url, "--include-online", str(raised.value).rpartition("--include-online ")[2])
    assert backend.losses(run.log.run_id) == [float(n) for n in range(1, 8)], printed


@pytest.mark.slow
def test_an_offline_run_that_the_log_says_how_to_sync_can_be_synced(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    backend = WandBBackend()
    backend.outage = lambda: (401, {}, b"expired")
    with serving(backend) as server, caplog.at_level(logging.WARNING):
        run = Online(tmp_path, server.url)
        run.batches(range(1, 8))
        run.end()
        backend.outage = None
        folders = re.search(r"once it can: wandb sync (\S+)", caplog.text)
        assert folders is not None
        printed = sync(server.url, *map(str, Path("/").glob(folders[1].lstrip("/"))))
    assert backend.losses(run.log.run_id) == [float(n) for n in range(1, 8)], printed


def sync(url: str, *arguments: str) -> str:
    """What ``wandb sync`` prints."""
    environment = {**os.environ, "WANDB_BASE_URL": url, "WANDB_API_KEY": KEY}
    command = [sys.executable, "-m", "wandb", "sync", *arguments]
    where = Path(arguments[-1]).parent  # its own logs go to where it runs
    ended = subprocess.run(command, env=environment, cwd=where, capture_output=True, text=True, timeout=120)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout + ended.stderr


def test_a_name_that_is_no_text_is_logged_escaped(tmp_path: Path) -> None:
    log = make(tmp_path)
    log.on_train_start()
    log.on_validation_end(state=at(1), metrics={"file-\udc80": 0.5, "loss": 0.25})
    log.on_train_end()
    (row,) = rows(tmp_path, log.run_id)
    assert (row["validation/file-\\udc80"], row["validation/loss"]) == (0.5, 0.25)


def test_a_row_that_is_not_whole_ends_what_is_read(tmp_path: Path) -> None:
    log = make(tmp_path)
    log.on_train_start()
    log_batches(log, range(1, 300))  # some blocks
    log.on_train_end()
    assert losses(tmp_path, log.run_id) == [float(n) for n in range(1, 300)]
    (path,) = tmp_path.glob("wandb/offline-run-*/*.wandb")
    path.write_bytes(path.read_bytes()[:-2000])
    found = losses(tmp_path, log.run_id)
    assert 0 < len(found) < 299
    assert found == [float(n) for n in range(1, len(found) + 1)]
    path.write_bytes(b"nothing of wandb's")
    assert losses(tmp_path, log.run_id) == []


def test_before_a_start_it_says_what_comes_first(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="on_train_start or on_resume comes first"):
        log_batches(make(tmp_path), range(1, 2))
    handler = CallbacksHandler([inline(WandB("p"))])
    with pytest.raises(ConfigurationError, match="give a folder="):
        handler.call_event("on_train_start", state=at(1), maps=tmp_path)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"project": ""}, "WandB: project must be a name"),
        ({"project": "p", "mode": "ofline"}, "did you mean 'offline'"),
        ({"project": "p", "config": 3}, "config must be a dict"),
        ({"project": "p", "every": 0}, "WandB: every must be"),
        ({"project": "p", "foldr": "x"}, "did you mean 'folder'"),
    ],
)
def test_a_bad_argument_is_refused_by_name(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        WandB(**arguments)
