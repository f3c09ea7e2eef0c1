"""Requests to an MLflow server: with MLflow's own client, but each is tried once, and for seconds only."""

from __future__ import annotations

import json
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import quote

from async_trainer.callbacks.outbox import SinkError, asked_for

REQUEST_SECONDS = 10.0
SLOWEST = 10e6
"""Bytes per second at which a server takes a file, at least: a request with one has so much more time."""
PAGE = 10_000
"""Values of a metric that are asked for at once: a server tells some 15,000 in a second."""
AWAY = {401, 403, 404, 408, 409, 425, 429}
"""Of the 4xx: what may be otherwise later."""
_PROXIED = "mlflow-artifacts:"


def make_store(uri: str) -> Any:
    """The store of a tracking URI; one over HTTP as we want it."""
    from mlflow import MlflowClient
    from mlflow.store.tracking.rest_store import RestStore

    store = MlflowClient(uri)._tracking_client.store
    if type(store) is not RestStore:  # a database, a plugin's
        return store

    class PromptStore(RestStore):
        def _call_endpoint(
            self, api: Any, json_body: Any = None, endpoint: Any = None, *_: Any, response_proto: Any = None, **__: Any
        ) -> Any:
            return _request(self, api, json_body, endpoint, response_proto)

    return PromptStore(store.get_host_creds)  # type: ignore[no-untyped-call]


def _request(store: Any, api: Any, json_body: Any, endpoint: str | None, response_proto: Any) -> Any:
    from mlflow.utils.proto_json_utils import parse_dict
    from mlflow.utils.rest_utils import http_request

    known, method = store._METHOD_TO_INFO[api]
    endpoint = endpoint or known
    body = json.loads(json_body) if json_body is not None else None
    given = {"params": body} if method == "GET" else {"json": body}
    response = http_request(  # type: ignore[no-untyped-call]
        store.get_host_creds(), endpoint, method,
        max_retries=0, timeout=REQUEST_SECONDS, raise_on_status=False, **given,
    )  # fmt: skip
    _check(response, endpoint)
    message = response_proto or api.Response()
    parse_dict(json.loads(response.text), message)  # type: ignore[no-untyped-call]
    return message


def _check(response: Any, endpoint: str) -> None:
    """Raise what a response says is wrong: a :class:`SinkError`, if it may be otherwise later."""
    from mlflow.utils.rest_utils import verify_rest_response

    is_away = response.status_code >= 500 or response.status_code in AWAY
    if is_away and not (response.status_code == 404 and "RESOURCE_DOES_NOT_EXIST" in response.text):
        raise SinkError(
            f"the server answers {response.status_code} {response.reason}",
            retry_after=asked_for(response.headers.get("Retry-After")),
        )
    verify_rest_response(response, endpoint)


def count_values(store: Any, run_id: str, key: str, known: int) -> int:
    """How many values of a metric a run has. ``known``, those that it has for sure, are not asked for: a server takes
    long to tell many."""
    from mlflow.store.tracking.rest_store import RestStore
    from mlflow.utils.search_utils import SearchUtils

    if not isinstance(store, RestStore):  # it reads them itself
        return len(store.get_metric_history(run_id, key))
    count = known if known > PAGE else 0
    token = SearchUtils.create_page_token(count).decode() if count else None  # type: ignore[no-untyped-call]
    while True:
        page = store.get_metric_history(run_id, key, max_results=PAGE, page_token=token)  # type: ignore[no-untyped-call]
        if len(page) > PAGE:  # of a server that knows no pages: that are all
            return len(page)
        count, token = count + len(page), page.token
        if token is None:
            return count


def put(store: Any, uri: str, run_id: str, path: Path, folder: str) -> None:
    """Upload a file to ``folder`` among the artifacts of a run: to its server, or, where they are elsewhere, as MLflow
    does."""
    from mlflow import MlflowClient
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository
    from mlflow.store.artifact.http_artifact_repo import HttpArtifactRepository
    from mlflow.utils.rest_utils import http_request

    place = store.get_run(run_id).info.artifact_uri
    repository: Any = get_artifact_repository(place, tracking_uri=uri) if place.startswith(_PROXIED) else None
    if not isinstance(repository, HttpArtifactRepository) or repository._should_multipart_upload(path):  # type: ignore[no-untyped-call]
        MlflowClient(uri).log_artifact(run_id, str(path), folder or None)
        return
    endpoint, seconds = quote(f"/{PurePosixPath(folder, path.name)}"), REQUEST_SECONDS + path.stat().st_size / SLOWEST
    with path.open("rb") as file:
        response = http_request(  # type: ignore[no-untyped-call]
            repository._host_creds, endpoint, "PUT", data=file, max_retries=0, timeout=seconds, raise_on_status=False,
            extra_headers={"Content-Type": "application/octet-stream"},
        )  # fmt: skip
    _check(response, endpoint)
    json.loads(response.text)  # and not the page of some proxy's that wants a login
