"""Sinks that fail for a while, with the real clients and servers: all is there once they are back."""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from async_trainer import CallbacksHandler, TrainerState, background
from async_trainer.callbacks.upload import Upload
from async_trainer.errors import LaneError
from tests.callbacks.servers import Answer, forward, free_port, serving

XML = "<?xml version='1.0'?><Error><Code>{}</Code><Message>no</Message></Error>"
REFUSALS = {
    "500": (500, "InternalError"),
    "503": (503, "SlowDown"),
    "429": (429, "TooManyRequests"),
    "an expired token": (403, "ExpiredToken"),
}
OPTIONS = {"skip_instance_cache": True, "config_kwargs": {"retries": {"max_attempts": 0}, "connect_timeout": 5}}
"""No attempts of the client's own: those of the lane are counted."""


@pytest.fixture
def bucket(client: Any) -> Any:
    client.create_bucket(Bucket="runs")
    yield client
    for one in client.list_objects_v2(Bucket="runs").get("Contents", []):
        client.delete_object(Bucket="runs", Key=one["Key"])
    client.delete_bucket(Bucket="runs")


def content(bucket: Any, name: str) -> bytes:
    body: bytes = bucket.get_object(Bucket="runs", Key=name)["Body"].read()
    return body


@contextlib.contextmanager
def training(folder: Path, url: str, **options: Any) -> Iterator[CallbacksHandler]:
    """A run with a file to upload, and another callback, which must not notice."""
    (folder / "files").mkdir()
    (folder / "files" / "a.txt").write_bytes(b"1")
    uploader = Upload("s3://runs", folder=folder / "files", options={**OPTIONS, "endpoint_url": url})
    with CallbacksHandler([background(uploader, **{"backoff": 0.01, **options})]) as handler:
        handler.call_event("on_train_start")
        handler.call_event("on_epoch_end", state=TrainerState(called="train", current_epoch=1))
        yield handler


@pytest.mark.parametrize("kind", REFUSALS)
def test_s3_that_answers_so_for_a_while_has_all_when_it_is_back(
    kind: str, tmp_path: Path, s3: str, bucket: Any
) -> None:
    status, code = REFUSALS[kind]
    refused = 0

    def answer(method: str, path: str, headers: Mapping[str, str], body: bytes) -> Answer:
        nonlocal refused
        if method == "PUT" and refused < 3:
            refused += 1
            return status, {"Content-Type": "application/xml"}, XML.format(code).encode()
        return forward(s3, method, path, headers, body)

    with serving(answer) as server, training(tmp_path, server.url) as handler:
        handler.flush()
    assert refused == 3
    assert handler.close().ok
    assert content(bucket, "a.txt") == b"1"


def test_s3_that_refuses_connections_has_all_when_it_is_there(
    tmp_path: Path, s3: str, bucket: Any, caplog: pytest.LogCaptureFixture
) -> None:
    port = free_port()
    with training(tmp_path, f"http://127.0.0.1:{port}", retries=0) as handler:
        errors = handler.flush().errors
        assert "could not be uploaded to s3://runs" in str(errors[0])
        (tmp_path / "files" / "b.txt").write_bytes(b"2")
        with serving(lambda *request: forward(s3, *request), port):
            handler.call_event("on_epoch_end", state=TrainerState(called="train", current_epoch=2))
            assert handler.flush().failed == 1
        with pytest.raises(LaneError, match="could not be uploaded"):  # the first attempt, which is told at the end
            handler.close()
    assert (content(bucket, "a.txt"), content(bucket, "b.txt")) == (b"1", b"2")


def test_s3_is_asked_with_the_next_token_when_one_has_expired(
    tmp_path: Path, s3: str, bucket: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "old-key")
    monkeypatch.setenv("AWS_SESSION_TOKEN", "old-token-hunter2")
    asked = threading.Event()

    def answer(method: str, path: str, headers: Mapping[str, str], body: bytes) -> Answer:
        if "old-key" in headers.get("Authorization", ""):
            monkeypatch.setenv("AWS_ACCESS_KEY_ID", "new-key")
            monkeypatch.setenv("AWS_SESSION_TOKEN", "new-token-hunter2")
            asked.set()
            return 403, {"Content-Type": "application/xml"}, XML.format("ExpiredToken").encode()
        return forward(s3, method, path, headers, body)

    with caplog.at_level(logging.DEBUG, "async_trainer"), serving(answer) as server:
        with training(tmp_path, server.url) as handler:
            handler.flush()
        assert asked.is_set()
        assert handler.close().ok
    assert content(bucket, "a.txt") == b"1"
    (uploader,) = [one.callback for one in handler.attached]
    for shown in (caplog.text, repr(uploader), repr(uploader.state_dict())):
        assert "hunter2" not in shown


def test_s3_that_never_comes_back_is_told_at_the_end_and_counted(
    tmp_path: Path, s3: str, bucket: Any, caplog: pytest.LogCaptureFixture
) -> None:
    def answer(method: str, path: str, headers: Mapping[str, str], body: bytes) -> Answer:
        return 500, {"Content-Type": "application/xml"}, XML.format("InternalError").encode()

    with (
        pytest.raises(LaneError, match=r"a\.txt could not be uploaded to s3://runs") as raised,
        serving(answer) as server,
        training(tmp_path, server.url, retries=1) as handler,
    ):
        handler.flush()
    assert raised.value.report is not None
    assert (raised.value.report.failed, raised.value.report.lost) == (1, 0)
    assert "testing" not in caplog.text  # the key, and the token
