"""The training is killed: its children handle what they were sent, and nothing is left."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.process.kit import alive, children_of, until, written

TRAINING = """
import sys
from pathlib import Path
import torch
from async_trainer import CallbacksHandler, background
from tests.process.kit import Rows

path, big = Path(sys.argv[1]), sys.argv[2] == "big"
rows = Rows(path)
handler = CallbacksHandler([background(rows, placement="process", queue_size=20)], max_snapshot_bytes=20 << 20)
handler.call_event("on_batch_end", n=1)
handler.flush()
print("started", flush=True)
n = 1
while True:
    n += 1
    handler.call_event("on_batch_end", n=n, output=torch.full((100, 200), float(n)) if big else None)
    if n % 50 == 0:
        handler.flush()
        print(n, flush=True)
"""


@pytest.mark.parametrize(
    "kills", [pytest.param(3, marks=pytest.mark.slow), pytest.param(50, marks=[pytest.mark.slow, pytest.mark.soak])]
)
@pytest.mark.parametrize("size", ["small", "big"])
def test_killed_at_random_moments_its_child_ends_after_what_it_was_sent(tmp_path: Path, kills: int, size: str) -> None:
    moments = random.Random()
    for kill in range(kills):
        path = tmp_path / f"rows-{kill}"
        with subprocess.Popen(
            [sys.executable, "-c", TRAINING, str(path), size], stdout=subprocess.PIPE, text=True
        ) as training:
            assert training.stdout is not None
            assert training.stdout.readline() == "started\n"
            children = children_of(training.pid)
            assert len(children) == 1
            time.sleep(moments.uniform(0, 0.1))  # nothing is waited for: it is the moment of the kill
            training.send_signal(signal.SIGKILL)
            flushed = [int(line) for line in training.stdout.read().splitlines()]
        until(lambda children=children: not any(alive(pid) for pid in children))
        rows = written(path)
        assert rows == list(range(1, len(rows) + 1))
        assert len(rows) >= max(flushed, default=1)


@pytest.mark.parametrize(
    "hangs",
    ["time.sleep(1000)", "threading.Thread(target=time.sleep, args=(1000,), daemon=False).start()"],
    ids=["hook", "thread"],
)
def test_a_child_that_hangs_does_not_outlive_the_training_for_long(tmp_path: Path, hangs: str) -> None:
    script = f"""
import os, threading, time
from pathlib import Path
from async_trainer import Callback, CallbacksHandler, background

class Hangs(Callback):
    def on_batch_end(self):
        Path({str(tmp_path / "in")!r}).write_text(str(os.getpid()))
        {hangs}

handler = CallbacksHandler([background(Hangs(), placement="process")], shutdown_timeout=1.0)
handler.call_event("on_batch_end")
time.sleep(1000)
"""
    with subprocess.Popen([sys.executable, "-c", script]) as training:
        until(lambda: (tmp_path / "in").exists() and (tmp_path / "in").read_text())
        training.kill()
    pid = int((tmp_path / "in").read_text())
    until(lambda: not alive(pid))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signals_to_all_of_a_terminals_processes_end_the_training_and_not_its_children(
    tmp_path: Path, number: signal.Signals
) -> None:
    script = f"""
import os, signal, sys, time
from pathlib import Path
from async_trainer import CallbacksHandler, background
from tests.process.kit import Rows

signal.signal(signal.SIGINT, signal.default_int_handler)
for name in ("SIGTERM", "SIGHUP"):
    signal.signal(getattr(signal, name), lambda *_: sys.exit(1))
rows = Rows(Path({str(tmp_path / "rows")!r}), slow=0.01)
with CallbacksHandler([background(rows, placement="process")]) as handler:
    for n in range(1, 51):
        handler.call_event("on_batch_end", n=n)
    print("go", flush=True)
    while True:  # not one long sleep: a signal that comes just before it begins would be heard when it is over
        time.sleep(0.1)
"""
    with subprocess.Popen(
        [sys.executable, "-c", script],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as training:
        try:
            assert training.stdout is not None
            assert training.stdout.readline() == "go\n"
            os.killpg(training.pid, number)
            _, said = training.communicate(timeout=60)
        finally:
            training.kill()  # else a failure here waits for it for ever
    assert written(tmp_path / "rows") == list(range(1, 51)), said
    assert "died" not in said


SMALL_SHM = """
import os
import torch
from async_trainer import Callback, CallbacksHandler, background

assert os.statvfs("/dev/shm").f_blocks * os.statvfs("/dev/shm").f_frsize == 64 << 20

class Sums(Callback):
    def __init__(self):
        self.sums = []

    def on_batch_end(self, *, output):
        self.sums.append(float(output.sum(dtype=torch.float64)))

sums = Sums()
with CallbacksHandler([background(sums, placement="process")]) as handler:
    for n in range(2):
        handler.call_event("on_batch_end", output=torch.full((25_000, 1000), float(n)))
assert sums.sums == [0.0, 25e6], sums.sums
print("done")
"""


def test_big_snapshots_do_not_need_room_on_dev_shm() -> None:
    mount = "mount -t tmpfs -o size=64m tmpfs /dev/shm"
    if subprocess.run(["unshare", "--mount", "sh", "-c", mount], capture_output=True).returncode:
        pytest.skip("this user may not mount anything")
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", f'{mount} && exec "$0" -c "$1"', sys.executable, SMALL_SHM],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.stdout == "done\n", done.stderr
