"""Webhook: a message when a training ends, or fails."""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any, ClassVar
from urllib.parse import urlsplit

import anyio

from async_trainer.callback import Callback
from async_trainer.callbacks.outbox import SinkError, asked_for
from async_trainer.callbacks.secrets import option_secrets, redacted
from async_trainer.callbacks.undisturbed import undisturbed
from async_trainer.callbacks.values import last_values, number
from async_trainer.errors import ConfigurationError, what_ended
from async_trainer.suggest import refuse_unknown_options
from async_trainer.train.state import TrainerState

REQUEST_SECONDS = 10.0
FIRST_PAUSE = 0.5
LONGEST_PAUSE = 15.0
LONGEST_VALUE = 200  # characters, of a metric that is no number
_LOGGERS = ("httpx", *(f"httpcore.{part}" for part in ("connection", "http11", "http2", "proxy", "socks")))

Message = Mapping[str, Any]


class Webhook(Callback):
    """Posts a message, as JSON, when a training ends or fails: to a chat, a pager, a scheduler.

    ::

        Webhook("https://hooks.example.com/secret/path", message=lambda about: {"text": about["text"]})

    Without ``message`` it is all that there is to say: ``text`` (a sentence), ``status`` (``finished``, ``failed``,
    ``interrupted``), ``run`` (the folder, or None), ``split``, ``epoch``, ``step``, ``seconds`` since the start,
    ``metrics`` (of the last validation), ``error`` (None; of a failure, type and text).

    A server that refuses connections, hangs, or answers 408, 425, 429 or 5xx is asked again, with longer and longer
    pauses or when it says (``Retry-After``), for ``patience`` seconds; what could not be delivered by then is raised at
    the end. The answer to a message may be lost: it may come twice, with the same ``Idempotency-Key``. Who posts
    where it may not (401, 404) is told at once. No message, log, error or repr has more of the URL than its host, or
    anything of the headers.

    It runs as a task of the pool's event loop: while it waits, nothing else does.

    Args:
        url: ``https://...``, where to post.
        headers: further ones, or a function that returns them, called for each attempt: for a token that expires.
        message: makes of what there is to say what is posted.
        on: which endings are told: ``"all"``, or ``"failure"`` only.
        patience: seconds for which it is tried. Those of the handler's ``shutdown_timeout`` and ``stall_timeout`` are
            an end too.

    Raises:
        ConfigurationError: an argument that can't work; httpx is not installed.
    """

    background: ClassVar[Mapping[str, Any]] = {"on_error": "raise_at_end"}

    @refuse_unknown_options
    def __init__(
        self,
        url: str,
        *,
        headers: Mapping[str, str] | Callable[[], Mapping[str, str]] | None = None,
        message: Callable[[Message], Any] | None = None,
        on: str = "all",
        patience: float = 30.0,
    ) -> None:
        if find_spec("httpx") is None:
            raise ConfigurationError("Webhook needs httpx: pip install 'async_trainer[webhook]'")
        with undisturbed():
            import httpx  # noqa: F401
        if not isinstance(url, str) or urlsplit(url).scheme not in ("http", "https") or not urlsplit(url).hostname:
            raise ConfigurationError("Webhook: url must be a URL that begins with https:// or http://")
        try:
            urlsplit(url).port  # noqa: B018  # it looks
        except ValueError:  # its text has what may be a part of a password
            raise ConfigurationError("Webhook: url has no valid port; quote a / in a password (%2F)") from None
        if headers is not None and not isinstance(headers, Mapping) and not callable(headers):
            raise ConfigurationError(f"Webhook: headers must be a dict, or a function, not {type(headers).__name__}")
        if message is not None and not callable(message):
            raise ConfigurationError(f"Webhook: message must be a function, not {type(message).__name__}")
        if on not in ("all", "failure"):
            raise ConfigurationError(f"Webhook: on must be 'all' or 'failure', not {on!r}")
        if not isinstance(patience, (int, float)) or isinstance(patience, bool) or not 0 <= patience < math.inf:
            raise ConfigurationError(f"Webhook: patience must be a number of seconds, 0 or more, not {patience!r}")
        self._url = url
        self._headers = headers
        self.message = message
        self.on = on
        self.patience = patience
        self._started = time.time()
        self._last: dict[str, Any] = {}  # metrics, of loops whose end brings none

    def __repr__(self) -> str:
        return f"Webhook({self.host!r}, on={self.on!r})"

    @property
    def host(self) -> str:
        """All of the URL that is ever shown."""
        parts = urlsplit(self._url)
        return f"{parts.scheme}://{parts.hostname}" + (f":{parts.port}" if parts.port else "")

    async def on_train_start(self) -> None:
        self._started, self._last = time.time(), {}

    async def on_resume(self) -> None:
        self._started, self._last = time.time(), {}

    async def on_validation_end(self, *, metrics: Any = None) -> None:
        self._last = {str(name): _plain(value) for name, value in last_values(metrics).items()}

    async def on_train_end(self, *, state: TrainerState | None = None, maps: Any = None, metrics: Any = None) -> None:
        if self.on == "all":
            await self._tell("finished", state, maps, metrics, None)

    async def on_exception(
        self,
        *,
        state: TrainerState | None = None,
        maps: Any = None,
        metrics: Any = None,
        exception: BaseException | None = None,
    ) -> None:
        stopped = isinstance(exception, (KeyboardInterrupt, SystemExit))
        await self._tell("interrupted" if stopped else "failed", state, maps, metrics, exception)

    async def _tell(self, status: str, state: Any, maps: Any, metrics: Any, error: BaseException | None) -> None:
        metrics = self._last if metrics is None else metrics
        about = describe(status, state, maps, metrics, error, time.time() - self._started)
        content = about if self.message is None else self.message(about)
        key = f"{self._started:.6f}-{status}-{about['split']}-{about['step']}"
        await self._post(content, key)

    async def _post(self, content: Any, key: str) -> None:
        import httpx

        # What is posted is made once, so that an error in it is told as such. In ASCII: a file's name may be no text.
        deadline, pause, attempts = anyio.current_time() + self.patience, FIRST_PAUSE, 0
        data = json.dumps(content, allow_nan=False).encode()
        try:
            session = httpx.AsyncClient(timeout=REQUEST_SECONDS)
        except Exception as error:  # its text may have a part of a password
            raise SinkError(
                f"Webhook: no client can be made ({type(error).__name__}): is a proxy's URL in the environment valid?"
            ) from None
        async with session as client:
            while True:
                attempts += 1
                problem, again, wait = await self._attempt(client, data, key)
                if problem is None:
                    return
                wait = max(pause, wait)
                if not again or anyio.current_time() + wait > deadline:
                    break
                pause = min(2 * pause, LONGEST_PAUSE)
                await anyio.sleep(wait)
        times = "once" if attempts == 1 else f"{attempts} times"
        raise SinkError(f"Webhook: {self.host} was asked {times}, and has not taken the message: {problem}")

    async def _attempt(self, client: Any, content: bytes, key: str) -> tuple[str | None, bool, float]:
        """What went wrong, whether to try again, and after how many seconds at least."""
        headers = dict(self._headers() if callable(self._headers) else self._headers or {})
        defaults = {"Content-Type": "application/json", "Idempotency-Key": key}
        try:
            with unlogged(self._url), anyio.fail_after(REQUEST_SECONDS):  # httpx counts anew at each byte
                asked = client.stream("POST", self._url, content=content, headers={**defaults, **headers})
                async with asked as response:  # whose body, however long, is nothing to us
                    pass
        except Exception as error:
            secrets = [*option_secrets("", headers), *_parts(self._url)]
            return redacted(f"{type(error).__name__}: {error}", secrets), True, 0.0
        if response.is_success:
            return None, False, 0.0
        again = response.status_code >= 500 or response.status_code in (408, 425, 429)
        if response.status_code in (401, 403) and callable(self._headers):  # the next token may be a valid one
            again = True
        return f"it answers {response.status_code}", again, asked_for(response.headers.get("Retry-After"))


def describe(
    status: str, state: Any, maps: Any, metrics: Any, error: BaseException | None, seconds: float
) -> dict[str, Any]:
    """All that there is to say of a training's end, as plain values."""
    run = getattr(maps, "path", None)
    epoch, step = getattr(state, "current_epoch", None), getattr(state, "optim_step", None)
    values = {str(name): _plain(value) for name, value in last_values(metrics).items()}
    failure = None
    if error is not None:
        is_status = isinstance(error, SystemExit) and not isinstance(error.code, str)  # else it is what it says
        said = "" if is_status else f": {error}".removesuffix(": ")
        failure = what_ended(error) + said
    text = f"The training {'was interrupted' if status == 'interrupted' else 'has ' + status}"
    text += f" in epoch {epoch}" if epoch is not None else ""
    return {
        "text": f"{text}: {failure}" if failure else text,
        "status": status,
        "run": None if run is None else str(run),
        "split": getattr(state, "split_idx", None),
        "epoch": epoch,
        "step": step,
        "seconds": round(seconds, 3),
        "metrics": values,
        "error": failure,
    }


def _plain(value: Any) -> float | str:
    """As a number, if JSON has it; else as text: an odd metric is no reason not to tell of an end."""
    try:
        plain = number("metric", value, "Webhook")
    except TypeError:
        return str(value)[:LONGEST_VALUE]
    return plain if math.isfinite(plain) else str(plain)


@contextmanager
def unlogged(url: str) -> Iterator[None]:
    """Keep httpx from logging a URL that is a secret."""
    target = urlsplit(url)

    def harmless(record: logging.LogRecord) -> bool:
        text = record.getMessage()
        return not any(part in text for part in (url, *_parts(url))) if target.path.strip("/") or target.query else True

    loggers = [logging.getLogger(name) for name in _LOGGERS]
    for one in loggers:
        one.addFilter(harmless)
    try:
        yield
    finally:
        for one in loggers:
            one.removeFilter(harmless)


def _parts(url: str) -> list[str]:
    """What of a URL may be secret: all but its host."""
    parts = urlsplit(url)
    found = [url, parts.path.strip("/"), parts.query, parts.username or "", parts.password or ""]
    return [one for one in found if len(one) > 2]
