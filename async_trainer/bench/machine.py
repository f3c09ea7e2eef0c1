"""What a benchmark ran on."""

from __future__ import annotations

import os
import platform
import sys
from importlib import metadata
from pathlib import Path
from typing import Any


def describe_machine() -> dict[str, Any]:
    """The machine and what it runs, as plain values; no name of it, no path."""
    return {
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_gb": _memory(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        **{name: _version(name) for name in ("torch", "pandas", "anyio", "cloudpickle")},
        "async_trainer": _version("async_trainer"),
        "load_before": load(),
        "switch_interval": sys.getswitchinterval(),
    }


def load() -> float | None:
    """How many programs wanted a core, on average over the last minute: where it is not near 0, others did."""
    return round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None


def line(machine: dict[str, Any]) -> str:
    """``describe_machine()`` as a line or two for people."""
    return (
        f"{machine['processor']}, {machine['cores']} cores, {machine['memory_gb']} GB; {machine['system']}\n"
        f"Python {machine['python']}, torch {machine['torch']}, pandas {machine['pandas']}; "
        f"load before: {machine['load_before']}; garbage collector on, run before each burst"
    )


def _version(name: str) -> str | None:
    if name == "async_trainer":
        import async_trainer

        return async_trainer.__version__
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _processor() -> str:
    try:
        for text in Path("/proc/cpuinfo").read_text().splitlines():
            if text.startswith("model name"):
                return text.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _memory() -> float | None:
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1)
    except (AttributeError, ValueError, OSError):
        return None
