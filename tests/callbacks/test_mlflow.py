"""MLflow: against MLflow's own server, which now and then is away."""

from __future__ import annotations

import contextlib
import logging
import pickle
import re
import tempfile
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("mlflow")
pytest.importorskip("sqlalchemy")

from mlflow import MlflowClient

from async_trainer import CallbacksHandler, OptimizationConfig, TrainerState, background, inline
from async_trainer.callbacks import ModelCheckpoint
from async_trainer.callbacks.mlflow import MLflow
from async_trainer.callbacks.mlflow_run import MLflowRun, Point
from async_trainer.callbacks.outbox import Outbox
from async_trainer.errors import ConfigurationError, LaneError
from async_trainer.files.weights import load_weights
from async_trainer.testing import check_callback, play
from async_trainer.train.maps import Maps
from tests.callbacks.loops import Metrics
from tests.callbacks.servers import Answer, forward, free_port, mlflow_server, serving
from tests.callbacks.small_disk import small_disk


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a server with a database."""
    with mlflow_server(tmp_path_factory.mktemp("mlflow")) as url:
        yield url


@pytest.fixture(autouse=True)
def no_telemetry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")


def history(url: str, run_id: str | None) -> dict[str, list[tuple[int, float]]]:
    """By metric: step and value, in order."""
    client = MlflowClient(url)
    assert run_id is not None
    found = {key: client.get_metric_history(run_id, key) for key in client.get_run(run_id).data.metrics}
    return {key: [(one.step, round(one.value, 6)) for one in ones] for key, ones in found.items()}


def at(number: int) -> TrainerState:
    return TrainerState(called="train", current_epoch=1, current_train_batch=number, optim_step=number - 1, split_idx=0)


def log_batches(log: MLflow, numbers: range, loss: float | None = None) -> None:
    for number in numbers:
        log.on_backward_step_start(state=at(number), loss=torch.tensor(float(number) if loss is None else loss))


# --------------------------------------------------------------------------------------------------- what is logged


def test_metrics_parameters_and_files_are_on_the_server_at_the_end(real: str, tmp_path: Path) -> None:
    log = MLflow(real, experiment="whole", run_name="first", params={"seed": 3}, artifacts=["checkpoints/*"])
    callbacks = [log, ModelCheckpoint(last=True)]
    play(callbacks, epochs=2, batches=3, directory=tmp_path).raise_for_errors()
    client = MlflowClient(real)
    (run,) = client.search_runs([client.get_experiment_by_name("whole").experiment_id])  # type: ignore[union-attr]
    assert (run.info.run_id, run.info.status, run.info.run_name) == (log.run_id, "FINISHED", "first")
    found = history(real, log.run_id)
    assert set(found) == {"loss", "lr", "validation/loss"}
    assert [step for step, _ in found["loss"]] == [1, 2, 3, 4, 5, 6]
    assert [step for step, _ in found["validation/loss"]] == [3, 6]
    assert run.data.params["seed"] == "3"
    assert run.data.params["optimization/num_epochs"] == "2"
    assert run.data.params["computational/device"] == "cpu"
    names = {one.path for one in client.list_artifacts(run.info.run_id, "checkpoints")}
    assert names == {"checkpoints/last.pt"}
    downloaded = Path(client.download_artifacts(run.info.run_id, "checkpoints/last.pt", str(tmp_path)))
    assert downloaded.read_bytes() == (Maps(tmp_path).split(0).checkpoints / "last.pt").read_bytes()


def test_a_pattern_that_no_file_matches_is_warned_of(
    real: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    log = MLflow(real, artifacts=["checkpoints/*", "chekpoints/*"])
    play([log, ModelCheckpoint(last=True)], epochs=1, batches=2, directory=tmp_path).raise_for_errors()
    assert "matches artifacts=['chekpoints/*']" in caplog.text


def test_names_that_mlflow_refuses_are_logged_as_it_takes_them_and_told_of_once(
    real: str, caplog: pytest.LogCaptureFixture
) -> None:
    """One such name has it refuse the whole batch of values."""
    log = MLflow(real, params={"lr@start": 0.1, "a//b": 1})
    log.on_train_start()
    names = ("f1@0.5", "recall", "a/../b", "/", "ü: \udc80", "x" * 300)
    for step in (2, 3):
        log.on_validation_end(state=at(step), metrics=dict.fromkeys(names, 0.5))
    log.on_train_end()
    taken = ("f1_0.5", "recall", "a/b", "ü: _", "x" * 239)
    assert history(real, log.run_id) == {
        **{f"validation/{name}": [(1, 0.5), (2, 0.5)] for name in taken},
        "validation": [(1, 0.5), (2, 0.5)],
    }
    assert {"lr_start", "a/b"} <= set(MlflowClient(real).get_run(log.run_id).data.params)  # type: ignore[arg-type]
    assert caplog.text.count("'validation/f1@0.5' is logged as 'validation/f1_0.5'") == 1


def test_names_that_are_one_when_mlflow_takes_them_are_logged_as_two_before_and_after_a_resume(
    real: str, caplog: pytest.LogCaptureFixture
) -> None:
    names = ("f1@0.5", "f1_0.5", "f1#0.5", "f1\udc800.5")  # one of a file whose name is no text, say
    values = dict(zip(names, (1.0, 2.0, 3.0, 4.0), strict=True))
    log = MLflow(real)
    log.on_train_start()
    log.on_validation_end(state=at(2), metrics=values)
    again = MLflow(real)
    again.load_state_dict(pickle.loads(pickle.dumps(log.state_dict())))
    again.on_validation_end(state=at(3), metrics=dict(reversed(values.items())))
    again.on_train_end()
    found = history(real, log.run_id)
    assert sorted(found.values()) == [[(1, value), (2, value)] for value in (1.0, 2.0, 3.0, 4.0)]
    assert found["validation/f1_0.5"] == [(1, 1.0), (2, 1.0)]
    assert caplog.text.count("as another one is 'validation/f1_0.5'") == 3


@pytest.mark.slow
def test_the_model_as_it_was_at_the_end_can_be_loaded_from_the_server(real: str, tmp_path: Path) -> None:
    import mlflow.pytorch

    log = MLflow(real, log_model=True)
    play([log, ModelCheckpoint(last=True)], epochs=1, directory=tmp_path).raise_for_errors()
    assert log.run_id is not None
    model = mlflow.pytorch.load_model(MlflowClient(real).download_artifacts(log.run_id, "model", str(tmp_path)))
    weights, _ = load_weights(Maps(tmp_path).split(0).checkpoints / "last.pt")
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())


@pytest.mark.slow
def test_a_model_that_finds_no_room_on_its_way_is_told_with_its_place_and_is_there_when_there_is_room(
    real: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log, state = MLflow(real, log_model=True), at(1)
    with small_disk(tmp_path / "disk") as disk:
        monkeypatch.setattr(tempfile, "tempdir", str(disk.path))
        disk.fill()
        log.on_train_start()
        log_batches(log, range(1, 4))
        with pytest.raises(OSError, match=f"No space left on device: '{disk.path}/"):
            log.on_train_end(state=state, model=torch.nn.Linear(100, 100))
        assert [path.name for path in disk.path.iterdir()] == ["ballast"]
        assert history(real, log.run_id)["loss"] == [(1, 1.0), (2, 2.0), (3, 3.0)]
        disk.clear()
        log.on_train_end(state=state, model=torch.nn.Linear(100, 100))  # a retry
    assert log.run_id is not None
    assert MlflowClient(real).list_artifacts(log.run_id, "model")
    assert MlflowClient(real).get_run(log.run_id).info.status == "FINISHED"


@pytest.mark.slow
def test_it_does_the_same_inline_and_in_the_background_and_after_a_resume(real: str) -> None:
    client = MlflowClient(real)

    def make(directory: Path) -> MLflow:
        if not (directory / "run").exists():
            (directory / "run").write_text(client.create_run("0").info.run_id)
        return MLflow(real, run_id=(directory / "run").read_text())

    def read(directory: Path) -> Mapping[str, Any]:
        return history(real, (directory / "run").read_text())

    check_callback(make, read=read)


@pytest.mark.parametrize(("error", "status"), [(ValueError(), "FAILED"), (KeyboardInterrupt(), "KILLED")])
def test_a_training_that_breaks_off_has_its_metrics_and_its_status(
    real: str, error: BaseException, status: str
) -> None:
    log = MLflow(real)
    log.on_exception(exception=error)  # of a validation, before any training: nothing
    assert log.run_id is None
    log.on_train_start()
    log_batches(log, range(1, 3))
    log.on_exception(exception=error)
    assert MlflowClient(real).get_run(log.run_id).info.status == status  # type: ignore[arg-type]
    assert history(real, log.run_id)["loss"] == [(1, 1.0), (2, 2.0)]


@pytest.mark.parametrize("first", ["state", "event"])
def test_a_resume_goes_on_in_the_same_run_and_doubles_nothing(real: str, first: str) -> None:
    before = MLflow(real, experiment=f"resumed-{first}")
    before.on_train_start()
    log_batches(before, range(1, 4))
    state = pickle.loads(pickle.dumps(before.state_dict()))
    log_batches(before, range(4, 7))
    before.on_validation_end(state=at(7), metrics={"loss": 0.5})  # a metric that the state has not heard of; it is sent
    assert len(history(real, before.run_id)["loss"]) == 6
    # killed

    after = MLflow(real, experiment=f"resumed-{first}")
    steps: list[Callable[[], None]] = [lambda: after.load_state_dict(state), after.on_resume]
    for step in steps if first == "state" else reversed(steps):
        step()
    log_batches(after, range(4, 7))
    after.on_validation_end(state=at(7), metrics={"loss": 0.5})
    log_batches(after, range(7, 9))
    after.on_train_end()
    assert after.run_id == before.run_id
    found = history(real, after.run_id)
    assert found == {"loss": [(n, float(n)) for n in range(1, 9)], "validation/loss": [(6, 0.5)]}
    client = MlflowClient(real)
    (run,) = client.search_runs([client.get_experiment_by_name(f"resumed-{first}").experiment_id])  # type: ignore[union-attr]
    assert (run.info.run_id, run.info.status) == (after.run_id, "FINISHED")


@pytest.mark.parametrize("old", [False, True])
def test_a_resume_of_a_long_run_asks_only_for_what_the_state_does_not_know(
    real: str, old: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server takes many seconds to tell a million values; old ones know no pages."""
    monkeypatch.setattr("async_trainer.callbacks.mlflow_requests.PAGE", 3)
    asked: list[str] = []

    def answer(method: str, path: str, headers: Mapping[str, str], body: bytes) -> Answer:
        if "get-history" in path:
            asked.append(path)
            path = re.sub(r"&(max_results|page_token)=[^&]*", "", path) if old else path
        return forward(real, method, path, headers, body)

    before = MLflow(real)
    before.on_train_start()
    log_batches(before, range(1, 11))
    state = pickle.loads(pickle.dumps(before.state_dict()))
    log_batches(before, range(11, 16))
    before.state_dict()  # they are sent; and then it is killed
    with serving(answer) as server:
        after = MLflow(server.url)
        after.load_state_dict(state)
        after.on_resume()
        log_batches(after, range(11, 18))
        after.on_train_end()
    assert history(real, after.run_id)["loss"] == [(n, float(n)) for n in range(1, 18)]
    assert len(asked) == (1 if old else 2)  # five are new to the state: two pages
    assert all("max_results=3" in path and "page_token=" in path for path in asked)


def test_a_training_that_begins_in_a_run_with_values_adds_to_them_and_so_does_its_resume(real: str) -> None:
    run_id = MlflowClient(real).create_run("0").info.run_id
    for first in (1, 101):
        log = MLflow(real, run_id=run_id)
        log.on_train_start()
        log_batches(log, range(first, first + 3))
        log.state_dict()
        state = pickle.loads(pickle.dumps(log.state_dict()))
        log_batches(log, range(first + 3, first + 5))
        log.state_dict()  # they are sent; and then it is killed
        again = MLflow(real, run_id=run_id)
        again.load_state_dict(state)
        again.on_resume()
        log_batches(again, range(first + 3, first + 6))
        again.on_train_end()
    wanted = [*range(1, 7), *range(101, 107)]
    assert history(real, run_id)["loss"] == [(n, float(n)) for n in wanted]


def test_what_the_server_had_not_taken_when_the_state_was_is_in_the_state(real: str) -> None:
    away = threading.Event()

    def answer(method: str, path: str, headers: Mapping[str, str], body: bytes) -> Answer:
        return (500, {}, b"") if away.is_set() else forward(real, method, path, headers, body)

    with serving(answer) as server:
        before = MLflow(server.url)
        before.on_train_start()
        log_batches(before, range(1, 3))
        before.state_dict()  # sends
        away.set()
        log_batches(before, range(3, 5))
        state = pickle.loads(pickle.dumps(before.state_dict()))
        assert [point[3] for point in state["pending"]] == [3, 4]
        after = MLflow(server.url)
        after.load_state_dict(state)
        away.clear()
        after.on_resume()
        log_batches(after, range(5, 6))
        after.on_train_end()
        assert history(real, after.run_id)["loss"] == [(n, float(n)) for n in range(1, 6)]


def test_a_resume_that_nothing_follows_but_the_end_sends_what_waited(real: str) -> None:
    """As of a callback whose process died after its last event."""
    before = MLflow(f"http://127.0.0.1:{free_port()}", params={"seed": 3})
    before.on_train_start(optimization=OptimizationConfig(num_epochs=7))
    log_batches(before, range(1, 4))
    after = MLflow(real)
    after.load_state_dict(pickle.loads(pickle.dumps(before.state_dict())))
    after.on_train_end()
    run = MlflowClient(real).get_run(after.run_id)  # type: ignore[arg-type]
    assert run.info.status == "FINISHED"
    assert run.data.params.items() >= {"seed": "3", "optimization/num_epochs": "7"}.items()
    assert history(real, after.run_id)["loss"] == [(n, float(n)) for n in range(1, 4)]
    after.on_exception(exception=ValueError())  # of a validation after it
    assert MlflowClient(real).get_run(after.run_id).info.status == "FINISHED"  # type: ignore[arg-type]


def test_a_resume_without_a_state_is_a_run_with_its_parameters(real: str) -> None:
    log = MLflow(real, params={"seed": 3})
    log.on_resume(optimization=OptimizationConfig(num_epochs=7))
    log_batches(log, range(4, 6))
    log.on_train_end()
    assert MlflowClient(real).get_run(log.run_id).data.params.items() >= {"optimization/num_epochs": "7"}.items()  # type: ignore[arg-type]
    assert history(real, log.run_id)["loss"] == [(4, 4.0), (5, 5.0)]


def test_only_the_answer_was_lost_and_nothing_is_doubled(real: str) -> None:
    lost = threading.Event()

    def answer(method: str, path: str, headers: Mapping[str, str], body: bytes) -> Answer:
        answered = forward(real, method, path, headers, body)
        return (502, {}, b"") if lost.is_set() and "log-batch" in path else answered

    with serving(answer) as server:
        log = MLflow(server.url)
        log.on_train_start()
        lost.set()
        log_batches(log, range(1, 4))
        log._settle()
        assert len(history(real, log.run_id)["loss"]) == 3
        lost.clear()
        log.on_train_end()
        assert history(real, log.run_id)["loss"] == [(1, 1.0), (2, 2.0), (3, 3.0)]


# ---------------------------------------------------------------------------------------------------------- outages


def _unauthorized(headers: Mapping[str, str]) -> Answer | None:
    return (401, {}, b"expired") if headers.get("Authorization") != "Bearer new-token-2" else None


OUTAGES: dict[str, Callable[[], Answer | None]] = {
    "500": lambda: (500, {}, b"oops"),
    "429": lambda: (429, {"Retry-After": "1"}, b"slow down"),
    "hangs": lambda: None,
    "garbage": lambda: (200, {"Content-Type": "application/json"}, b"<html>login</html>"),
}


@pytest.mark.parametrize("outage", OUTAGES)
def test_training_goes_on_while_the_server_is_away_and_all_is_there_when_it_is_back(
    real: str, outage: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("async_trainer.callbacks.mlflow_requests.REQUEST_SECONDS", 0.5)
    away = threading.Event()

    def answer(method: str, path: str, headers: Mapping[str, str], body: bytes) -> Answer | None:
        return OUTAGES[outage]() if away.is_set() else forward(real, method, path, headers, body)

    with serving(answer) as server:
        log = MLflow(server.url)
        away.set()
        with caplog.at_level(logging.WARNING, "async_trainer"), CallbacksHandler([background(log, backoff=0.2)]) as one:
            metrics = Metrics("loss")
            one.call_event("on_train_start", state=at(1), metrics=metrics)
            for number in range(1, 21):
                one.call_event("on_backward_step_start", state=at(number), loss=torch.tensor(float(number)))
            metrics.last = {"loss": 0.5}
            one.call_event("on_validation_end", state=at(21), metrics=metrics)
            server.wait_for_requests(1)
            assert one.flush().failed == 0
            away.clear()
            one.call_event("on_train_end", state=at(21))
        report = one.close()
        report.raise_for_errors()
        assert (report.failed, report.lost, report.dropped) == (0, 0, 0)
        assert history(real, log.run_id) == {
            "loss": [(n, float(n)) for n in range(1, 21)],
            "validation/loss": [(20, 0.5)],
        }
        away_records = [record for record in caplog.records if "later" in record.message]
        assert len(away_records) == 1


def test_a_server_that_is_not_there_at_all_costs_no_training_and_is_told_at_the_end(tmp_path: Path) -> None:
    with serving(lambda *_: (200, {}, b"{}")) as server:
        url = server.url  # refuses connections from now on
    log = MLflow(url)
    handler = CallbacksHandler([background(log, backoff=0.0, retries=2)])
    handler.call_event("on_train_start", state=at(1))
    for number in range(1, 6):
        handler.call_event("on_backward_step_start", state=at(number), loss=torch.tensor(1.0))
    handler.call_event("on_train_end", state=at(6))
    with pytest.raises(LaneError) as raised:
        handler.close()
    assert "Connection refused" in str(raised.value)
    assert "5 rows are not there" in str(raised.value)
    lane = handler.stats().lanes["mlflow"]
    assert (lane.delivered, lane.failed) == (6, 1)
    assert len(log.state_dict()["pending"]) == 5  # nothing is thrown away


def test_values_that_found_no_room_while_the_server_was_away_are_counted(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("async_trainer.callbacks.mlflow.LIMIT", 4)
    handler = CallbacksHandler([background(MLflow(f"http://127.0.0.1:{free_port()}"), backoff=0.0, retries=1)])
    handler.call_event("on_train_start", state=at(1))
    for number in range(1, 11):
        handler.call_event("on_backward_step_start", state=at(number), loss=torch.tensor(1.0))
    handler.call_event("on_train_end", state=at(11))
    with pytest.raises(LaneError, match="4 rows are not there, 6 more were dropped, 0 refused"):
        handler.close()
    assert caplog.text.count("4 rows wait; the oldest are dropped") == 1


@pytest.mark.parametrize("outage", [*OUTAGES, "token"])
def test_files_that_the_server_does_not_take_at_once_are_there_in_the_end_and_are_sent_once(
    real: str, outage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("async_trainer.callbacks.mlflow_requests.REQUEST_SECONDS", 0.5)
    left, taken = [2], []

    def answer(method: str, path: str, headers: Mapping[str, str], body: bytes) -> Answer | None:
        if method == "PUT":
            if "b%20c.bin" in path and left[0]:
                left[0] -= 1
                return (401, {}, b"expired") if outage == "token" else OUTAGES[outage]()
            taken.append(path.rsplit("/", 1)[1])
        return forward(real, method, path, headers, body)

    checkpoints = Maps(tmp_path).split(0).checkpoints
    checkpoints.mkdir(parents=True)
    for name in ("a.bin", "b c.bin", "ü.bin"):
        (checkpoints / name).write_bytes(name.encode() * 100_000)
    with serving(answer) as server:
        log = MLflow(server.url, artifacts=["checkpoints/*"])
        with CallbacksHandler([background(log, backoff=0.01)]) as handler:
            handler.call_event("on_train_start", state=at(1), maps=Maps(tmp_path))
            handler.call_event("on_train_end", state=at(2), maps=Maps(tmp_path))
        handler.close().raise_for_errors()
    assert taken == ["a.bin", "b%20c.bin", "%C3%BC.bin"]
    client = MlflowClient(real)
    assert client.get_run(log.run_id).info.status == "FINISHED"  # type: ignore[arg-type]
    there = Path(client.download_artifacts(log.run_id, "checkpoints", str(tmp_path)))  # type: ignore[arg-type]
    assert {path.name: path.read_bytes() for path in there.iterdir()} == {
        name: name.encode() * 100_000 for name in ("a.bin", "b c.bin", "ü.bin")
    }


@pytest.mark.slow
@pytest.mark.parametrize("outage", ["500", "hangs"])
def test_a_model_that_the_server_never_takes_is_told_at_the_end(
    real: str, outage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("async_trainer.callbacks.mlflow_requests.REQUEST_SECONDS", 0.5)

    def answer(method: str, path: str, headers: Mapping[str, str], body: bytes) -> Answer | None:
        return OUTAGES[outage]() if method == "PUT" else forward(real, method, path, headers, body)

    with serving(answer) as server:
        log = MLflow(server.url, log_model=True)
        handler = CallbacksHandler([background(log, backoff=0.01, retries=1)])
        handler.call_event("on_train_start", state=at(1))
        handler.call_event("on_backward_step_start", state=at(1), loss=torch.tensor(1.0))
        handler.call_event("on_train_end", state=at(1), model=torch.nn.Linear(1, 1))
        with pytest.raises(LaneError, match=r"the server answers 500|timed out"):
            handler.close()
    assert history(real, log.run_id)["loss"] == [(1, 1.0)]


def test_a_token_that_expires_is_read_anew_and_is_in_no_text(
    real: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def answer(method: str, path: str, headers: Mapping[str, str], body: bytes) -> Answer:
        return _unauthorized(headers) or forward(real, method, path, headers, body)

    with serving(answer) as server, caplog.at_level(logging.DEBUG):
        monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "old-token-1")
        log = MLflow(server.url)
        log.on_train_start()
        log_batches(log, range(1, 3))
        with pytest.raises(OSError, match="the server answers 401") as raised:
            log.on_train_end()
        text = "".join(traceback.format_exception(raised.value))
        monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "new-token-2")
        log.on_train_end()
        monkeypatch.delenv("MLFLOW_TRACKING_TOKEN")
        assert history(real, log.run_id)["loss"] == [(1, 1.0), (2, 2.0)]
        for shown in (text, repr(log), caplog.text, repr(log.state_dict()), repr(vars(log))):
            assert "old-token" not in shown
            assert "new-token" not in shown


def test_a_server_that_refuses_connections_at_first_has_all_when_it_is_there(real: str) -> None:
    port = free_port()
    log = MLflow(f"http://127.0.0.1:{port}")
    log.on_train_start()
    log_batches(log, range(1, 3))
    with serving(lambda *request: forward(real, *request), port):
        log_batches(log, range(3, 5))
        log.on_train_end()
    assert history(real, log.run_id)["loss"] == [(step, float(step)) for step in range(1, 5)]


def test_in_the_background_too_what_is_lost_is_raised_at_the_end(real: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Though the end is tried again."""
    monkeypatch.setattr("async_trainer.callbacks.mlflow.as_key", lambda name: name)
    handler = CallbacksHandler([background(MLflow(real), backoff=0.01)])
    handler.call_event("on_train_start", state=at(1))
    handler.call_event("on_validation_end", state=at(2), metrics={"f1@0.5": 1.0})
    handler.call_event("on_train_end", state=at(2))
    with pytest.raises(LaneError, match="1 were refused"):
        handler.close()


def test_a_resume_after_some_were_lost_doubles_nothing(real: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("async_trainer.callbacks.mlflow.as_key", lambda name: name)
    before = MLflow(real)
    before.on_train_start()
    log_batches(before, range(1, 3))
    before.on_validation_end(state=at(3), metrics={"f1@0.5": 1.0})  # refused, with the two
    log_batches(before, range(3, 6))
    state = pickle.loads(pickle.dumps(before.state_dict()))
    log_batches(before, range(6, 8))
    before._settle()  # sent after the state; and then it is killed
    after = MLflow(real)
    after.load_state_dict(state)
    after.on_resume()
    log_batches(after, range(6, 10))
    after.on_train_end()
    assert history(real, after.run_id)["loss"] == [(step, float(step)) for step in range(3, 10)]


def test_equal_values_of_one_step_are_all_there(real: str) -> None:
    """A server takes those of the same millisecond for one."""
    log = MLflow(real)
    log.on_train_start()
    for _ in range(30):  # gradients are accumulated
        log.on_backward_step_start(state=at(1), loss=torch.tensor(float("nan")))
    log.on_train_end()
    assert log.run_id is not None
    assert len(MlflowClient(real).get_metric_history(log.run_id, "loss")) == 30


def test_a_relative_path_is_one_from_where_it_was_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert MLflow("sqlite:///m.db").tracking_uri == f"sqlite:///{tmp_path}/m.db"
    assert MLflow("runs").tracking_uri == f"{tmp_path}/runs"
    for whole in ("sqlite:////a/m.db", "sqlite:///:memory:", "http://h:5000", "databricks", "postgresql://h/db"):
        assert MLflow(whole).tracking_uri == whole


def test_credentials_in_the_url_are_in_no_text(caplog: pytest.LogCaptureFixture) -> None:
    with serving(lambda *_: (200, {}, b"{}")) as server:
        url = server.url.replace("//", "//user:hunter2secret@")
    log = MLflow(url)
    with caplog.at_level(logging.INFO):
        log.on_train_start()
        log_batches(log, range(1, 3))
        with pytest.raises(OSError, match="refused") as raised:
            log.on_train_end()
    text = "".join(traceback.format_exception(raised.value))
    for shown in (text, repr(log), caplog.text, repr(log.state_dict())):
        assert "hunter2secret" not in shown


@pytest.mark.parametrize(("status", "asked"), [(400, 1), (413, 1), (409, 2), (429, 2)])
def test_a_refusal_that_time_will_not_change_is_not_tried_again(status: int, asked: int, real: str) -> None:
    run = MLflowRun(real, None, "Default", None, {}, {}, {})
    run.connect()
    sent = []

    def answer(method: str, path: str, *_: Any) -> Any:
        sent.append(path)
        return status, {}, b'{"error_code": "BAD_REQUEST", "message": "no"}'

    with serving(answer) as server:
        away = MLflowRun(server.url, run.run_id, "Default", None, {}, {}, {})
        away._there = {}
        outbox = Outbox("MLflow", away.send, batch=10, limit=10)
        outbox.add([Point("loss", 1.0, 0, 1, 0)])
        for _ in range(2):
            with contextlib.suppress(OSError):
                outbox.send_all()
        assert len([path for path in sent if "log-batch" in path]) == asked
        assert outbox.refused == (asked == 1)


def test_values_that_the_server_refuses_for_good_hold_up_nothing_and_are_counted(
    real: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("async_trainer.callbacks.mlflow.as_key", lambda name: name)
    log = MLflow(real)
    log.on_train_start()
    log.on_validation_end(state=at(1), metrics={"not/a name!?*\x00": 1.0})
    log_batches(log, range(1, 3))
    with pytest.raises(OSError, match="1 were refused"):
        log.on_train_end()
    assert history(real, log.run_id)["loss"] == [(1, 1.0), (2, 2.0)]


# ------------------------------------------------------------------------------------------------------ the arguments


@pytest.mark.parametrize("uri", ["http//127.0.0.1:5000", "https:/host", "http:", "http"])
def test_what_is_nearly_a_url_is_refused(uri: str) -> None:
    with pytest.raises(
        ConfigurationError, match=r"is no URL; give a URL, such as tracking_uri='http://127.0.0.1:5000'"
    ):
        MLflow(uri)


def test_a_database_for_which_there_is_no_client_is_told_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is MLflow's default, also where there is but mlflow-skinny."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setattr("async_trainer.callbacks.mlflow_run.find_spec", lambda name: None)
    with pytest.raises(ConfigurationError, match="is a database, and takes sqlalchemy: pip install mlflow"):
        MLflow("sqlite:///mlflow.db")
    handler = CallbacksHandler([background(MLflow(), backoff=0.0)])
    handler.call_event("on_train_start", state=at(1))
    for number in (1, 2):
        handler.call_event("on_backward_step_start", state=at(number), loss=torch.tensor(1.0))
    handler.call_event("on_train_end", state=at(2))
    with pytest.raises(
        LaneError, match=r"is a database, and takes sqlalchemy: pip install mlflow .* tracking_uri='http"
    ):
        handler.close()


def test_before_a_start_it_says_what_comes_first(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="on_train_start or on_resume comes first"):
        log_batches(MLflow("http://127.0.0.1:1"), range(1, 2))
    handler = CallbacksHandler([inline(MLflow("http://127.0.0.1:1", artifacts=["*"]))])
    with pytest.raises(ConfigurationError, match="this run has no maps"):
        handler.call_event("on_train_start", state=at(1), maps=tmp_path)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"tracking_uri": 3}, "MLflow: tracking_uri must be a str"),
        ({"experiment": ""}, "experiment must be a name"),
        ({"params": 3}, "params must be a dict"),
        ({"artifacts": ["/etc/*"]}, "MLflow: artifacts must be patterns"),
        ({"every": 0}, "MLflow: every must be"),
        ({"experimnt": "x"}, "did you mean 'experiment'"),
    ],
)
def test_a_bad_argument_is_refused_by_name(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        MLflow(**arguments)
