"""What ``import async_trainer`` takes, in a new interpreter."""

from __future__ import annotations

import json
import subprocess
import sys

from async_trainer.bench.row import Row
from async_trainer.bench.timing import Effort, turns

CODE = """
import json, sys, time
began = time.perf_counter()
{statement}
spent = time.perf_counter() - began
print(json.dumps([spent, "torch" in sys.modules or "pandas" in sys.modules]))
"""


def measure(effort: Effort) -> list[Row]:
    """The rows of ``import``."""
    heavy: dict[str, bool] = {}

    def taking(statement: str) -> float:
        command = [sys.executable, "-c", CODE.format(statement=statement)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        seconds, heavy[statement] = json.loads(done.stdout)
        return float(seconds)

    statements = ("import async_trainer", "import anyio", "import torch", "from async_trainer import CallbacksHandler")
    took = turns({one: lambda one=one: taking(one) for one in statements}, rounds=effort.times(7, 1))  # type: ignore[misc]
    ours, anyio, torch, handler = (took[one] for one in statements)
    if heavy["import async_trainer"]:
        raise AssertionError("import async_trainer loads torch or pandas")
    return [
        Row(
            "import async_trainer",
            ours.p50 * 1e3,
            "ms",
            beside="import torch",
            other=torch.p50 * 1e3,
            ratio=ours.ratio(torch),
            budget=50.0,
        ),
        Row(
            "from async_trainer import CallbacksHandler",
            handler.p50 * 1e3,
            "ms",
            beside="import torch",
            other=torch.p50 * 1e3,
            ratio=handler.ratio(torch),
            note="with torch" if heavy[statements[3]] else "without torch or pandas",
        ),
        Row("(import anyio)", anyio.p50 * 1e3, "ms"),
    ]
