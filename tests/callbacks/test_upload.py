"""Upload: whole objects, of files as they were at the event; the newest wins, nothing is lost, no secret is shown."""

from __future__ import annotations

import hashlib
import logging
import os
import pickle
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path, PurePosixPath
from types import SimpleNamespace
from typing import Any

import anyio
import fsspec
import pytest
from fsspec.registry import _registry

from async_trainer import Callback, CallbacksHandler, TrainerState, background, inline
from async_trainer.callbacks import object_store, upload
from async_trainer.callbacks.model_checkpoint import ModelCheckpoint
from async_trainer.callbacks.object_store import ObjectStore, UploadError
from async_trainer.callbacks.staging import Staging, copy_whole
from async_trainer.callbacks.upload import Upload
from async_trainer.errors import ConfigurationError, LaneError
from async_trainer.files.atomic import atomic_write
from async_trainer.testing import check_callback, hold, play
from async_trainer.train.maps import Maps
from tests.resume.kit import computational, split, trainer

WAYS = pytest.mark.parametrize("wrap", [inline, background])


def write(path: Path, content: bytes) -> Path:
    """As all of this library writes: to another name, then moved into place."""
    with atomic_write(path) as file:
        file.write(content)
    return path


def objects(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


class Run:
    """Fires the ends of epochs."""

    def __init__(self, *callbacks: Any, maps: Maps | None = None) -> None:
        self.state = TrainerState(called="train", split_idx=0)
        self.handler = CallbacksHandler(callbacks)
        self.always: dict[str, Any] = {"state": self.state, "maps": maps}
        self.fire("on_train_start", callbacks=self.handler)

    def fire(self, event: str, **arguments: Any) -> None:
        self.handler.call_event(event, **self.always, **arguments)

    def epoch(self) -> None:
        self.state.current_epoch += 1
        self.fire("on_epoch_end")

    def end(self) -> None:
        self.fire("on_train_end")
        self.handler.close()


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    folder = tmp_path / "run"
    folder.mkdir()
    return folder


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return tmp_path / "store"


@pytest.fixture
def memory() -> Iterator[Any]:
    filesystem = fsspec.filesystem("memory")
    filesystem.store.clear()
    yield filesystem
    filesystem.store.clear()


# ----------------------------------------------------------------------------------------------- what goes where


def test_a_training_without_the_handler_is_warned_of(
    run_folder: Path, store: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A loop of one's own: it can't wait for what others write."""
    handler = CallbacksHandler([Upload(store.as_uri(), folder=run_folder)])
    handler.call_event("on_train_start", state=TrainerState(called="train"), callbacks=handler)
    assert "callbacks=" not in caplog.text
    handler.call_event("on_train_start", state=TrainerState(called="train"))
    assert "this training starts without callbacks=..., the handler: what other callbacks write" in caplog.text
    handler.close()


def test_a_pattern_that_no_file_matches_is_warned_of_at_the_end(
    tmp_path: Path, store: Path, caplog: pytest.LogCaptureFixture
) -> None:
    maps = Maps(tmp_path / "maps")
    folder = maps.split(0).path
    run = Run(Upload(store.as_uri(), files=["checkpoints/*", "checkpoints", "logz/*"]), maps=maps)
    write(folder / "checkpoints" / "epoch-1.pt", b"one")
    run.epoch()
    assert "matches files" not in caplog.text
    run.end()
    assert f"Upload: no file in {folder} matches files=['checkpoints', 'logz/*']" in caplog.text


def test_a_file_of_yours_that_has_the_pointer_s_name_is_left_as_it_is(
    run_folder: Path, store: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = Run(Upload(store.as_uri(), folder=run_folder))
    write(run_folder / "a.pt", b"one")
    write(run_folder / "latest", b"mine")
    for _ in range(2):
        run.epoch()
    run.end()
    assert objects(store) == {"a.pt": b"one", "latest": b"mine"}
    assert caplog.text.count("'latest' is a file of yours") == 1


@WAYS
def test_new_and_changed_files_of_the_split_are_there_after_each_epoch(
    tmp_path: Path, store: Path, wrap: Callable[[Any], Any]
) -> None:
    maps = Maps(tmp_path / "maps")
    folder = maps.split(0).path
    run = Run(wrap(Upload(store.as_uri())), maps=maps)
    write(folder / "checkpoints" / "epoch-1.pt", b"one")
    write(folder / "logs" / "deep" / "log.txt", b"a")
    (folder / "logs" / ".hidden").write_bytes(b"no")
    (folder / "logs" / ".partial").mkdir()
    (folder / "logs" / ".partial" / "half").write_bytes(b"no")
    run.epoch()
    run.handler.flush()
    assert objects(store) == {
        "split-0/checkpoints/epoch-1.pt": b"one",
        "split-0/logs/deep/log.txt": b"a",
        "split-0/latest": b"checkpoints/epoch-1.pt\n",
    }
    write(folder / "checkpoints" / "epoch-2.pt", b"two")
    write(folder / "logs" / "deep" / "log.txt", b"ab")
    run.epoch()
    run.end()
    assert objects(store)["split-0/checkpoints/epoch-2.pt"] == b"two"
    assert objects(store)["split-0/logs/deep/log.txt"] == b"ab"
    assert objects(store)["split-0/latest"] == b"checkpoints/epoch-2.pt\n"
    assert not list(folder.glob(".upload-*"))


def test_only_the_files_asked_for_go_and_never_those_of_the_store_itself(run_folder: Path) -> None:
    for name in ("a.pt", "b.txt", "logs/c.jsonl"):
        write(run_folder / name, b"x")
    run = Run(Upload(str(run_folder / "store"), files=["*.pt", "**/*.jsonl"], folder=run_folder))
    run.epoch()
    run.epoch()
    run.end()
    assert set(objects(run_folder / "store")) == {"a.pt", "logs/c.jsonl", "latest"}


def test_what_is_about_the_run_as_it_is_now_stays_there(tmp_path: Path, store: Path) -> None:
    seen: list[set[str]] = []

    class Looks:
        def on_epoch_end(self, *, maps: Maps) -> None:
            folder = maps.split(0).path
            os.mknod(folder / f"socket-{len(seen)}", stat.S_IFSOCK | 0o600)
            write(folder / "logs" / "status.json", b'{"of": "another program"}')
            seen.append({path.name for path in folder.iterdir()})

    made = trainer(tmp_path / "run", inline(Looks()), Upload(store.as_uri()))
    made.train(split(), computational())
    made.callbacks.close()
    assert all({"status.json", "run.lock", "socket-0"} <= names for names in seen)
    there = {name.removeprefix("split-0/") for name in objects(store)}
    assert there >= {"history.jsonl", "logs/status.json", "metrics.tsv"}
    assert not any(PurePosixPath(name).name.startswith((".", "run.lock", "socket")) for name in there)
    assert "status.json" not in there


def test_validate_and_test_upload_nothing(run_folder: Path, store: Path) -> None:
    write(run_folder / "a.txt", b"x")
    run = Run(Upload(str(store), folder=run_folder))
    run.state.called = "validate"
    run.fire("on_exception", exception=ValueError())
    run.handler.close()
    assert not store.exists()
    assert not list(run_folder.glob(".upload-*"))


@WAYS
def test_what_was_there_when_a_training_broke_off_is_uploaded(
    run_folder: Path, store: Path, wrap: Callable[[Any], Any]
) -> None:
    write(run_folder / "a.txt", b"x")
    run = Run(wrap(Upload(str(store), folder=run_folder)))
    run.fire("on_exception", exception=KeyboardInterrupt())
    run.handler.close()
    assert objects(store) == {"a.txt": b"x"}


def test_the_last_upload_waits_for_what_other_callbacks_write_in_the_background(run_folder: Path, store: Path) -> None:
    class Slow(Callback):
        def on_epoch_end(self, *, state: TrainerState) -> None:
            if state.current_epoch == 2:
                held.wait(5)
                write(run_folder / "late.pt", b"late")

    held = threading.Event()
    run = Run(background(Slow()), Upload(str(store), folder=run_folder))
    run.epoch()
    run.epoch()
    run.fire("on_train_end")
    assert objects(store) == {}
    held.set()
    run.handler.close()
    assert objects(store) == {"late.pt": b"late", "latest": b"late.pt\n"}


def test_as_a_task_it_waits_without_holding_up_other_tasks(
    run_folder: Path, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slept: list[float] = []

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        raise AssertionError("the loop was held up")

    class Slow(Callback):
        async def on_epoch_end(self) -> None:
            await anyio.sleep(0.02)
            write(run_folder / "late.txt", b"late")

    monkeypatch.setattr(upload, "time", SimpleNamespace(monotonic=time.monotonic, sleep=sleep))
    uploader = background(Upload(str(store), folder=run_folder), placement="task", backoff=0.05)
    run = Run(uploader, background(Slow()))
    run.epoch()
    run.end()
    assert objects(store) == {"late.txt": b"late"}
    assert slept == []


def test_what_is_never_written_is_an_error_at_the_end(
    run_folder: Path, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = threading.Event()

    class Hanging(Callback):
        def on_epoch_end(self) -> None:
            held.wait(5)

    monkeypatch.setattr(upload, "PATIENCE", 0.02)
    write(run_folder / "a.txt", b"x")
    run = Run(background(Hanging()), background(Upload(str(store), folder=run_folder), retries=1, backoff=0))
    run.epoch()
    run.fire("on_train_end")
    while run.handler.stats().lanes["upload"].failed == 0:
        held.wait(0.01)
    held.set()
    with pytest.raises(LaneError) as raised:
        run.handler.close()
    assert "is not uploaded: hanging" in str(raised.value.__cause__)
    assert objects(store) == {"a.txt": b"x"}


# ------------------------------------------------------------------------------------------- as it was at the event


def test_a_file_is_uploaded_as_it_was_at_the_event_though_it_was_replaced_since(run_folder: Path, store: Path) -> None:
    run = Run(Upload(str(store), folder=run_folder))
    write(run_folder / "a.txt", b"at the event")
    with hold(run.handler):
        run.epoch()
        write(run_folder / "a.txt", b"later")
    run.handler.flush()
    assert objects(store) == {"a.txt": b"at the event"}
    run.end()
    assert objects(store) == {"a.txt": b"later"}


def test_a_log_is_uploaded_as_it_was_at_the_event_though_it_was_appended_to_since(
    run_folder: Path, store: Path
) -> None:
    run = Run(Upload(str(store), folder=run_folder))
    with (run_folder / "log.jsonl").open("wb", buffering=0) as log, hold(run.handler):
        log.write(b"one\n" * 5000)
        run.epoch()
        log.write(b"two\n" * 5000)
    run.handler.flush()
    assert objects(store) == {"log.jsonl": b"one\n" * 5000}
    run.end()
    assert objects(store) == {"log.jsonl": b"one\n" * 5000 + b"two\n" * 5000}


@pytest.mark.parametrize("size", [3, 5, 8])
def test_a_file_that_was_rewritten_in_place_is_uploaded_as_it_is_now(run_folder: Path, store: Path, size: int) -> None:
    path = run_folder / "a.txt"
    path.write_bytes(b"aaaaa")
    run = Run(Upload(str(store), folder=run_folder))
    with hold(run.handler):
        run.epoch()
        path.write_bytes(b"b" * size)
        os.utime(path, ns=(1, 1))
    run.handler.flush()
    assert objects(store) == {"a.txt": b"b" * size}
    run.end()


def test_a_file_that_is_rewritten_while_it_is_read_is_never_published_torn(
    run_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = run_folder / "a.txt"
    path.write_bytes(b"a" * 100)
    staging = Staging()
    assert staging.stage(run_folder, "", ["*"], ".links", None)
    (staged,) = staging.waiting()
    from async_trainer.callbacks import staging as module

    real, rewrites = module._copy, iter(range(3))

    def copy(file: Any, target: Path, size: int) -> Any:
        found = real(file, target, size // 2)
        for number in rewrites:  # rewritten when half of it was read
            path.write_bytes(bytes([98 + number]) * 100)
            os.utime(path, ns=(number, number))
            break
        rest = target.read_bytes()
        found = real(file, target, size)
        target.write_bytes(rest + target.read_bytes()[len(rest) :])
        return hashlib.sha256(target.read_bytes()).hexdigest(), *found[1:]

    monkeypatch.setattr(module, "_copy", copy)
    monkeypatch.setattr(module, "_PAUSES", (0.0001,) * 5)
    copy_whole(staged, tmp_path / "copy")
    assert len(set((tmp_path / "copy").read_bytes())) == 1
    rewrites = iter(range(100))
    with pytest.raises(UploadError, match="rewritten in place again and again"):
        copy_whole(staged, tmp_path / "copy")


def test_where_there_can_be_no_hard_links_the_files_themselves_are_read(
    run_folder: Path, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise PermissionError("no links here")

    monkeypatch.setattr(os, "link", refuse)
    run = Run(Upload(str(store), folder=run_folder))
    write(run_folder / "a.txt", b"x")
    gone = write(run_folder / "gone.txt", b"x")
    with hold(run.handler):
        run.epoch()
        gone.unlink()
    run.end()
    assert objects(store) == {"a.txt": b"x"}


# ----------------------------------------------------------------------------------------------------- newest wins


def test_the_pointer_names_what_was_written_last_though_the_clock_went_back(run_folder: Path, store: Path) -> None:
    run = Run(Upload(store.as_uri(), folder=run_folder))
    for epoch, hours in ((1, 1), (2, 0), (3, -1)):
        path = write(run_folder / f"epoch-{epoch}.pt", b"weights")
        os.utime(path, ns=(0, time.time_ns() + hours * 3600 * 10**9))
        run.epoch()
        run.handler.flush()
        assert (store / "latest").read_text() == f"epoch-{epoch}.pt\n"
    run.end()


def test_two_to_one_place_leave_each_other_s_alone(run_folder: Path, store: Path) -> None:
    weights = Upload(store.as_uri(), folder=run_folder, files=["*.pt"])
    logs = Upload(store.as_uri(), folder=run_folder, files=["*.jsonl"])
    run = Run(weights, logs)
    for epoch in (1, 2, 3):
        write(run_folder / f"epoch-{epoch}.pt", b"weights")
        write(run_folder / f"epoch-{epoch}.jsonl", b"{}")
        with hold(run.handler):  # both have staged before one uploads
            run.epoch()
    run.end()
    names = {f"epoch-{epoch}.{kind}" for epoch in (1, 2, 3) for kind in ("pt", "jsonl")}
    assert set(objects(store)) == {*names, "latest"}


def test_places_that_differ_are_known_by_other_names(tmp_path: Path) -> None:
    folders = [Upload(str(tmp_path / name)) for name in ("a#1", "a#2")]
    stores = [Upload("s3://bucket", options={"endpoint_url": url}) for url in ("http://one", "http://two")]
    changed = [Upload("s3://bucket", options={"endpoint_url": "http://one", "secret": word}) for word in ("x", "y")]
    assert len({one._home for one in (*folders, *stores)}) == 4
    assert changed[0]._home == changed[1]._home == stores[0]._home


def test_of_the_versions_that_wait_only_the_newest_goes(
    run_folder: Path, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put: list[tuple[str, bytes]] = []
    real = ObjectStore.put
    monkeypatch.setattr(
        ObjectStore,
        "put",
        lambda self, name, source: (put.append((name, source.read_bytes())), real(self, name, source)),
    )
    run = Run(Upload(str(store), folder=run_folder))
    with hold(run.handler):
        for number in range(5):
            write(run_folder / "last.pt", b"%d" % number)
            write(run_folder / "same.txt", b"same")
            run.epoch()
    run.handler.flush()
    assert sorted(put) == [("last.pt", b"4"), ("same.txt", b"same")]
    assert run.handler.state_dict()["upload"]["objects"]["last.pt"]["version"] == 1
    run.end()
    assert len(put) == 2


def test_a_version_that_gives_way_while_it_is_copied_is_not_sent(
    run_folder: Path, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uploader = Upload(str(store), folder=run_folder)
    real = copy_whole
    sent: list[bytes] = []

    def copy(staged: Any, target: Path) -> str:
        digest = real(staged, target)
        if not sent:
            sent.append(b"")
            write(run_folder / "a.txt", b"new")
            uploader._stage(None, TrainerState())
        return digest

    monkeypatch.setattr(upload, "copy_whole", copy)
    monkeypatch.setattr(ObjectStore, "put", lambda self, name, source: sent.append(source.read_bytes()))
    write(run_folder / "a.txt", b"old")
    uploader.on_epoch_end(state=TrainerState())
    uploader.on_epoch_end(state=TrainerState())
    assert sent == [b"", b"new"]


# -------------------------------------------------------------------------------------------------- the pointer


def test_the_pointer_is_written_after_what_it_names_and_not_if_that_failed(
    run_folder: Path, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = ObjectStore.put_text

    def put_text(self: ObjectStore, name: str, text: str) -> None:
        assert (store / text.strip()).read_bytes() == b"x"
        real(self, name, text)

    monkeypatch.setattr(ObjectStore, "put_text", put_text)
    run = Run(background(Upload(str(store), folder=run_folder), retries=0))
    write(run_folder / "epoch-1.pt", b"x")
    run.epoch()
    run.handler.flush()
    (store / "epoch-2.pt").mkdir()  # nothing can be moved over it
    write(run_folder / "epoch-2.pt", b"x")
    write(run_folder / "other.txt", b"y")
    run.epoch()
    run.handler.flush()
    assert (store / "latest").read_text() == "epoch-1.pt\n"
    assert (store / "other.txt").read_bytes() == b"y"
    (store / "epoch-2.pt").rmdir()
    run.epoch()  # it is tried again with the next event
    with pytest.raises(LaneError, match="upload"):
        run.end()
    assert (store / "latest").read_text() == "epoch-2.pt\n"


# -------------------------------------------------------------------------------------------------- failures


def test_a_store_that_fails_a_few_times_is_tried_again(
    run_folder: Path, memory: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    failures = iter(range(3))
    real = type(memory).pipe_file

    def pipe_file(self: Any, path: str, value: bytes, **options: Any) -> None:
        for _ in failures:
            raise OSError("503 slow down")
        real(self, path, value, **options)

    monkeypatch.setattr(type(memory), "pipe_file", pipe_file)
    write(run_folder / "a.txt", b"x")
    run = Run(background(Upload("memory://runs/1", folder=run_folder), backoff=0.001))
    run.epoch()
    run.end()
    assert memory.cat("/runs/1/a.txt") == b"x"


def test_what_fails_to_the_end_is_raised_there_without_credentials(
    run_folder: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # nobody listens there
        url = f"ftp://jane:hun%2Fter2@127.0.0.1:{taken.getsockname()[1]}/runs?token=t0psecret"
        uploader = Upload(url, folder=run_folder, options={"acct": "s3cr3t"})
        write(run_folder / "a.txt", b"x")
        run = Run(background(uploader, retries=1, backoff=0))
        run.epoch()
        with caplog.at_level(logging.DEBUG), pytest.raises(LaneError) as raised:
            run.handler.close()
    error = raised.value.__cause__
    assert isinstance(error, UploadError)
    assert "ConnectionRefused" in str(error)
    shown = (
        f"{raised.value} {error} {error.__cause__} {error.__context__} {uploader!r} {uploader.store!r} {caplog.text}"
    )
    shown += str(uploader.state_dict())
    for secret in ("jane", "hun%2Fter2", "hun/ter2", "t0psecret", "s3cr3t"):
        assert secret not in shown
    assert repr(uploader) == f"Upload('ftp://***@{url.partition('@')[2].partition('?')[0]}', files=['**/*'])"
    assert pickle.loads(pickle.dumps(uploader)).store.url == url


def test_an_error_that_tells_credentials_is_told_without_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def connect(self: ObjectStore) -> None:
        raise PermissionError("jane may not use hun/ter2 (hun%2Fter2, s3cr3t) at http://proxy:pass@host/x?y")

    monkeypatch.setattr(ObjectStore, "_connect", connect)
    place = ObjectStore("memory://jane:hun%2Fter2@bucket", {"inner": {"password": "s3cr3t"}})
    with pytest.raises(UploadError) as raised:
        place.put("a.txt", tmp_path)
    assert str(raised.value) == (
        "a.txt could not be uploaded to memory://***@bucket: PermissionError: *** may not use *** (***, ***) at "
        "http://***@host/x?***"
    )
    assert raised.value.__cause__ is None
    assert raised.value.__context__ is None
    with pytest.raises(UploadError) as raised:
        ObjectStore("memory://bucket", {}).put("a.txt", tmp_path)
    assert isinstance(raised.value.__cause__, PermissionError)  # nothing to hide


def test_a_key_with_a_slash_is_not_shown_either() -> None:
    assert str(ObjectStore("memory://AKIA:ab/cd@bucket/x", {})) == "memory://***@bucket/x"
    assert str(ObjectStore("memory://bucket/x", {})) == "memory://bucket/x"


def test_a_place_where_files_show_while_they_are_written_gets_them_by_another_name(
    run_folder: Path, store: Path
) -> None:
    write(run_folder / "a.txt", b"x")
    place = ObjectStore(store.as_uri(), {})
    filesystem = fsspec.filesystem("file")
    seen: list[str] = []

    def put(path: str, content: Any) -> None:
        seen.append(Path(path).name)
        filesystem.pipe_file(path, content)

    object_store._move_into_place(filesystem, f"{store}/a.txt", put, b"x")
    assert objects(store) == {"a.txt": b"x"}
    assert seen[0].startswith(".a.txt.")

    def fail(path: str, content: Any) -> None:
        filesystem.pipe_file(path, b"ha")
        raise OSError("broken off")

    with pytest.raises(OSError, match="broken off"):
        object_store._move_into_place(filesystem, f"{store}/a.txt", fail, b"half")
    assert objects(store) == {"a.txt": b"x"}
    assert place.local == store


# ------------------------------------------------------------------------------------------------- resume


def test_a_resumed_run_uploads_what_changed_and_nothing_twice(
    run_folder: Path, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(run_folder / "a.pt", b"a")
    write(run_folder / "b.txt", b"b")
    first = Run(Upload(str(store), folder=run_folder))
    first.epoch()
    states = first.handler.state_dict()
    write(run_folder / "b.txt", b"b2")
    first.epoch()
    first.handler.close()  # killed then, without what a training does at its end
    put: list[str] = []
    real = ObjectStore.put
    monkeypatch.setattr(ObjectStore, "put", lambda self, name, source: (put.append(name), real(self, name, source)))
    second = Run(Upload(str(store), folder=run_folder))
    second.handler.load_state_dict(states)
    write(run_folder / "c.txt", b"c")
    second.epoch()
    second.end()
    assert put == ["c.txt"]
    assert objects(store) == {"a.pt": b"a", "b.txt": b"b2", "c.txt": b"c", "latest": b"a.pt\n"}


def test_what_was_sent_after_the_state_is_known_and_what_was_under_way_is_sent_again(
    run_folder: Path, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(run_folder / "a.txt", b"a")
    write(run_folder / "log.txt", b"1")
    write(run_folder / "old.pt", b"old")
    first = Run(Upload(str(store), folder=run_folder))
    first.epoch()
    states = first.handler.state_dict()
    write(run_folder / "log.txt", b"12")
    write(run_folder / "b.txt", b"b")
    write(run_folder / "new.pt", b"new")
    first.epoch()
    first.handler.flush()
    real = ObjectStore.put

    def killed(self: ObjectStore, name: str, source: Path) -> None:
        real(self, name, source)
        raise OSError("and the process is killed before it has noted that")

    monkeypatch.setattr(ObjectStore, "put", killed)
    write(run_folder / "a.txt", b"a2")
    first.handler.add_callbacks([])
    upload_ = first.handler.attached[0].callback
    upload_._stage(None, first.state)
    with pytest.raises(OSError, match="killed"):
        upload_._upload(None, first.state)
    first.handler.close()

    put: list[str] = []
    monkeypatch.setattr(ObjectStore, "put", lambda self, name, source: (put.append(name), real(self, name, source)))
    second = Run(Upload(str(store), folder=run_folder))
    second.handler.load_state_dict(states)
    write(run_folder / "log.txt", b"1")  # cut back to the state: the object is not
    (run_folder / "new.pt").unlink()
    second.epoch()
    second.end()
    assert sorted(put) == ["a.txt", "log.txt"]
    assert objects(store) == {
        "a.txt": b"a2", "b.txt": b"b", "log.txt": b"1", "old.pt": b"old", "new.pt": b"new", "latest": b"old.pt\n"
    }  # fmt: skip
    assert not list(run_folder.glob(".upload*"))


def test_a_new_training_knows_nothing_of_what_an_earlier_one_sent(
    run_folder: Path, store: Path, tmp_path: Path
) -> None:
    write(run_folder / "a.txt", b"a")
    first = Run(Upload(str(store), folder=run_folder))
    first.epoch()
    first.handler.close()
    (store / "a.txt").unlink()  # another hand has emptied the store
    second = Run(Upload(str(store), folder=run_folder))
    second.epoch()
    second.end()
    assert objects(store) == {"a.txt": b"a"}


def test_what_a_killed_process_left_is_cleared_away(run_folder: Path, store: Path) -> None:
    uploader = Upload(str(store), folder=run_folder)
    left = run_folder / uploader._home / "1-1"
    write(left, b"huge")
    write(run_folder / "a.txt", b"x")
    run = Run(uploader)
    run.epoch()
    run.end()
    assert not left.exists()


def test_it_does_the_same_however_it_runs() -> None:
    def make(directory: Path) -> Upload:
        for name in ("checkpoints/best.pt", "logs/log.txt"):
            write(directory / "run" / name, name.encode())
        return Upload(str(directory / "store"), folder=directory / "run")

    with pytest.warns(UserWarning, match="not run in a process"):
        check_callback(make)


def test_it_is_refused_a_process_since_it_waits_for_callbacks_of_this_one(store: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"Upload can't be sent to a process.*placement='thread'"):
        CallbacksHandler([background(Upload(str(store)), placement="process")])


@WAYS
def test_it_works_in_a_whole_training_with_checkpoints(
    run_folder: Path, store: Path, wrap: Callable[[Any], Any]
) -> None:
    checkpoints = ModelCheckpoint(epochs=[1, 2], last=True, folder=run_folder)
    report = play([wrap(checkpoints), wrap(Upload(str(store), folder=run_folder))])
    assert not report.failed
    there = objects(store)
    pointed = there.pop("latest").decode().strip()
    assert pointed == "last.pt"
    assert there == objects(run_folder)


# -------------------------------------------------------------------------------------------------- S3, over HTTP


def listed(client: Any, name: str) -> dict[str, bytes]:
    found = client.list_objects_v2(Bucket=name).get("Contents", [])
    return {one["Key"]: client.get_object(Bucket=name, Key=one["Key"])["Body"].read() for one in found}


def test_s3_holds_the_files_and_the_pointer(run_folder: Path, s3: str, client: Any) -> None:
    client.create_bucket(Bucket="runs")
    run = Run(Upload("s3://runs/digits/1", folder=run_folder, options={"endpoint_url": s3}))
    big = bytes(range(256)) * 4096 * 6  # 6 MiB
    for number in range(2):
        write(run_folder / "checkpoints" / f"epoch-{number}.pt", big + b"%d" % number)
        write(run_folder / "logs" / "log.txt", b"%d" % number)
        run.epoch()
    run.end()
    assert listed(client, "runs") == {
        "digits/1/checkpoints/epoch-0.pt": big + b"0",
        "digits/1/checkpoints/epoch-1.pt": big + b"1",
        "digits/1/logs/log.txt": b"1",
        "digits/1/latest": b"checkpoints/epoch-1.pt\n",
    }


@pytest.mark.slow
def test_killed_between_uploads_and_resumed_s3_has_each_object_as_if_nothing_had_happened(
    tmp_path: Path, s3: str, client: Any
) -> None:
    whole = trainer(tmp_path / "whole", steps=None)
    whole.train(split(), computational())
    client.create_bucket(Bucket="killed")
    client.put_bucket_versioning(Bucket="killed", VersioningConfiguration={"Status": "Enabled"})
    command = [sys.executable, "-m", "tests.callbacks.upload_child", str(tmp_path / "maps"), s3]
    codes = [subprocess.run([*command, str(kill_at)], timeout=120).returncode for kill_at in (4, 1, 0)]
    assert codes == [-signal.SIGKILL, -signal.SIGKILL, 0]

    there = {name.removeprefix("run/split-0/"): content for name, content in listed(client, "killed").items()}
    assert there.pop("latest") == b"checkpoints/final.pt\n"
    there.pop("logs/metrics.jsonl")
    for folder in (tmp_path / "maps", tmp_path / "whole"):
        files = objects(folder / "split-0" / "checkpoints")
        assert {name.removeprefix("checkpoints/"): content for name, content in there.items()} == files
    log = listed(client, "killed")["run/split-0/logs/metrics.jsonl"]
    assert log == (tmp_path / "whole" / "split-0" / "logs" / "metrics.jsonl").read_bytes()

    versions = client.list_object_versions(Bucket="killed")["Versions"]
    sent = sorted((one["Key"], one["LastModified"], one["ETag"]) for one in versions if "latest" not in one["Key"])
    twice = [one for one, other in pairwise(sent) if (one[0], one[2]) == (other[0], other[2])]
    assert len(twice) <= 2  # what was under way at a kill that came after the sending


def test_a_bucket_that_is_not_there_at_first_fails_and_is_tried_again(
    run_folder: Path, s3: str, client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    attempts: list[str] = []
    real = ObjectStore.put

    def put(self: ObjectStore, name: str, source: Path) -> None:
        attempts.append(name)
        if len(attempts) == 3:
            client.create_bucket(Bucket="late")
        real(self, name, source)

    monkeypatch.setattr(ObjectStore, "put", put)
    write(run_folder / "a.pt", b"x")
    uploader = Upload("s3://late", folder=run_folder, options={"endpoint_url": s3})
    run = Run(background(uploader, backoff=0.01))
    run.epoch()
    run.end()
    assert attempts == ["a.pt"] * 3
    assert listed(client, "late") == {"a.pt": b"x", "latest": b"a.pt\n"}


# -------------------------------------------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"url": ""}, "url must be a URL"),
        ({"url": 3}, "url must be a URL such as 's3://bucket/prefix', not int"),
        ({"url": "memori://x"}, "fsspec knows no protocol 'memori'; did you mean 'memory'"),
        ({"files": []}, "files must be patterns"),
        ({"files": 3}, "files must be patterns"),
        ({"files": ["/etc/*"]}, "give a folder="),
        ({"files": ["../*"]}, "give a folder="),
        ({"folder": 3}, "folder must be a path"),
        ({"options": "key"}, "options must be a dict"),
        ({"optoins": {}}, "did you mean 'options'"),
    ],
)
def test_arguments_that_can_not_work_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        Upload(**{"url": "memory://x", **arguments})


def test_without_s3fs_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(_registry, "s3", raising=False)
    monkeypatch.setattr(object_store, "find_spec", lambda name: None)
    with pytest.raises(ConfigurationError, match=r"needs s3fs: pip install 'async_trainer\[s3\]'") as raised:
        Upload("s3://key:secret@bucket")
    assert "secret" not in str(raised.value)


def test_a_run_without_maps_says_so_at_its_start() -> None:
    with pytest.raises(ConfigurationError, match="give a folder="):
        Upload("memory://x").check_training(state=TrainerState(split_idx=0))
