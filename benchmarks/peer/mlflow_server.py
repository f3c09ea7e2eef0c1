"""A real MLflow server, on loopback."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class Server:
    """An MLflow server on loopback, with a database that can be read."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        database = folder / "mlflow.db"
        command = [
            sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1",
            "--backend-store-uri", f"sqlite:///{database}", "--default-artifact-root", str(folder / "artifacts"),
        ]  # fmt: skip
        with (folder / "log.txt").open("w") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
        uri = f"http://127.0.0.1:{port}"
        self.environment = {
            "PEER_MLFLOW_URI": uri, "PEER_MLFLOW_DB": str(database), "PEER_MLFLOW_PID": str(self.process.pid)
        }  # fmt: skip
        until = time.monotonic() + 90
        while True:
            try:
                with urllib.request.urlopen(f"{uri}/health", timeout=5):
                    return
            except OSError:
                if time.monotonic() > until or self.process.poll() is not None:
                    raise RuntimeError((folder / "log.txt").read_text()[-2000:]) from None
                time.sleep(0.3)


@contextmanager
def serving(folder: Path) -> Iterator[Server]:
    server = Server(folder)
    try:
        yield server
    finally:
        os.killpg(server.process.pid, signal.SIGCONT)
        os.killpg(server.process.pid, signal.SIGKILL)
        server.process.wait()
