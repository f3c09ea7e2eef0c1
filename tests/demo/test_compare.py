"""The comparison of two runs sees what it should."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
for _package in ("rich", "matplotlib", "tensorboard"):
    pytest.importorskip(_package)

from async_trainer.demo.compare import compare, same  # noqa: E402
from async_trainer.demo.report import last_line, percentile  # noqa: E402
from async_trainer.demo.run import LaneCounts, Run  # noqa: E402


def make_run(folder: Path, **changes: Any) -> Run:
    (folder / "store").mkdir(parents=True)
    (folder / "metrics.jsonl").write_text("{}\n")
    torch.save({"weight": torch.ones(2)}, folder / "store" / "epoch-001.pt")
    run = Run(
        name=folder.name,
        folder=folder,
        wall=12.3,
        steps=(0.1, 0.2),
        accuracy=0.99,
        paid={},
        weights={"weight": torch.ones(2), "steps": torch.tensor(3)},
        random=torch.zeros(4, dtype=torch.uint8),
    )
    return replace(run, **changes)


def test_runs_that_did_the_same_are_fine(tmp_path: Path) -> None:
    inline, background = make_run(tmp_path / "inline"), make_run(tmp_path / "background", wall=6.04)
    comparison = compare(inline, background)
    assert comparison.fine
    assert comparison.compared == 2
    assert last_line(inline, background, comparison) == "inline 12 s, background 6.0 s, identical weights, 0 lost"


def test_a_single_bit_of_a_weight_is_seen(tmp_path: Path) -> None:
    weights = {"weight": torch.nextafter(torch.ones(2), torch.zeros(2)), "steps": torch.tensor(3)}
    inline, background = make_run(tmp_path / "inline"), make_run(tmp_path / "background", weights=weights)
    comparison = compare(inline, background)
    assert comparison.weights == ("weight",)
    assert not comparison.fine
    assert "DIFFERENT weights" in last_line(inline, background, comparison)


def test_a_checkpoint_that_differs_or_is_missing_is_seen(tmp_path: Path) -> None:
    inline, background = make_run(tmp_path / "inline"), make_run(tmp_path / "background")
    torch.save({"weight": torch.zeros(2)}, background.folder / "store" / "epoch-001.pt")
    (background.folder / "metrics.jsonl").unlink()
    comparison = compare(inline, background)
    assert comparison.files == ("metrics.jsonl", "store/epoch-001.pt")
    assert not comparison.fine


def test_another_state_of_the_generator_is_seen(tmp_path: Path) -> None:
    other = torch.ones(4, dtype=torch.uint8)
    comparison = compare(make_run(tmp_path / "inline"), make_run(tmp_path / "background", random=other))
    assert comparison.random
    assert not comparison.fine


def test_lost_failed_and_dropped_events_are_in_the_last_line(tmp_path: Path) -> None:
    lanes = (LaneCounts("log", 5, 1, 0, 2), LaneCounts("figures", 5, 0, 3, 0))
    inline, background = make_run(tmp_path / "inline"), make_run(tmp_path / "background", lanes=lanes)
    comparison = compare(inline, background)
    assert not comparison.fine
    assert last_line(inline, background, comparison).endswith("identical weights, 2 lost, 1 failed, 3 dropped")


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        ({"a": [1, torch.tensor(0.0)]}, {"a": [1, torch.tensor(0.0)]}, True),
        (torch.tensor(0.0), torch.tensor(-0.0), False),
        (torch.tensor(float("nan")), torch.tensor(float("nan")), True),
        (torch.zeros(2), torch.zeros(2, dtype=torch.float64), False),
        ({"a": 1}, {"a": 1, "b": 2}, False),
        (1, 1.0, False),
    ],
)
def test_same_compares_values_bit_by_bit(one: Any, other: Any, expected: bool) -> None:
    assert same(one, other) is expected


def test_a_percentile_is_one_of_the_values() -> None:
    values = tuple(float(value) for value in range(100, 0, -1))
    assert [percentile(values, share) for share in (50, 99)] == [50.0, 99.0]
    assert percentile((7.0,), 99) == 7.0
