"""S3 over HTTP, for the tests of what goes there."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.callbacks.servers import S3_CLIENT, s3_server


@pytest.fixture(scope="module")
def s3() -> Iterator[str]:
    """The URL of moto's server."""
    pytest.importorskip("s3fs")
    pytest.importorskip("moto.server")
    with s3_server() as url:
        yield url


@pytest.fixture
def client(s3: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A client of it, of boto3; its credentials are in the environment."""
    import boto3

    for name, value in S3_CLIENT.items():
        monkeypatch.setenv(name, value)
    return boto3.client("s3", endpoint_url=s3)
