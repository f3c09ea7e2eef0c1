"""Objects under a URL: each there as a whole, or as it was before. Whatever fsspec knows can be the place."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from async_trainer.callbacks.secrets import option_secrets, redacted, shown, url_secrets
from async_trainer.callbacks.undisturbed import undisturbed
from async_trainer.errors import ConfigurationError
from async_trainer.files.atomic import atomic_write
from async_trainer.suggest import suggestion

_WHOLE_WHEN_COMPLETE = frozenset({"s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "adl", "oss", "oci", "hf"})
"""An object appears there, or changes, when its upload is complete; so their documentation says."""
_EXTRAS = {"s3": "s3", "s3a": "s3"}

_FEW = {"retries": {"max_attempts": 2}}
"""For botocore, in place of 5: s3fs tries again itself, and the lane does; all three would take minutes."""

_numbers = itertools.count()


class UploadError(OSError):
    """An object could not be uploaded. Its text holds no credentials; it may go better the next time."""


class ObjectStore:
    """A place for objects: ``s3://bucket/prefix``, ``file:///mnt/backup``, ``memory://``, or a local path.

    Any thread. The connection is made at first use, and is not pickled.

    Args:
        url: what is before each object's name.
        options: for fsspec: credentials, ``endpoint_url``.

    Raises:
        ConfigurationError: nothing is known of such URLs, or what it takes is not installed.
    """

    def __init__(self, url: str, options: Mapping[str, Any]) -> None:
        self.protocol = url.partition("://")[0] if "://" in url else "file"
        self.url = url if "://" in url else str(Path(url).absolute())
        self.options = dict(options)
        _check_protocol(self.protocol, str(self))
        if self.local is None:
            from fsspec import get_filesystem_class  # type: ignore[import-untyped]

            with undisturbed():
                get_filesystem_class(self.protocol)
        self._secrets = sorted({*url_secrets(self.url), *option_secrets("", self.options)})
        self._filesystem: Any = None
        self._root = ""
        self._refused = False  # the credentials that were there then

    def __str__(self) -> str:
        return shown(self.url)

    def __repr__(self) -> str:
        return f"<ObjectStore {self}>"

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_filesystem": None}

    @property
    def local(self) -> Path | None:
        """The folder, if it is one of this machine."""
        if self.protocol not in ("file", "local"):
            return None
        return Path(unquote(self.url.partition("://")[2]) if "://" in self.url else self.url).absolute()

    @property
    def place(self) -> str:
        """Where it is, as a text that no other place has: without credentials, which may change."""
        return str(self.local or f"{self} {shown(str(self.options.get('endpoint_url')))}")

    def put(self, name: str, source: Path) -> None:
        """Upload the file ``source``, which nobody changes meanwhile.

        Raises:
            UploadError: it failed; what was there under that name before still is.
        """
        self._do(name, lambda filesystem, path: self._put(filesystem, path, source))

    def put_text(self, name: str, text: str) -> None:
        """Make a small object of ``text``.

        Raises:
            UploadError: it failed; what was there under that name before still is.
        """
        content = text.encode()
        if self.local is not None or self.protocol in _WHOLE_WHEN_COMPLETE or self.protocol == "memory":
            self._do(name, lambda filesystem, path: _write(filesystem, path, content, self.local is not None))
        else:
            self._do(name, lambda filesystem, path: _move_into_place(filesystem, path, filesystem.pipe_file, content))

    def _put(self, filesystem: Any, path: str, source: Path) -> None:
        if self.local is not None:
            with source.open("rb") as file, atomic_write(Path(path)) as target:
                while block := file.read(1 << 20):
                    target.write(block)
        elif self.protocol == "memory":  # its put_file makes the object first, and fills it then
            filesystem.pipe_file(path, source.read_bytes())
        elif self.protocol in _WHOLE_WHEN_COMPLETE:
            filesystem.put_file(str(source), path)
        else:
            _move_into_place(filesystem, path, lambda there, file: filesystem.put_file(file, there), str(source))

    def _do(self, name: str, action: Callable[[Any, str], None]) -> None:
        try:
            filesystem = self._connect()
            action(filesystem, f"{self._root}/{name}" if self._root else name)
            return
        except Exception as error:
            if isinstance(error, PermissionError):  # a token may have expired: what the environment has next is tried
                self._filesystem, self._refused = None, True
            text = redacted(f"{type(error).__name__}: {error}", self._secrets)
            # A cause would bring its own text, and what it was called with, into each log.
            cause = None if self._secrets else error
        raise UploadError(f"{name} could not be uploaded to {self}: {text}") from cause

    def _connect(self) -> Any:
        if self.local is not None:
            self._root = str(self.local)
        elif self._filesystem is None:
            from fsspec.core import url_to_fs  # type: ignore[import-untyped]

            anew = {"skip_instance_cache": True} if self._refused else {}
            patient = {"config_kwargs": _FEW} if self.protocol in _EXTRAS else {}
            self._filesystem, root = url_to_fs(self.url, **{**patient, **self.options, **anew})
            self._root = root.rstrip("/")
        return self._filesystem


def _write(filesystem: Any, path: str, content: bytes, local: bool) -> None:
    if local:
        with atomic_write(Path(path)) as file:
            file.write(content)
    else:
        filesystem.pipe_file(path, content)


def _move_into_place(filesystem: Any, path: str, put: Callable[[str, Any], Any], content: Any) -> None:
    """For places where a file can be seen while it is written (sftp, smb, hdfs)."""
    folder, _, name = path.rpartition("/")
    partial = f"{folder}/.{name}.{os.getpid()}-{next(_numbers)}.partial"
    filesystem.makedirs(folder, exist_ok=True)
    try:
        put(partial, content)
        filesystem.mv(partial, path)
    except BaseException:
        if filesystem.exists(partial):
            filesystem.rm_file(partial)
        raise


def _check_protocol(protocol: str, url: str) -> None:
    from fsspec.registry import known_implementations, registry  # type: ignore[import-untyped]

    if protocol in registry:
        return
    if protocol not in known_implementations:
        hint = suggestion(protocol, known_implementations)
        raise ConfigurationError(f"Upload: url={url!r}: fsspec knows no protocol {protocol!r}{hint}")
    library = known_implementations[protocol]["class"].partition(".")[0]
    if find_spec(library) is None:
        remedy = f"async_trainer[{_EXTRAS[protocol]}]" if protocol in _EXTRAS else library
        raise ConfigurationError(f"Upload: url={url!r} needs {library}: pip install '{remedy}'")
