"""Upload: what a run writes, copied to a place that outlives the machine."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
import time
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from async_trainer.callback import Callback
from async_trainer.callbacks.object_store import ObjectStore, UploadError
from async_trainer.callbacks.run_folder import given_folder, split_folder
from async_trainer.callbacks.sent import Sent
from async_trainer.callbacks.staging import Staged, Staging, copy_whole, find_files
from async_trainer.errors import ConfigurationError
from async_trainer.files.weights import SUFFIXES
from async_trainer.runtime.barrier import Barrier
from async_trainer.snapshot import capture
from async_trainer.suggest import refuse_unknown_options
from async_trainer.train.state import TrainerState

logger = logging.getLogger("async_trainer")

LATEST = "latest"
PATIENCE = 20.0
"""Seconds that the last upload of a run waits for what other callbacks still write, per attempt."""


class Upload(Callback):
    """Uploads the files of a run that are new or changed, at the end of each epoch and of the training.

    ::

        Upload("s3://bucket/digits", files=["checkpoints/*", "logs/*.jsonl"])

    Each object is there as a whole, or as it was before: an upload that breaks off, and a file that is rewritten while
    it is read, leave no trace under its name. A file is uploaded as it was at the event, which costs the loop a hard
    link; of one that was rewritten in place since, which keeps nothing of before, what it is now, once it is left
    alone. (A file that is half rewritten at the event itself looks like any other: write to another name, and move
    that into place.) If it changes faster than it is uploaded, only the newest version is. The object ``latest`` names
    the newest checkpoint, and is written after it.

    What other callbacks write in the background after an event goes with the next; the last upload waits for them, if
    the run brings ``callbacks`` (as a Trainer does). What failed is tried again, at last with the next event; what
    could not be uploaded at all is raised at the end. A resumed training uploads what has changed since its state, and
    nothing twice but what was under way when it was killed: what is sent is noted in a hidden file beside the files,
    until the training has ended.

    Args:
        url: where to: any that fsspec knows (``s3://bucket/prefix``, ``file:///mnt/backup``), or a local folder. An
            object's name is ``split-<index>/`` and the file's path in the folder of the split. Credentials in it are
            never shown.
        files: which files, as patterns relative to that folder. Hidden files (also what is still
            being written) are left out, and so are sockets, ``run.lock``, and the run's ``status.json``, which tells
            how it is now: a copy would go on saying "running". Default: all the others.
        folder: upload the files of this folder instead, under their paths in it.
        options: for fsspec: ``{"endpoint_url": "http://127.0.0.1:9000"}``. Never shown.

    Raises:
        ConfigurationError: an argument that can't work; what the URL takes is not installed. At the start of a
            training: no folder is given, and the run has no maps.
    """

    stays_here = True  # in no process of its own: it stages on the training thread, and waits for other lanes

    @refuse_unknown_options
    def __init__(
        self,
        url: str,
        *,
        files: Iterable[str] = ("**/*",),
        folder: str | os.PathLike[str] | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        if not isinstance(url, str) or not url:
            raise ConfigurationError(
                f"Upload: url must be a URL such as 's3://bucket/prefix', not {type(url).__name__}"
            )
        if options is not None and not isinstance(options, Mapping):
            raise ConfigurationError(f"Upload: options must be a dict for fsspec, not {type(options).__name__}")
        self.files = check_patterns(files)
        self.folder = given_folder(self, folder)
        self.store = ObjectStore(url, options or {})
        of = "\0".join([self.store.place, *self.files])  # another Upload's is another
        self._home = f".upload-{hashlib.sha256(of.encode(errors='surrogateescape')).hexdigest()[:8]}"
        self._staging = Staging()
        self._staged_at_events = False  # by the training thread; inline, by the hooks themselves
        self._is_told = False  # that there is a file of yours in the pointer's place
        self._objects: dict[str, dict[str, Any]] = {}  # by name: what is there
        self._latest: dict[str, str] = {}  # by prefix: the checkpoint that is named there
        self._newest: dict[str, tuple[int, int, str]] = {}  # by prefix: the checkpoint that is to be named, and its age
        self._sent: dict[Path, Sent] = {}  # by folder, in which the notes are
        self._is_loaded = False

    def __repr__(self) -> str:
        return f"Upload({str(self.store)!r}, files={list(self.files)!r})"

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_staging": Staging(), "_staged_at_events": False, "_sent": {}}

    @property
    def background(self) -> Mapping[str, Any]:  # type: ignore[override]  # each instance has its own ``when``
        """In the background by default: what fails is tried four times more, then raised at the end."""
        at_end = self._stage_at_end
        return {
            "on_error": "raise_at_end",
            "retries": 4,
            "backoff": 1.0,
            "when": {"on_epoch_end": self._stage_at_event, "on_train_end": at_end, "on_exception": at_end},
            "select": {"callbacks": cut},
        }

    # ----------------------------------------------------------------- the training thread, if run in the background

    def _stage_at_event(self, *, state: TrainerState, maps: Any = None, **live: Any) -> bool:
        self._staged_at_events = True
        return self._stage(maps, state)

    def _stage_at_end(self, *, state: TrainerState, maps: Any = None, **live: Any) -> bool:
        self._staged_at_events = True
        if not _is_training(state):
            return False
        self._stage(maps, state)
        return True

    # ------------------------------------------------------------------------------------------------------ the hooks

    def check_training(self, **arguments: Any) -> None:
        """Refuse a training without files to upload."""
        self._place(arguments.get("maps"), arguments.get("state"))
        if arguments.get("callbacks") is None:
            logger.warning(
                "Upload: this training starts without callbacks=..., the handler: what other callbacks write in the "
                "background after the last event of this one is not waited for, and not uploaded"
            )

    def on_epoch_end(self, *, maps: Any = None, state: TrainerState) -> None:
        if not self._staged_at_events:
            self._stage(maps, state)
        self._upload(maps, state)

    def on_train_end(self, *, maps: Any = None, state: TrainerState, callbacks: Any = None) -> None:
        self._upload_all(maps, state, callbacks)
        folder = self._place(maps, state)[0]
        self._sent.pop(folder, self._sent_from(folder)).end()
        missed = [pattern for pattern in self.files if not any(find_files(folder, [pattern], self.store.local))]
        if missed:
            logger.warning("Upload: no file in %s matches files=%r", folder, missed)

    def on_exception(self, *, maps: Any = None, state: TrainerState, callbacks: Any = None) -> None:
        if _is_training(state):
            self._upload_all(maps, state, callbacks)

    def _upload_all(self, maps: Any, state: TrainerState, callbacks: Any) -> None:
        late = wait_for(callbacks)
        self._stage(maps, state)  # of what was written in the background since the event
        self._upload(maps, state)
        if late:
            raise UploadError(f"other callbacks still write, and what they write is not uploaded: {', '.join(late)}")

    def _sent_from(self, folder: Path) -> Sent:
        return Sent(folder / f"{self._home}.sent")

    def _notes(self, folder: Path) -> Sent:
        """What was sent from ``folder``; at first, of a resumed run, what was sent after its state is recalled."""
        if folder in self._sent:
            return self._sent[folder]
        sent = self._sent_from(folder)
        if self._is_loaded:
            for name, known in sent.recall().items():
                if known is None:
                    self._objects.pop(name, None)
                else:
                    self._objects[name] = known
        else:
            sent.begin()
        self._sent[folder] = sent
        return sent

    def _stage(self, maps: Any, state: TrainerState) -> bool:
        folder, prefix = self._place(maps, state)
        return self._staging.stage(folder, prefix, self.files, self._home, self.store.local)

    def _place(self, maps: Any, state: TrainerState | None) -> tuple[Path, str]:
        """The folder of the files, and what their objects' names begin with."""
        if self.folder is not None:
            return self.folder, ""
        folder: Path = split_folder(self, maps, state).path
        return folder, f"{folder.name}/"

    def _upload(self, maps: Any, state: TrainerState) -> None:
        folder, prefix = self._place(maps, state)
        failures: list[OSError] = []
        for staged in self._staging.waiting():
            try:
                self._upload_one(staged, folder / self._home, self._notes(folder))
            except OSError as error:  # one object must not stop the others
                if not self._staging.is_newest(staged):  # its link went when a newer version took its place
                    continue
                if isinstance(error, FileNotFoundError) and not staged.linked:  # the file itself is gone
                    self._staging.done(staged)
                    continue
                failures.append(error)
        self._point(prefix)
        if failures:
            raise failures[0]

    def _upload_one(self, staged: Staged, home: Path, sent: Sent) -> None:
        home.mkdir(exist_ok=True)
        copy = home / f"{staged.path.name}.copy"
        try:
            digest = copy_whole(staged, copy)
            known = self._objects.get(staged.name)
            if not self._staging.is_newest(staged):
                return
            if known is None or known["sha256"] != digest:
                sent.note(staged.name, None)
                self.store.put(staged.name, copy)
                known = {"version": known["version"] + 1 if known else 1, "sha256": digest}
                self._objects[staged.name] = known
                sent.note(staged.name, known)
        finally:
            copy.unlink(missing_ok=True)
        self._staging.done(staged)
        path = PurePosixPath(staged.name)
        if path.suffix in SUFFIXES:
            prefix = "" if self.folder is not None else f"{path.parts[0]}/"
            self._newest[prefix] = max(self._newest.get(prefix, (0, 0, "")), staged.age)

    def _point(self, prefix: str) -> None:
        newest = self._newest.get(prefix, (0, 0, ""))[-1].removeprefix(prefix)
        if prefix + LATEST in self._objects:
            if not self._is_told:
                self._is_told = True
                logger.warning("Upload: %r is a file of yours; it is not made to name the newest checkpoint", LATEST)
            return
        if newest and self._latest.get(prefix) != newest:
            self.store.put_text(prefix + LATEST, f"{newest}\n")
            self._latest[prefix] = newest

    def state_dict(self) -> dict[str, Any]:
        """``objects``: the version and SHA-256 of each that is there; ``latest``: what that names, by prefix."""
        return {"objects": {name: dict(known) for name, known in self._objects.items()}, "latest": dict(self._latest)}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Go on from those objects: what is the same is not uploaded again."""
        self._objects = {name: dict(known) for name, known in state_dict["objects"].items()}
        self._latest = {}  # it may name a later one, which is no more
        self._newest = {}
        self._sent, self._is_loaded = {}, True


def cut(callbacks: Any) -> Barrier | None:
    """A mark behind all that the callbacks were given so far. The training thread."""
    if not hasattr(callbacks, "barrier"):
        return None
    barrier: Barrier = callbacks.barrier()
    return barrier


def wait_for(callbacks: Any) -> list[str]:
    """Wait until the other callbacks have handled what came before; returns the lanes that have not."""
    if isinstance(callbacks, Barrier):
        # As a task it must not hold up the loop, on which others may have to finish: another attempt comes later.
        deadline = time.monotonic() + (0 if _on_event_loop() else PATIENCE)
        while not callbacks.done and time.monotonic() < deadline:
            time.sleep(0.005)
        return [lane.name for lane in callbacks.pending]
    if hasattr(callbacks, "flush"):  # inline: the handler itself
        return [*callbacks.flush().stalled]
    return []


def _on_event_loop() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


def _is_training(state: Any) -> bool:
    return getattr(state, "called", None) not in ("validate", "test")


def check_patterns(files: Any, where: str = "Upload: files") -> tuple[str, ...]:
    patterns = (files,) if isinstance(files, str) else tuple(files) if isinstance(files, Iterable) else ()
    wanted = f"{where} must be patterns relative to the folder of the split, such as ['checkpoints/*']"
    if not patterns or not all(isinstance(one, str) and one for one in patterns):
        raise ConfigurationError(f"{wanted}, not {files!r}")
    for one in patterns:
        if PurePosixPath(one).is_absolute() or ".." in PurePosixPath(one).parts:
            raise ConfigurationError(f"{wanted}, not {one!r}: for files elsewhere, give a folder=")
    return patterns


capture.register(Barrier)(lambda barrier: barrier)
