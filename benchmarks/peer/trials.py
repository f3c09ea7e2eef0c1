"""One trial of one peer, in a process of its own: ``python trials.py PEER TRIAL FOLDER``. Prints what it saw as JSON.

What was delivered is read afterwards, by another process with the trial ``read``: this one may have died.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch

from peer import checkpoints, ours, standard, trackers
from peer.base import Peer

PEERS: dict[str, type[Peer]] = {
    f"{module.__name__.rpartition('.')[2]}.{peer.__name__}": peer
    for module in (ours, standard, trackers, checkpoints)
    for peer in module.PEERS
}
clock = time.perf_counter
BURSTS = 10
PAUSE = 0.05  # s between two bursts
HANGING = 8.0  # s: so long calls are made to a sink that hangs
LATER = 3.0  # s from the last call to the later kill


def cost(peer: Peer) -> None:
    """Each call's time on the calling thread, in bursts; the first is a warm-up."""
    peer.open()
    times = []
    step = 0
    saves = isinstance(peer, checkpoints.Saves)
    for burst in range(BURSTS + 1 if not saves else 2):
        for _ in range(peer.calls // 5 if not saves else peer.calls):
            step += 1
            if saves:
                peer.prepare(step)
            began = clock()
            peer.log(step, 0.5)
            spent = clock() - began
            if saves:
                time.sleep(0.1)  # a training does something between two checkpoints
                began = clock()
                peer.before_change()  # what the peer has the loop wait for is a part of its cost
                spent += clock() - began
            if burst:
                times.append(spent)
        time.sleep(PAUSE)
    peer.close()
    times.sort()
    say(p50=times[len(times) // 2], p99=times[min(len(times) - 1, len(times) * 99 // 100)], calls=len(times))


def snapshot(peer: Peer) -> None:
    """Each value is changed in place right after its call; then a regular end."""
    peer.open()
    value = torch.zeros(())
    for step in range(peer.calls):
        if isinstance(peer, checkpoints.Saves):
            peer.prepare(step)
            peer.log(step, None)
            peer.prepare(-1)
        else:
            value.fill_(step)
            peer.log(step, value)
            peer.before_change()
            value.fill_(-1)
    peer.close()
    say(calls=peer.calls)


def fill(peer: Peer) -> None:
    """A burst of calls, with their step as their value."""
    peer.open()
    for step in range(peer.calls):
        if isinstance(peer, checkpoints.Saves):
            peer.prepare(step)
        peer.log(step, float(step))
    say(calls=peer.calls)


def leave(peer: Peer) -> None:
    """The script ends after the last call, without a close."""
    fill(peer)


def kill(peer: Peer) -> None:
    """The process is killed right after the last call."""
    fill(peer)
    os.kill(os.getpid(), signal.SIGKILL)


def kill_later(peer: Peer) -> None:
    """The process is killed 3 s after the last call."""
    fill(peer)
    time.sleep(LATER)
    os.kill(os.getpid(), signal.SIGKILL)


def hang(peer: Peer) -> None:
    """The sink hangs; calls are made for a while; then the script ends, without a close."""
    peer.open()
    for step in range(3):
        peer.log(step, 0.5)
    time.sleep(1)
    peer.hang()
    seen = {"calls": 0, "longest": 0.0, "began": clock()}

    def report() -> None:
        seen["longest"] = max(seen["longest"], clock() - seen["began"])
        say(calls=seen["calls"], longest=seen["longest"], blocked=clock() - seen["began"] > 1.0)

    watch = threading.Timer(HANGING + 4, report)  # a call may never come back
    watch.daemon = True
    watch.start()
    until = clock() + HANGING
    step = 3
    while clock() < until and step < 20_000:
        seen["began"] = clock()
        peer.log(step, 0.5)
        seen["longest"] = max(seen["longest"], clock() - seen["began"])
        seen["calls"] += 1
        step += 1
        time.sleep(1e-3)
    watch.cancel()
    seen["began"] = clock()
    report()


def read(peer: Peer) -> None:
    """What was delivered, in order."""
    say(delivered=peer.read(peer.folder))


def say(**seen: Any) -> None:
    os.write(answer, (json.dumps(seen) + "\n").encode())


TRIALS = {one.__name__: one for one in (cost, snapshot, leave, kill, kill_later, hang, read)}

if __name__ == "__main__":
    answer = os.dup(1)
    os.dup2(2, 1)  # trackers print
    TRIALS[sys.argv[2]](PEERS[sys.argv[1]](Path(sys.argv[3])))
