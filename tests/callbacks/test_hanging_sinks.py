"""Sinks that hang for longer than the stall timeout, with the real clients: the training goes on, and is told."""

from __future__ import annotations

import contextlib
import json
import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from async_trainer import CallbacksHandler, TrainerState, background
from tests.callbacks.servers import S3_CLIENT, Answer, forward, mlflow_server, s3_server, serving
from tests.callbacks.wandb_backend import KEY, WandBBackend

BATCHES = 30
QUEUE = 8
STALLED = 0.5  # s
DEADLINE = 60.0

Sink = tuple[Any, Callable[[], list[float]]]
"""A callback whose server hangs, and what tells what has come there: losses, or for a file or message its number."""


class Gate:
    """Answers only once it is let through. ``came`` is set when the first waits."""

    def __init__(self, answer: Callable[[str, str, Mapping[str, str], bytes], Answer | None]) -> None:
        self.came, self.opened = threading.Event(), threading.Event()
        self._answer = answer

    def __call__(self, method: str, path: str, headers: Mapping[str, str], body: bytes) -> Answer | None:
        self.came.set()
        self.opened.wait(2 * DEADLINE)
        return self._answer(method, path, headers, body)


@contextlib.contextmanager
def mlflow(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Sink, Gate]]:
    pytest.importorskip("mlflow")
    pytest.importorskip("sqlalchemy")
    from mlflow import MlflowClient

    from async_trainer.callbacks import MLflow

    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    monkeypatch.setattr("async_trainer.callbacks.mlflow_requests.REQUEST_SECONDS", 2 * DEADLINE)
    with mlflow_server(folder) as real:
        gate = Gate(lambda *request: forward(real, *request))
        with serving(gate) as server:
            log = MLflow(server.url)

            def losses() -> list[float]:
                assert log.run_id is not None
                return [one.value for one in MlflowClient(real).get_metric_history(log.run_id, "loss")]

            yield (log, losses), gate


@contextlib.contextmanager
def wandb(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Sink, Gate]]:
    pytest.importorskip("wandb")
    from async_trainer.callbacks import WandB

    for name in ("CONFIG", "CACHE", "DATA"):
        monkeypatch.setenv(f"WANDB_{name}_DIR", str(folder))
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    monkeypatch.setattr("async_trainer.callbacks.wandb_run.INIT_SECONDS", 2 * DEADLINE)
    monkeypatch.setattr("async_trainer.callbacks.wandb_run.FINISH_SECONDS", DEADLINE)
    backend = WandBBackend()
    gate = Gate(backend)
    settings = {"x_disable_stats": True, "x_disable_meta": True, "disable_git": True, "save_code": False}
    with serving(gate) as server:
        settings |= {"base_url": server.url, "api_key": KEY}
        log = WandB("tests", mode="online", folder=folder, settings=settings)
        yield (log, lambda: backend.losses(log.run_id)), gate


@contextlib.contextmanager
def upload(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Sink, Gate]]:
    pytest.importorskip("s3fs")
    pytest.importorskip("moto.server")
    import boto3

    from async_trainer.callbacks import Upload

    for name, value in S3_CLIENT.items():
        monkeypatch.setenv(name, value)
    (folder / "files").mkdir()
    (folder / "files" / "a.txt").write_bytes(b"1")
    with s3_server() as real:
        client = boto3.client("s3", endpoint_url=real)
        client.create_bucket(Bucket="hanging")
        gate = Gate(lambda *request: forward(real, *request))
        with serving(gate) as server:
            options = {"endpoint_url": server.url, "skip_instance_cache": True}
            uploader = Upload("s3://hanging", folder=folder / "files", options=options)

            def there() -> list[float]:
                return [float(client.get_object(Bucket="hanging", Key="a.txt")["Body"].read())]

            yield (uploader, there), gate


@contextlib.contextmanager
def webhook(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Sink, Gate]]:
    pytest.importorskip("httpx")
    from async_trainer.callbacks import Webhook

    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("async_trainer.callbacks.webhook.REQUEST_SECONDS", 2 * DEADLINE)
    told: list[float] = []

    def answer(method: str, path: str, headers: Mapping[str, str], body: bytes) -> Answer:
        told.append(json.loads(body)["step"])
        return 200, {}, b""

    gate = Gate(answer)
    with serving(gate) as server:
        yield (Webhook(server.url), lambda: told), gate


class Counts:
    """Another callback."""

    def __init__(self) -> None:
        self.batches = 0

    def on_backward_step_start(self) -> None:
        self.batches += 1


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.parametrize(
    "sink",
    [
        pytest.param(one, id=one.__name__, marks=[pytest.mark.slow] * (one is not webhook))
        for one in (mlflow, wandb, upload, webhook)
    ],
)
def test_it_holds_up_the_training_once_and_is_named_and_delivers_or_counts_what_it_was_given(
    sink: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with sink(tmp_path, monkeypatch) as ((callback, came), gate), caplog.at_level(logging.WARNING, "async_trainer"):
        name, counts = sink.__name__, Counts()
        handler = CallbacksHandler([background(callback, queue_size=QUEUE), background(counts)], stall_timeout=STALLED)
        try:
            state = TrainerState(called="train", num_epochs=1, num_train_batches=BATCHES, current_epoch=1)
            handler.call_event("on_train_start", state=state, callbacks=handler)
            waits = handler.stats().waits.queue
            for state.current_train_batch in range(1, BATCHES + 1):
                loss = torch.tensor(float(state.current_train_batch))
                handler.call_event("on_backward_step_start", state=state, loss=loss)
                state.optim_step += 1
            handler.call_event("on_epoch_end", state=state)
            handler.call_event("on_train_end", state=state)
            waits = handler.stats().waits.queue - waits
            assert gate.came.wait(DEADLINE)
            report = handler.flush(DEADLINE)
            assert report.stalled == (name,)
            wait_until(lambda: f"lane {name} has stalled" in caplog.text)  # the pool says so
            assert counts.batches == BATCHES  # the others were not held up
            assert waits < 10 * STALLED  # the loop was, once
        finally:
            gate.opened.set()
        wait_until(lambda: handler.stats().lanes[name].queued == 0 and handler.stats().lanes[name].running is None)
        handler.close(DEADLINE).raise_for_errors()
        lane = handler.stats().lanes[name]
        assert (lane.failed, lane.lost) == (0, 0)
        assert lane.pushed == lane.delivered + lane.dropped
        if sink in (mlflow, wandb):
            kept = [float(n) for n in range(1, BATCHES + 1 - lane.dropped)]
            assert lane.dropped >= BATCHES - QUEUE - 2  # the queue, and what was taken before it hung
            assert came() == kept
        else:
            assert lane.dropped == 0
            assert came() == ([BATCHES] if sink is webhook else [1.0])
