"""Prometheus: what its own parser reads of what is served, while a training goes on."""

from __future__ import annotations

import multiprocessing
import socket
import threading
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("prometheus_client")

from prometheus_client.parser import text_string_to_metric_families

from async_trainer import CallbacksHandler, TrainerState, background, inline
from async_trainer.callbacks.prometheus import Prometheus
from async_trainer.errors import ConfigurationError
from async_trainer.testing import check_callback, play

OF_THE_RUN = ("async_trainer_value", "async_trainer_epoch", "async_trainer_step")
"""What doesn't differ by where callbacks run."""


def scrape(callback: Prometheus | int) -> dict[tuple[str, ...], float]:
    """By name and labels' values. ``callback``: or a port."""
    port = callback if isinstance(callback, int) else callback.port
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(f"http://127.0.0.1:{port}/metrics", timeout=60) as answer:
        families = text_string_to_metric_families(answer.read().decode())
    return {(one.name, *one.labels.values()): one.value for family in families for one in family.samples}


def at(number: int) -> TrainerState:
    return TrainerState(called="train", current_epoch=2, current_train_batch=number, optim_step=number)


@pytest.mark.parametrize("wrap", [inline, background])
def test_it_serves_where_the_run_is_and_the_last_of_each_value(wrap: Callable[[Any], Any]) -> None:
    callback = Prometheus(0)
    with CallbacksHandler([wrap(callback)]) as handler:
        handler.call_event("on_train_start", state=TrainerState(), callbacks=handler)
        for number in range(1, 4):
            handler.call_event("on_backward_step_start", state=at(number), loss=torch.tensor(number / 2))
        handler.call_event("on_validation_end", state=at(3), metrics={"accuracy": 0.75, "file-\udc80": 0.5})
        handler.flush()
        found = scrape(callback)
        assert found["async_trainer_value", "loss"] == 1.5
        assert found["async_trainer_value", "validation/accuracy"] == 0.75
        assert found["async_trainer_value", "validation/file-\\udc80"] == 0.5
        assert found[("async_trainer_epoch",)] == 2
        assert found[("async_trainer_step",)] == 3
        handler.call_event("on_train_end", state=at(3))
        handler.flush()
        with pytest.raises(OSError, match="refused"):
            socket.create_connection(("127.0.0.1", callback.port or 1), timeout=5)


class Scraped(Prometheus):
    """Asks itself after each validation, over HTTP, and keeps the answer."""

    def __init__(self, folder: Path) -> None:
        super().__init__(0)
        self.folder = folder

    def _settle(self) -> None:
        super()._settle()
        ours = {name: value for name, value in scrape(self).items() if name[0] in OF_THE_RUN}
        with (self.folder / "scraped").open("a") as file:
            print(sorted(ours.items()), file=file)


@pytest.mark.slow
def test_what_is_asked_after_each_validation_is_the_same_however_it_runs() -> None:
    with pytest.warns(UserWarning, match="it is not run in a process"):
        check_callback(Scraped, exactly_once=False)


def test_a_lane_that_hangs_is_seen_to_hang() -> None:
    let_go, inside = threading.Event(), threading.Event()

    class Hanging:
        def on_batch_end(self) -> None:
            inside.set()
            let_go.wait(60)

    callback = Prometheus(0)
    with CallbacksHandler([callback, background(Hanging())]) as handler:
        handler.call_event("on_train_start", state=TrainerState(), callbacks=handler)
        for number in range(5):
            handler.call_event("on_batch_end", state=at(number))
        assert inside.wait(60)
        while callback.port == 0:
            let_go.wait(0.01)
        found = scrape(callback)
        assert found["async_trainer_queued", "hanging"] == 5 or found["async_trainer_queued", "hanging"] == 4
        assert found["async_trainer_events_total", "hanging", "delivered"] == 0
        assert found[("async_trainer_capture_seconds_total",)] >= 0
        assert found["async_trainer_wait_seconds_total", "queue"] == 0
        let_go.set()
        handler.flush()
        assert scrape(callback)["async_trainer_events_total", "hanging", "delivered"] == 5
        assert scrape(callback)["async_trainer_queued", "hanging"] == 0
        handler.call_event("on_train_end", state=at(5))


def test_a_port_that_was_taken_is_served_once_it_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("async_trainer.callbacks.prometheus.AGAIN", 0.0)
    with socket.create_server(("127.0.0.1", 0)) as other:
        log = Prometheus(other.getsockname()[1])
        with pytest.raises(OSError, match="can't be served"):
            log.on_train_start(state=TrainerState())
        log.on_backward_step_start(state=TrainerState(), loss=1.0)
    log.on_backward_step_start(state=TrainerState(), loss=2.0)
    try:
        assert scrape(log)["async_trainer_value", "loss"] == 2.0
    finally:
        log.on_train_end()
    log.on_backward_step_start(state=TrainerState(), loss=3.0)  # after it, nothing is served
    with pytest.raises(OSError, match="refused"):
        scrape(log.port)


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_forked_child_does_not_keep_the_port() -> None:
    """As a worker of a DataLoader that lives on, which would keep it, and answer nobody."""
    log = Prometheus(0)
    log.on_train_start(state=TrainerState())
    port = log.port
    worker = multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,), daemon=True)
    worker.start()
    try:
        assert ("async_trainer_epoch",) in scrape(port)
        log.on_train_end()
        with pytest.raises(OSError, match="refused"):
            scrape(port)
        again = Prometheus(port)
        again.on_train_start(state=TrainerState())
        assert ("async_trainer_epoch",) in scrape(port)
        again.on_train_end()
    finally:
        worker.kill()
        worker.join()


def test_a_training_goes_on_without_it_where_its_port_is_taken() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        report = play(Prometheus(port), epochs=1)
    assert report.failed == 1
    assert f"Prometheus: 127.0.0.1:{port} can't be served" in str(report.errors[0])


@pytest.mark.parametrize(
    "asked", [b"", b"GET /metrics HTTP/1.1\r\nHost: x", b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n"]
)
def test_one_who_asks_and_hangs_holds_up_neither_others_nor_the_training(asked: bytes) -> None:
    """Nothing is asked; half a question; a question, whose answer, of some megabytes, is not read."""
    callback, inside = Prometheus(0), threading.Event()
    with CallbacksHandler([callback], stall_timeout=5.0) as handler:
        handler.call_event("on_train_start", state=TrainerState(), callbacks=handler)
        losses = {f"{number:06d}" + "x" * 1000: 1.0 for number in range(6000)}
        handler.call_event("on_backward_step_start", state=at(1), loss=losses)
        handler.flush()
        with socket.socket() as hanging:
            hanging.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            real, callback.families = callback.families, lambda: (inside.set(), real())[1]  # type: ignore[method-assign]
            hanging.connect(("127.0.0.1", callback.port))
            hanging.sendall(asked)
            if asked.endswith(b"\r\n\r\n"):
                assert inside.wait(60)
            handler.call_event("on_backward_step_start", state=at(2), loss=0.25)
            assert handler.flush(60).stalled == ()
            assert scrape(callback)["async_trainer_value", "loss"] == 0.25
            handler.call_event("on_train_end", state=at(3))
            report = handler.close(60)
    assert report.stalled == ()
    assert (report.failed, report.lost, report.dropped) == (0, 0, 0)


def test_it_is_in_no_process_of_its_own() -> None:
    with pytest.raises(ConfigurationError, match="Prometheus"):
        CallbacksHandler([background(Prometheus(0), placement="process")])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"port": -1}, "Prometheus: port must be"), ({"host": ""}, "host must be"), ({"prt": 1}, "did you mean 'port'")],
)
def test_a_bad_argument_is_refused_by_name(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        Prometheus(**arguments)
