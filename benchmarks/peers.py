"""What a call costs the training thread, and what is behind it: this library, and what users have today, in one run.

    python benchmarks/peers.py [PEER ...] [--json PATH] [--list]

Each peer goes through the same trials (``peer/trials.py``), each in a process of its own; nothing here is written
down beforehand, and what can't be imported is left out by name. A call hands over a scalar, or 40 MB of weights.

- p50, p99: of a call, on the calling thread; in bursts of 100 calls (40 for MLflow), 50 ms apart (12 single calls for
  weights, 100 ms apart); the value is a float.
- order: whether the calls were delivered in the order in which they were made.
- snapshot: how many values arrived as they were at the call, though each was changed in place right after it. The
  values are tensors; "no tensors": it takes none.
- exit: what was delivered where the script ends without a close. killed: by SIGKILL right after the last call; and 3 s
  later.
- sink hangs: what it writes to doesn't answer any more (a stopped server or service, a write that never returns); calls
  are made for 8 s, with 1 ms between; then the script ends without a close, and has 30 s for it.

The extra ``bench`` installs all of them.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
from peer.mlflow_server import Server, serving
from peer.trials import PEERS

from async_trainer.bench.machine import describe_machine, line
from async_trainer.runtime.stats import text_table

SCRIPT = Path(__file__).parent / "peer" / "trials.py"
LIMIT = 120.0  # s for a trial that doesn't hang
LEAVING = 30.0  # s that a script whose sink hangs has for its end
HEAD = ("", "p50", "p99", "order", "snapshot", "exit", "killed", "3 s later", "sink hangs: the calls", "... the end")


def run(name: str, trial: str, folder: Path, server: Server | None) -> dict[str, Any]:
    """One trial; what the child said, its exit status, and how long it took to end after that."""
    folder.mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"} | (server.environment if server else {})
    command = [sys.executable, str(SCRIPT), name, trial, str(folder)]
    child = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, start_new_session=True
    )
    limit = LEAVING if trial == "hang" else LIMIT
    seen: dict[str, Any] = {}
    try:
        assert child.stdout is not None
        first = child.stdout.readline()
        began = time.perf_counter()
        seen = json.loads(first) if first else {}
        _, errors = child.communicate(timeout=limit)
        seen |= {"status": child.returncode, "ended": time.perf_counter() - began}
        if not first:
            seen["error"] = errors.strip().splitlines()[-1] if errors.strip() else f"status {child.returncode}"
    except subprocess.TimeoutExpired:
        seen |= {"status": None, "ended": None}
    finally:
        end(child, keep=trial in ("kill", "kill_later"))
    return seen


def end(child: subprocess.Popen[str], *, keep: bool) -> None:
    """Nothing of a trial stays; but what outlives a killed process may finish: it is a part of the answer."""
    if child.poll() is None or not keep:
        try:
            os.killpg(child.pid, signal.SIGCONT)
            os.killpg(child.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        child.wait()


def delivered(name: str, folder: Path, server: Server | None, wanted: int) -> list[list[float]]:
    """What arrived; read once more 5 s later where something is missing: a service may still be at it."""
    for pause in (0.0, 5.0):
        time.sleep(pause)
        rows: list[list[float]] = run(name, "read", folder, server).get("delivered", [])
        if len(rows) >= wanted:
            break
    return rows


def measure(name: str, folder: Path) -> dict[str, Any]:
    """All trials of one peer."""
    peer = PEERS[name]
    found: dict[str, Any] = {"name": peer.name, "what": peer.what}
    with serving(folder / "server") if "MLflow" in name else no_server() as server:
        found["cost"] = run(name, "cost", folder / f"{name}-cost", server)
        for trial in ("snapshot", "leave", "kill", "kill_later"):
            place = folder / f"{name}-{trial}"
            seen = run(name, trial, place, server)
            rows = delivered(name, place, server, seen.get("calls", 0))
            steps = [int(step) for step, _ in rows]
            seen["delivered"] = len(set(steps))
            seen["inversions"] = sum(after < before for before, after in pairwise(steps))
            seen["right"] = sum(step == value for step, value in rows)
            seen["no_number"] = sum(math.isnan(value) for _, value in rows)
            found[trial] = seen
        found["hang"] = run(name, "hang", folder / f"{name}-hang", server)
    return found


def cells(found: dict[str, Any]) -> tuple[str, ...]:
    """A peer's row of the table."""
    cost, snapshot = found["cost"], found["snapshot"]
    if "p50" not in cost:
        return (found["name"], f"failed: {cost.get('error', 'it did not end')}", *[""] * (len(HEAD) - 2))
    of = snapshot.get("calls", 0)
    order = "kept" if not snapshot["inversions"] else f"lost: {snapshot['inversions']} of {snapshot['delivered']}"
    return (
        found["name"],
        microseconds(cost["p50"]),
        microseconds(cost["p99"]),
        order if snapshot["delivered"] else "nothing delivered",
        "no tensors" if snapshot["no_number"] == of else f"{snapshot['right']} of {of}",
        *(share(found[trial]) for trial in ("leave", "kill", "kill_later")),
        *hanging(found["hang"]),
    )


def share(seen: dict[str, Any]) -> str:
    if "calls" not in seen:
        return seen.get("error", "it did not get so far")[:40]
    late = "" if seen["ended"] is not None else ", never ends"
    return f"{seen['delivered']} of {seen['calls']}{late}"


def hanging(seen: dict[str, Any]) -> tuple[str, str]:
    if "calls" not in seen:
        return seen.get("error", "a call never returns")[:40], ""
    calls = f"{seen['calls']} made, the longest {seconds(seen['longest'])}"
    if seen["blocked"]:
        calls = f"blocks for good after {seen['calls']}"
    return calls, "never" if seen["ended"] is None else f"after {seconds(seen['ended'])}"


def microseconds(number: float) -> str:
    return f"{number * 1e6:,.1f} µs"


def seconds(number: float) -> str:
    return f"{number * 1e3:.0f} ms" if number < 1 else f"{number:.1f} s"


@contextmanager
def no_server() -> Iterator[None]:
    yield None


def main() -> None:
    parser = argparse.ArgumentParser(description="What a call costs the training thread, and what is behind it.")
    parser.add_argument("peer", nargs="*", help="which ones: see --list (default: all)")
    parser.add_argument("--json", type=Path, metavar="PATH", help="write what was measured to this file")
    parser.add_argument("--list", action="store_true", help="list the peers, and end")
    arguments = parser.parse_args()
    if arguments.list:
        print(*(f"{name:24}{peer.name}" for name, peer in PEERS.items()), sep="\n")
        return
    unknown = [name for name in arguments.peer if name not in PEERS]
    if unknown:
        parser.error(f"there is no {', '.join(unknown)}; --list says which there are")
    about = describe_machine()
    print(line(about), flush=True)
    results: dict[str, Any] = {}
    left_out = {}
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as temporary:
        for name in arguments.peer or PEERS:
            missing = [module for module in PEERS[name].needs if find_spec(module) is None]
            if missing:
                left_out[PEERS[name].name] = f"no module {', '.join(missing)}"
                continue
            results[name] = measure(name, Path(temporary))
            print(" | ".join(cells(results[name])), flush=True)
    for what in dict.fromkeys(one["what"] for one in results.values()):
        rows = [cells(one) for one in results.values() if one["what"] == what]
        print(f"\na call hands over {what}\n" + text_table([HEAD, *rows], right=(1, 2)))
    for name, why in left_out.items():
        print(f"left out: {name}: {why}")
    if arguments.json is not None:
        versions = {module: version(module) for peer in PEERS.values() for module in peer.needs}
        plain = {"machine": about, "versions": versions, "left_out": left_out, "peers": results}
        arguments.json.write_text(json.dumps(plain, indent=1, ensure_ascii=False) + "\n")


def version(module: str) -> str | None:
    try:
        return metadata.version(module)
    except metadata.PackageNotFoundError:
        return None


if __name__ == "__main__":
    main()
