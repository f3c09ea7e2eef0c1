"""What a slow sink does to a training step, with the callback inline and in the background.

    python benchmarks/slow_sink.py [--json PATH]

A step of some 20 ms; after each, a callback logs the loss to one of three real sinks: MLflow (``mlflow.log_metric``, to
MLflow's own server on loopback), an HTTP server that answers after 10 ms, a file that is forced to the disk (fsync).
The same steps, by turns: without the callback, with it inline, with it on a thread lane. A step's time is from the end
of the one before: all that the loop pays. The first round is a warm-up; of the others the median, of the steps' median
and 99th percentile; the ratio is the median of the rounds' ratios. torch has one thread. All that was logged is waited
for before the next turn, and counted. A sink that is slower than the loop for good would fill its queue, and the loop
wait: no way of running a callback can help that (the last column tells how long it was behind).

The extra ``bench`` installs what is needed; what isn't there is left out by name.
"""

from __future__ import annotations

import os
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parent))
from peer.mlflow_server import serving

from async_trainer import CallbacksHandler, background, inline
from async_trainer.bench.convoy import STEPS, make_step
from async_trainer.bench.row import Row
from async_trainer.bench.script import run_script
from async_trainer.bench.timing import by_turns

COUNT = 60  # steps of a turn
ROUNDS = 5
ANSWER = 0.01  # s: of the slow server
ALONE, INLINE, BACKGROUND = "alone", "inline", "in the background"

Log = Callable[[int, float], None]
clock = time.perf_counter


class Logs:
    """A callback that logs the loss of each step; counts what it has logged."""

    def __init__(self, log: Log) -> None:
        self.log = log
        self.count = 0

    def on_batch_end(self, *, step: int, loss: torch.Tensor) -> None:
        self.log(step, loss.item())
        self.count += 1


@contextmanager
def to_mlflow(folder: Path) -> Iterator[Log]:
    """A value, over HTTP, into MLflow's database."""
    with serving(folder / "server") as server:
        import mlflow

        mlflow.set_tracking_uri(server.environment["PEER_MLFLOW_URI"])
        client = mlflow.MlflowClient()
        run = client.create_run("0").info.run_id
        yield lambda step, loss: client.log_metric(run, "loss", loss, step=step)


@contextmanager
def to_slow_server(folder: Path) -> Iterator[Log]:
    """A request, which is answered after ``ANSWER`` seconds."""
    import httpx

    class Slow(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            time.sleep(ANSWER)
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_: Any) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Slow)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    with httpx.Client(base_url=f"http://127.0.0.1:{server.server_port}") as client:
        yield lambda step, loss: client.post("/", json={"step": step, "loss": loss}).raise_for_status() and None
    server.shutdown()
    server.server_close()


@contextmanager
def to_disk(folder: Path) -> Iterator[Log]:
    """A line of a file, which is on the disk when the call returns."""
    with (folder / "log.csv").open("w") as file:

        def log(step: int, loss: float) -> None:
            print(step, loss, sep=",", file=file, flush=True)
            os.fsync(file.fileno())

        yield log


SINKS = {
    "MLflow's server": ("mlflow", to_mlflow),
    f"a server that answers after {ANSWER * 1e3:.0f} ms": ("httpx", to_slow_server),
    "a file, fsync": ("os", to_disk),
}


def run(way: str, step: Callable[[], None], log: Log) -> tuple[list[float], float]:
    """The steps' times, and how long the callback was behind at the end, in s."""
    callback = Logs(log)
    wrapped = {ALONE: [], INLINE: [inline(callback)], BACKGROUND: [background(callback, queue_size=COUNT)]}[way]
    loss = torch.zeros(())
    with CallbacksHandler(wrapped) as handler:
        times = [clock()]
        for number in range(COUNT):
            step()
            handler.call_event("on_batch_end", step=number, loss=loss)
            times.append(clock())
        handler.flush()
        behind = clock() - times[-1]
    if callback.count != (0 if way == ALONE else COUNT):
        raise AssertionError(f"{way}: {callback.count} of {COUNT} were logged")
    return [after - before for before, after in pairwise(times[1:])], behind


def measure(name: str, step: Callable[[], None], log: Log, rounds: int = ROUNDS) -> list[Row]:
    """The rows of one sink."""
    found: Mapping[str, list[tuple[float, float, float]]] = {way: [] for way in (ALONE, INLINE, BACKGROUND)}
    for way, counts in by_turns(found, rounds):
        times, behind = run(way, step, log)
        if counts:
            found[way].append((median(times), quantiles(times, n=100)[98], behind))
    alone = [one[0] for one in found[ALONE]]
    rows = []
    for way, ones in found.items():
        beside = way != ALONE
        rows.append(
            Row(
                f"{name}, {way}" if beside else f"a step {way}",
                median(one[0] for one in ones) * 1e3,
                "ms",
                p99=median(one[1] for one in ones) * 1e3,
                beside="the step alone" if beside else "",
                other=median(alone) * 1e3 if beside else None,
                ratio=median(one[0] / other for one, other in zip(ones, alone, strict=True)) if beside else None,
                note=f"{median(one[2] for one in ones) * 1e3:.0f} ms behind at the end" if way == BACKGROUND else "",
            )
        )
    return rows


def measure_all() -> Iterator[Row]:
    """The rows of each sink that can be had here."""
    torch.set_num_threads(1)
    step = make_step(*STEPS["20 ms"])
    for name, (needs, sink) in SINKS.items():
        if find_spec(needs) is None:
            print(f"{name} is left out: {needs} is not installed")
            continue
        with tempfile.TemporaryDirectory() as folder, sink(Path(folder)) as log:
            yield from measure(name, step, log)


if __name__ == "__main__":
    sys.exit(run_script(__doc__, [("slow sinks", measure_all)]))
