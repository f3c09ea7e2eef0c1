"""Credentials: found in what a callback was given, and left out of all that it says."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any
from urllib.parse import quote, quote_plus, unquote, unquote_plus

_USER = re.compile(r"(?<=//)(?:\S*:\S*|[^/\s@]+)@")  # a key may hold a slash, though it should be quoted
_AFTER_PATH = re.compile(r"(https?://[^\s?#'\"<>]*[?#])[^\s'\"<>)]+")  # a signature, in a URL that a server handed out
_SCHEME = re.compile(r"^(Bearer|Basic|Token)\s+", re.IGNORECASE)
_OPEN = ("url", "endpoint", "region", "host", "protocol")
_SHORTEST = 3


def url_secrets(url: str) -> Iterator[str]:
    """What of a URL is not to be shown: user, password, the values of its query, its fragment."""
    found = _USER.search(url)
    user = found[0][:-1] if found else ""
    rest, _, fragment = url.partition("#")
    values = [one.partition("=")[2] or one for one in re.split("[&;]", rest.partition("?")[2])]
    yield from (one for one in (user, *user.split(":"), *values, fragment) if len(one) >= _SHORTEST)


def option_secrets(key: str, value: Any) -> Iterator[str]:
    """The strings in options, which may be credentials, whatever they are called."""
    if isinstance(value, Mapping):
        for inner, item in value.items():
            yield from option_secrets(str(inner), item)
    elif isinstance(value, (list, tuple, set, frozenset)):
        for item in value:
            yield from option_secrets(key, item)
    elif isinstance(value, bytes):
        yield from option_secrets(key, value.decode(errors="replace"))
    elif isinstance(value, str) and any(word in key for word in _OPEN):
        yield from url_secrets(value)
    elif isinstance(value, str) and len(value) >= 4:
        yield value


def shown(url: str) -> str:
    """A URL without user, password, query and fragment."""
    return re.split("[?#]", _USER.sub("***@", url))[0]


def redacted(text: str, secrets: Iterable[str] = ()) -> str:
    """``text`` without ``secrets``, however they are spelt, and without users, passwords and queries of URLs."""
    for secret in sorted({form for one in secrets for form in _forms(one)}, key=len, reverse=True):
        text = text.replace(secret, "***")
    return _USER.sub("***@", _AFTER_PATH.sub(r"\1***", text))


def _forms(secret: str) -> Iterator[str]:
    """As it is, and as a message may have it: of a header without its line end, quoted for a URL or not, escaped."""
    for bare in {secret, secret.strip(), _SCHEME.sub("", secret.strip())}:
        for form in (bare, unquote(bare), unquote_plus(bare), quote(unquote(bare), safe=""), quote_plus(unquote(bare))):
            for spelt in (form, repr(form)[1:-1]):
                if len(spelt) >= _SHORTEST:
                    yield spelt
