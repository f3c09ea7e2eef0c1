"""Servers on 127.0.0.1: some that misbehave as they are told to, and the real ones of MLflow and S3."""

from __future__ import annotations

import http.client
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

Answer = tuple[int, Mapping[str, str], bytes]
_OWN = ("connection", "content-length", "date", "server", "transfer-encoding")  # headers of each server itself

MLFLOW = """
import os, sys
os.environ.update({
    "_MLFLOW_SERVER_FILE_STORE": f"sqlite:///{sys.argv[1]}/mlflow.db",
    "_MLFLOW_SERVER_ARTIFACT_ROOT": "mlflow-artifacts:/",
    "_MLFLOW_SERVER_ARTIFACT_DESTINATION": f"{sys.argv[1]}/artifacts",
    "_MLFLOW_SERVER_SERVE_ARTIFACTS": "true",
})
from mlflow.server import app
from werkzeug.serving import make_server
server = make_server("127.0.0.1", 0, app, threaded=True)
print(server.server_port, flush=True)
server.serve_forever()
"""
"""MLflow's server, on a port of the system's choice."""

S3_CLIENT = {
    "AWS_ACCESS_KEY_ID": "testing",
    "AWS_SECRET_ACCESS_KEY": "testing",
    "AWS_SESSION_TOKEN": "testing",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
}
"""The environment of a client of :func:`s3_server`, but for its URL."""


class Server:
    """Answers each request with what ``answer(method, path, headers, body)`` says; None: it hangs until the end.

    Attributes:
        url: where it is.
        requests: method, path, headers and body of each, in the order that they came.
    """

    def __init__(self, answer: Callable[[str, str, Mapping[str, str], bytes], Answer | None], port: int = 0) -> None:
        self.requests: list[tuple[str, str, dict[str, str], bytes]] = []
        self.over = threading.Event()
        self._came = threading.Condition()
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def handle_all(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                headers = dict(self.headers.items())
                with server._came:
                    server.requests.append((self.command, self.path, headers, body))
                    server._came.notify_all()
                answered = answer(self.command, self.path, headers, body)
                if answered is None:
                    server.over.wait(120)
                    self.close_connection = True
                    return
                status, more, content = answered
                self.send_response(status)
                for name, value in more.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = handle_all

            def log_message(self, *args: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        self._thread.start()

    def wait_for_requests(self, count: int, seconds: float = 60.0) -> None:
        """Until so many have come."""
        with self._came:
            assert self._came.wait_for(lambda: len(self.requests) >= count, seconds), f"{len(self.requests)} came"

    def close(self) -> None:
        self.over.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(10)


@contextmanager
def serving(answer: Callable[[str, str, Mapping[str, str], bytes], Answer | None], port: int = 0) -> Iterator[Server]:
    """A :class:`Server`, closed at the end; on a port of the system's choice, if none is given."""
    server = Server(answer, port)
    try:
        yield server
    finally:
        server.close()


def free_port() -> int:
    """One at which connections are refused, until somebody serves there."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def forward(url: str, method: str, path: str, headers: Mapping[str, str], body: bytes) -> Answer:
    """What the server at ``url`` answers to the same request."""
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=60)
    try:
        kept = {key: value for key, value in headers.items() if key.lower() not in ("host", "connection")}
        connection.request(method, path, body, kept)
        response = connection.getresponse()
        content = response.read()
        return response.status, {key: value for key, value in response.getheaders() if key.lower() not in _OWN}, content
    finally:
        connection.close()


@contextmanager
def mlflow_server(folder: Path) -> Iterator[str]:
    """The URL of MLflow's own server, in a process of its own, with a database in ``folder``."""
    environment = {**os.environ, "MLFLOW_DISABLE_TELEMETRY": "true"}
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-c", MLFLOW, str(folder)], stdout=subprocess.PIPE, stderr=log, text=True, env=environment
        )
    try:
        assert process.stdout is not None
        port = process.stdout.readline().strip()
        assert port, (folder / "log").read_text()
        yield f"http://127.0.0.1:{port}"
    finally:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


@contextmanager
def s3_server() -> Iterator[str]:
    """The URL of moto's S3, on a thread of this process."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        yield f"http://{host}:{port}"
    finally:
        server.stop()
