"""The scenarios of ``async-trainer bench``, by name: light to import; the modules behind them aren't."""

from __future__ import annotations

from importlib import import_module

from async_trainer.bench.row import Row
from async_trainer.bench.timing import Effort

SCENARIOS = {
    "overhead": ("overhead", "what an event costs the training thread, in a burst"),
    "paced": ("paced", "the same, with 5 ms of torch between two events"),
    "proxy": ("proxied", "what a proxied call costs"),
    "throughput": ("throughput", "events per second through one lane"),
    "capture": ("capturing", "what capturing 300 MB of model and optimizer costs"),
    "convoy": ("convoy", "what a callback that computes in Python does to a step"),
    "barrier": ("barrier", "what a barrier costs while 10,000 events wait"),
    "handoff": ("handoff", "100 MB to a process lane"),
    "resume": ("resuming", "what a checkpoint of all resume state does to a step"),
    "import": ("importing", "what import async_trainer takes"),
}
"""Name -> its module in this package, and what it measures."""


def measure(name: str, effort: Effort) -> list[Row]:
    """Run one scenario in this process; it may set torch's threads and a logger's level."""
    module = import_module(f"async_trainer.bench.{SCENARIOS[name][0]}")
    rows: list[Row] = module.measure(effort)
    return rows
