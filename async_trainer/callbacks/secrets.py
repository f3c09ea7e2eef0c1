"""Credentials: found in what a callback was given, and left out of all that it says."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

_USER = re.compile(r"(?<=//)(?:\S*:\S*|[^/\s@]+)@")  # a key may hold a slash, though it should be quoted
_OPEN = ("url", "endpoint", "region", "host", "protocol")


def url_secrets(url: str) -> Iterator[str]:
    """What of a URL is not to be shown: user, password, the values of its query."""
    found = _USER.search(url)
    user = found[0][:-1] if found else ""
    for secret in (user, *user.split(":"), *(value for _, value in parse_qsl(urlsplit(url).query))):
        if len(secret) > 2:
            yield secret
            yield unquote(secret)


def option_secrets(key: str, value: Any) -> Iterator[str]:
    """The strings in options, which may be credentials, whatever they are called."""
    if isinstance(value, Mapping):
        for inner, item in value.items():
            yield from option_secrets(str(inner), item)
    elif isinstance(value, str) and len(value) >= 4 and not any(word in key for word in _OPEN):
        yield value


def shown(url: str) -> str:
    """A URL without user, password and query."""
    return _USER.sub("***@", url).partition("?")[0]


def redacted(text: str, secrets: Iterable[str] = ()) -> str:
    """``text`` without ``secrets``, and without the users and passwords of URLs."""
    for secret in sorted(set(secrets), key=len, reverse=True):
        text = text.replace(secret, "***")
    return _USER.sub("***@", text)
