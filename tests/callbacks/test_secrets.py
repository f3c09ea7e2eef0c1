"""What is given to a callback in confidence is in nothing that it says, however it is spelt there."""

from __future__ import annotations

import pytest

from async_trainer.callbacks.object_store import ObjectStore, UploadError
from async_trainer.callbacks.secrets import option_secrets, redacted, shown, url_secrets


@pytest.mark.parametrize(
    ("secret", "text"),
    [
        pytest.param("hunter2\n", "header value: 'Bearer hunter2\n'", id="a token with its line end"),
        pytest.param("Bearer hunter2", "token hunter2 was refused", id="a token without its scheme"),
        pytest.param("Bearer hun\nter2", r"header value: b'Bearer hun\nter2'", id="escaped"),
        pytest.param("hun%2Fter2", "?sig=hun/ter2", id="quoted, and not"),
        pytest.param("hun/ter2", "?sig=hun%2Fter2", id="not quoted, and quoted"),
        pytest.param("hun+ter2", "?sig=hun%2Bter2", id="a plus"),
    ],
)
def test_a_secret_is_left_out_however_it_is_spelt(secret: str, text: str) -> None:
    assert "ter2" not in redacted(text, [secret])


def test_a_url_that_a_server_hands_out_is_told_without_its_signature() -> None:
    text = redacted("PUT https://store.example/bucket/key?X-Amz-Signature=abc123&X-Amz-Date=1 failed: 403")
    assert text == "PUT https://store.example/bucket/key?*** failed: 403"


def test_a_url_is_shown_without_query_and_fragment_and_its_secrets_are_known() -> None:
    url = "s3://jane:hun%2Fter2@bucket/a?token=tok%2Fen&plain#frag"
    assert shown(url) == "s3://***@bucket/a"
    assert set(url_secrets(url)) == {"jane:hun%2Fter2", "jane", "hun%2Fter2", "tok%2Fen", "plain", "frag"}


def test_options_are_searched_also_in_lists_bytes_and_urls() -> None:
    options = {"keys": ["first1", b"second2"], "endpoint_url": "http://h/?sig=third3", "region_name": "us-east-1"}
    assert set(option_secrets("", options)) == {"first1", "second2", "third3"}


def test_a_store_tells_nothing_of_the_query_of_its_endpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: ObjectStore) -> None:
        raise OSError("Could not connect to http://h/b?sig=hun/ter2")

    monkeypatch.setattr(ObjectStore, "_connect", fail)
    place = ObjectStore("memory://bucket", {"endpoint_url": "http://h/?sig=hun%2Fter2"})
    with pytest.raises(UploadError) as raised:
        place.put_text("a", "b")
    assert "ter2" not in str(raised.value)
