"""Webhook: one message for each end, whatever the server does meanwhile, and nothing secret in any text."""

from __future__ import annotations

import email.utils
import json
import logging
import socket
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("httpx")

from async_trainer import CallbacksHandler, TrainerState, background
from async_trainer.callbacks import webhook
from async_trainer.callbacks.webhook import Webhook
from async_trainer.errors import ConfigurationError, LaneError
from async_trainer.testing import check_callback, play
from async_trainer.train.maps import Maps
from tests.callbacks.servers import Answer, Server, free_port, serving

OK: Answer = (200, {}, b"ok")


@pytest.fixture(autouse=True)
def brief(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(webhook, "FIRST_PAUSE", 0.01)
    monkeypatch.setattr(webhook, "REQUEST_SECONDS", 0.5)
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)


def messages(server: Server) -> list[Any]:
    return [json.loads(body) for _, _, _, body in server.requests]


def end(hook: Webhook, **arguments: Any) -> Any:
    """The end of a training; returns the report, or raises what is raised at the end."""
    handler = CallbacksHandler([hook])
    handler.call_event("on_train_start", state=TrainerState())
    event = "on_exception" if "exception" in arguments else "on_train_end"
    handler.call_event(event, state=TrainerState(called="train", current_epoch=3, optim_step=12), **arguments)
    return handler.close()


def answers(*given: Answer | None) -> Any:
    """One after the other, then OK."""
    waiting: Iterator[Answer | None] = iter(given)
    return lambda *_: next(waiting, OK)


def test_the_end_of_a_training_is_told_with_its_metrics(tmp_path: Path) -> None:
    with serving(answers()) as server:
        play(Webhook(f"{server.url}/hook"), epochs=2, directory=tmp_path).raise_for_errors()
    (message,) = messages(server)
    assert message.pop("seconds") >= 0
    assert set(message["metrics"]) == {"loss"}
    del message["metrics"]
    assert message == {
        "text": "The training has finished in epoch 2",
        "status": "finished",
        "run": str(Maps(tmp_path).path),
        "split": 0,
        "epoch": 2,
        "step": 6,
        "error": None,
    }
    method, path, headers, _ = server.requests[0]
    assert (method, path, headers["Content-Type"]) == ("POST", "/hook", "application/json")


@pytest.mark.parametrize(
    ("error", "status", "text"),
    [
        (ValueError("no"), "failed", "The training has failed in epoch 3: ValueError: no"),
        (KeyboardInterrupt(), "interrupted", "The training was interrupted in epoch 3: KeyboardInterrupt"),
        (SystemExit(143), "interrupted", "The training was interrupted in epoch 3: SIGTERM (status 143)"),
        (
            SystemExit("no disk"),
            "interrupted",
            "The training was interrupted in epoch 3: SystemExit (status 1): no disk",
        ),
    ],
)
def test_a_failure_is_told_with_its_error(error: BaseException, status: str, text: str) -> None:
    with serving(answers()) as server:
        end(Webhook(server.url, on="failure"), exception=error).raise_for_errors()
        end(Webhook(server.url, on="failure")).raise_for_errors()  # it has ended well: nothing
    (message,) = messages(server)
    assert (message["status"], message["text"]) == (status, text)


@pytest.mark.slow
def test_it_does_the_same_in_each_way_it_can_run() -> None:
    with serving(answers()) as server:
        url = server.url

        def make() -> Webhook:
            return Webhook(url, message=_without_seconds)

        check_callback(make, exactly_once=False)
        assert len(server.requests) >= 4
        told = [{**message, "run": None} for message in messages(server)]
        assert all(message == told[0] for message in told)


def _without_seconds(about: Mapping[str, Any]) -> dict[str, Any]:
    return {**about, "seconds": 0}


def test_a_loop_whose_end_brings_no_metrics_has_those_of_its_last_validation() -> None:
    with serving(answers()) as server:
        handler = CallbacksHandler([Webhook(server.url)])
        for error in (0.5, 0.25):
            handler.call_event("on_train_start")
            if error == 0.5:  # the other has none
                handler.call_event("on_validation_end", metrics={"error": torch.tensor(1.0)})
                handler.call_event("on_validation_end", metrics={"error": torch.tensor(error), "odd": None})
            handler.call_event("on_train_end")
        handler.close().raise_for_errors()
        assert [one["metrics"] for one in messages(server)] == [{"error": 0.5, "odd": "None"}, {}]


def test_the_message_is_what_a_function_makes_of_it() -> None:
    with serving(answers()) as server:
        end(Webhook(server.url, message=lambda about: {"content": about["text"]})).raise_for_errors()
    assert messages(server) == [{"content": "The training has finished in epoch 3"}]


def test_an_odd_metric_or_name_is_no_reason_not_to_tell_of_a_failure() -> None:
    odd = {"recall": [0.5, 0.25], "file-\udc80": float("nan"), "loss": 0.5}
    with serving(answers()) as server:
        end(Webhook(server.url), exception=OSError("no file-\udc80"), metrics=odd).raise_for_errors()
    (message,) = messages(server)
    assert message["metrics"] == {"recall": "[0.5, 0.25]", "file-\udc80": "nan", "loss": 0.5}
    assert message["error"] == "OSError: no file-\udc80"


OUTAGES: dict[str, Answer | None] = {
    "500": (500, {}, b""),
    "503 with a date": (503, {"Retry-After": email.utils.formatdate(0, usegmt=True)}, b""),
    "429": (429, {"Retry-After": "0"}, b""),
    "hangs": None,
}


@pytest.mark.parametrize("outage", OUTAGES)
def test_a_server_that_comes_back_gets_the_message(outage: str) -> None:
    with serving(answers(OUTAGES[outage], OUTAGES[outage])) as server:
        end(Webhook(server.url)).raise_for_errors()
    assert len(server.requests) == 3
    assert len({headers["Idempotency-Key"] for _, _, headers, _ in server.requests}) == 1
    assert len({body for _, _, _, body in server.requests}) == 1


def test_a_server_is_left_alone_for_as_long_as_it_says() -> None:
    times: list[float] = []

    def answer(*_: Any) -> Answer:
        times.append(time.monotonic())
        return (429, {"Retry-After": "1"}, b"") if len(times) == 1 else OK

    with serving(answer) as server:
        end(Webhook(server.url)).raise_for_errors()
    assert times[1] - times[0] >= 1.0


def test_a_server_that_refuses_connections_is_told_of_at_the_end_and_holds_up_no_training() -> None:
    with serving(answers()) as server:
        url = f"{server.url}/services/T0SECRET/B1SECRET?token=s3cr3t"
    with pytest.raises(LaneError) as raised:
        end(Webhook(url, patience=0.2))
    text = "".join(traceback.format_exception(raised.value))
    assert "has not taken the message: ConnectError" in text
    assert "SECRET" not in text
    assert "s3cr3t" not in text


def test_a_server_that_refuses_connections_and_comes_back_gets_the_message(monkeypatch: pytest.MonkeyPatch) -> None:
    refused = threading.Event()
    attempt = Webhook._attempt

    async def watched(hook: Webhook, *arguments: Any) -> Any:
        answered = await attempt(hook, *arguments)
        if "ConnectError" in str(answered[0]):
            refused.set()
        return answered

    monkeypatch.setattr(Webhook, "_attempt", watched)
    port = free_port()
    handler = CallbacksHandler([Webhook(f"http://127.0.0.1:{port}/hook")])
    handler.call_event("on_train_end", state=TrainerState())
    assert refused.wait(60)
    with serving(answers(), port) as server:
        handler.close().raise_for_errors()
        assert [message["status"] for message in messages(server)] == ["finished"]


@pytest.mark.parametrize("status", [401, 404])
def test_what_won_t_get_better_is_asked_once(status: int) -> None:
    with serving(lambda *_: (status, {}, b"")) as server:
        with pytest.raises(LaneError, match=rf"was asked once, and has not taken the message: it answers {status}"):
            end(Webhook(server.url))
        assert len(server.requests) == 1


def test_a_token_that_expires_is_asked_for_anew() -> None:
    tokens = iter(["old-token", "new-token"])

    def answer(method: str, path: str, headers: Mapping[str, str], body: bytes) -> Answer:
        return OK if headers["Authorization"] == "Bearer new-token" else (401, {}, b"")

    with serving(answer) as server:
        end(Webhook(server.url, headers=lambda: {"Authorization": f"Bearer {next(tokens)}"})).raise_for_errors()
    assert len(server.requests) == 2


def test_nothing_secret_is_in_any_log_error_repr_or_state(caplog: pytest.LogCaptureFixture) -> None:
    moved = (301, {"Location": "https://127.0.0.1/services/T0SECRET/B1SECRET?key=k3yk3y"}, b"")
    with serving(answers((500, {}, b""), moved)) as server, caplog.at_level(logging.DEBUG):
        host = server.url
        hook = Webhook(
            f"{host}/services/T0SECRET/B1SECRET?key=k3yk3y".replace("//", "//bob:passw0rd@", 1),
            headers={"Authorization": "Bearer t0ken"},
        )
        with pytest.raises(LaneError) as raised:
            end(hook)
        assert len(server.requests) == 2
    seen = "".join(traceback.format_exception(raised.value)) + caplog.text + repr(hook) + repr(hook.state_dict())
    assert "it answers 301" in seen
    for secret in ("SECRET", "k3yk3y", "passw0rd", "t0ken"):
        assert secret not in seen
    assert repr(hook) == f"Webhook({host!r}, on='all')"
    assert not any(logging.getLogger(name).filters for name in ("httpx", "httpcore.http11"))


def test_a_header_that_httpx_refuses_a_proxy_or_a_port_is_told_without_a_secret(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with serving(answers()) as server:
        with pytest.raises(LaneError, match="Illegal header value") as raised:
            end(Webhook(server.url, headers={"Authorization": "Bearer s3cr3t\n"}, patience=0))
        assert "s3cr3t" not in str(raised.value)
        monkeypatch.setenv("HTTP_PROXY", "http://user:s3#cr3t@127.0.0.1:1")
        with pytest.raises(LaneError, match="is a proxy's URL in the environment valid") as raised:
            end(Webhook(server.url, patience=0))
        assert "s3" not in str(raised.value)
        assert isinstance(raised.value.__cause__, OSError)
        assert raised.value.__cause__.__cause__ is None  # its text has a part of the password
    with pytest.raises(ConfigurationError, match="no valid port") as refused:
        Webhook("https://user:s3cr3t/x@host/path")
    assert "s3cr3t" not in str(refused.value)
    assert refused.value.__suppress_context__


@contextmanager
def one_connection(serve: Callable[[socket.socket], None]) -> Iterator[str]:
    """The URL of a server that does so with the first connection, and ends with it."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def accept() -> None:
            connection, _ = server.accept()
            with connection, suppress(OSError):
                serve(connection)

        thread = threading.Thread(target=accept)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.getsockname()[1]}"
        finally:
            thread.join()


def test_a_server_that_answers_byte_by_byte_is_waited_for_no_longer_than_another() -> None:
    def drip(connection: socket.socket) -> None:
        connection.recv(65536)
        while True:  # until nobody listens any more
            connection.sendall(b"H")
            time.sleep(0.05)

    with one_connection(drip) as url, pytest.raises(LaneError, match="has not taken the message: TimeoutError"):
        end(Webhook(url, patience=0))


def test_an_answer_without_end_is_an_answer() -> None:
    sent = 0

    def stream(connection: socket.socket) -> None:
        nonlocal sent
        connection.recv(65536)
        connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
        while sent < 1 << 30:
            sent += connection.send(b"x" * 65536)

    with one_connection(stream) as url:
        end(Webhook(url, patience=0)).raise_for_errors()
    assert sent < 1 << 28


def test_while_it_waits_other_tasks_and_the_training_go_on() -> None:
    other = threading.Event()

    class Other:
        async def on_train_end(self) -> None:
            other.set()

    with serving(lambda *_: OK if other.is_set() else None) as server:
        handler = CallbacksHandler([Webhook(server.url), background(Other())])
        handler.call_event("on_train_end", state=TrainerState())
        server.wait_for_requests(1)
        assert other.wait(60)
        handler.close().raise_for_errors()
    assert len(server.requests) >= 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"url": "ftp://secret.example"}, "Webhook: url must be a URL that begins with https://"),
        ({"url": "http://h", "headers": 3}, "headers must be a dict, or a function"),
        ({"url": "http://h", "message": 3}, "message must be a function"),
        ({"url": "http://h", "on": "some"}, "on must be 'all' or 'failure'"),
        ({"url": "http://h", "patience": -1}, "patience must be a number of seconds"),
        ({"url": "http://h", "patiense": 1}, "did you mean 'patience'"),
    ],
)
def test_a_bad_argument_is_refused_by_name(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message) as raised:
        Webhook(**arguments)
    assert "secret" not in str(raised.value)
