"""The scenarios measure what they say: each runs, on little, and has the rows that the budgets ask for."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest
import torch

from async_trainer.bench import barrier, capturing, convoy, handoff, resuming, throughput, timing
from async_trainer.bench.row import Row
from async_trainer.bench.scenarios import SCENARIOS, measure
from async_trainer.bench.timing import Effort, bursts, by_turns, loops, percentile, turns

LITTLE = Effort(0.01)


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Small things to measure; and what scenarios set in their process is set back."""
    for module, megabytes in ((capturing, 12), (resuming, 12), (handoff, 4)):
        monkeypatch.setattr(module, "MEGABYTES", megabytes)
    monkeypatch.setattr(timing.gc, "collect", lambda: 0)  # 0.1 s each, in a process with all tests in it
    monkeypatch.setattr(barrier, "WAITING", 500)
    monkeypatch.setattr(capturing, "FEW", 6)
    monkeypatch.setattr(capturing, "MANY", 30)
    monkeypatch.setattr(resuming, "TENSORS", 6)
    monkeypatch.setattr(convoy, "STEPS", {"20 ms": (2, 64, 32)})
    monkeypatch.setattr(convoy, "QUICK_SECONDS", 0.05)
    monkeypatch.setattr(convoy, "WARM_UP", 0.02)
    monkeypatch.setattr(throughput, "EVENTS", {"thread": 2000, "process": 2000})
    threads, logger = torch.get_num_threads(), logging.getLogger("async_trainer")
    level = logger.level
    yield
    torch.set_num_threads(threads)
    logger.setLevel(level)


def budgets(rows: list[Row]) -> list[tuple[float, str, bool]]:
    return [(row.budget, row.of, row.gated) for row in rows if row.budget is not None]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("overhead", [(6.0, "ratio", True), (2.0, "value", False), (10.0, "p99", False), (0.3, "ratio", True)]),
        ("paced", [(3.0, "ratio", True)]),
        ("proxy", [(3.0, "value", False)]),
        ("capture", [(1.0, "value", False), (1.1, "ratio", True), (1.0, "value", False)]),
        ("barrier", [(50.0, "value", False)]),
        ("resume", [(1.1, "ratio", False), (1.1, "ratio", False)]),
        pytest.param("throughput", [(200_000.0, "value", False), (50_000.0, "value", False)], marks=pytest.mark.slow),
        pytest.param(
            "convoy",
            [(1.05, "ratio", False), (1.05, "ratio", False), (3.0, "ratio", True)],
            marks=pytest.mark.slow,
        ),
        pytest.param("handoff", [(12.0, "value", False)], marks=pytest.mark.slow),
        pytest.param("import", [(50.0, "value", False)], marks=pytest.mark.slow),
    ],
)
def test_a_scenario_measures_and_has_its_budgets(name: str, expected: list[tuple[float, str, bool]]) -> None:
    rows = measure(name, LITTLE)
    assert budgets(rows) == expected
    assert all(row.value > 0 for row in rows)
    assert all(row.ratio is None or row.ratio > 0 for row in rows)


def test_every_scenario_is_tested_and_says_what_it_measures() -> None:
    (mark,) = test_a_scenario_measures_and_has_its_budgets.pytestmark  # type: ignore[attr-defined]
    names = [getattr(one, "values", one)[0] for one in mark.args[1]]
    assert sorted(names) == sorted(SCENARIOS)
    assert all(what for _, what in SCENARIOS.values())


def test_the_budget_of_a_capture_grows_with_its_tensors() -> None:
    assert capturing.budget(150) == pytest.approx(1e-3)
    assert capturing.budget(1200) == pytest.approx(5e-3)


# The measuring itself, by a clock that the test moves.


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    time = [0.0]
    monkeypatch.setattr(timing, "clock", lambda: time[0])
    return time


def test_ways_take_turns_and_what_is_a_warm_up_is_told() -> None:
    turn = [("a", False), ("b", False), ("a", True), ("b", True)]
    assert list(by_turns(("a", "b"), rounds=1)) == turn
    assert list(by_turns(("a", "b"), rounds=1, warm_up=0)) == turn[2:]


def test_bursts_time_each_call_drain_between_bursts_and_leave_the_first_out(now: list[float]) -> None:
    did: list[str] = []

    def call() -> None:
        now[0] += 1.0 if did.count("call") < 4 else 2.0  # the first burst is faster, as no warm-up is
        did.append("call")

    def drain() -> None:
        now[0] += 100.0
        did.append("drain")

    took = bursts({"ours": (call, drain), "other": lambda: now.__setitem__(0, now[0] + 4.0)}, rounds=1, calls=4)
    assert did == 2 * ["call", "call", "call", "call", "drain"]
    assert (took["ours"].p50, took["ours"].p99, took["other"].p50) == (2.0, 2.0, 4.0)
    assert took["ours"].ratio(took["other"]) == 0.5


def test_a_ratio_is_of_the_rounds_so_that_a_busy_moment_hits_both(now: list[float]) -> None:
    seconds = {"ours": iter([9, 1.0, 10.0, 1.0]), "other": iter([9, 2.0, 20.0, 4.0])}
    took = turns({name: (lambda times=times: next(times)) for name, times in seconds.items()}, rounds=3)
    assert took["ours"].ratio(took["other"]) == 0.5


def test_loops_take_a_mean() -> None:
    calls: list[int] = []
    took = loops({"append": "calls.append(1)"}, {"calls": calls}, rounds=2, calls=50)
    assert len(calls) == 3 * 50
    assert took["append"].p50 > 0


def test_the_99th_percentile_is_by_nearest_rank() -> None:
    assert percentile(range(1, 101), 99) == 99
    assert percentile(range(1, 11), 99) == 10
    assert percentile([5.0], 50) == 5.0


def test_a_quick_effort_does_less_but_not_nothing() -> None:
    assert Effort().times(40) == 40
    assert Effort(0.2).times(40) == 8
    assert Effort(0.2).times(5) == 3
