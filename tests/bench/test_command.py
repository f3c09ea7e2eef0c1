"""``async-trainer bench``: its table, its file, its exit status."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from async_trainer import cli
from async_trainer.bench import run
from async_trainer.bench.row import Row
from async_trainer.bench.timing import Effort


def rows_with(ratio: float, absolute: float = 1.0) -> list[Row]:
    return [
        Row("an event", 3.0, "µs", 12.5, beside="a log", other=10.0, ratio=ratio, budget=0.3, of="ratio", gated=True),
        Row("a thing", absolute, "ms", budget=2.0, note="so long"),
        Row("a rate", 150_000.0, "events/s", budget=200_000.0, at_least=True),
        Row("(a floor)", 0.123, "µs"),
    ]


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[Row]]:
    """What each scenario "measures"; asked for by name."""
    given: dict[str, list[Row]] = {}
    monkeypatch.setattr(run, "run_one", lambda name, effort: given[name])
    return given


@pytest.mark.parametrize(
    ("ratio", "status", "verdict"), [(0.29, 0, "met, gated"), (0.3, 0, "met, gated"), (0.31, 1, "MISSED, gated")]
)
def test_check_fails_where_a_gated_ratio_misses_its_budget(
    ratio: float, status: int, verdict: str, figures: dict[str, list[Row]], capsys: pytest.CaptureFixture[str]
) -> None:
    figures["overhead"] = rows_with(ratio)
    assert cli.main(["bench", "overhead", "--check"]) == status
    said = capsys.readouterr()
    line = next(line for line in said.out.splitlines() if line.startswith("an event"))
    assert verdict in line
    assert ("an event: 0.31 x a log, budget 0.3" in said.err) == bool(status)


def test_without_check_the_status_is_0_and_what_is_missed_is_said(
    figures: dict[str, list[Row]], capsys: pytest.CaptureFixture[str]
) -> None:
    figures["overhead"] = rows_with(0.5)
    assert cli.main(["bench", "overhead"]) == 0
    out = capsys.readouterr().out
    assert "1 of 3 budgets met" in out
    assert out.splitlines()[-1] == "0 s in all"
    assert "missed: overhead: an event (gated)" in out
    assert "missed: overhead: a rate\n" in out


def test_an_absolute_budget_that_is_missed_is_shown_and_fails_no_check(
    figures: dict[str, list[Row]], capsys: pytest.CaptureFixture[str]
) -> None:
    figures["paced"] = rows_with(0.1, absolute=7.0)
    assert cli.main(["bench", "paced", "--check"]) == 0
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("a thing"))
    assert line.split("  ")[0] == "a thing"
    assert "≤ 2 ms" in line
    assert line.endswith("missed (so long)")


def test_the_table_has_the_figure_what_stands_beside_it_the_ratio_and_the_budget(
    figures: dict[str, list[Row]], capsys: pytest.CaptureFixture[str]
) -> None:
    figures["overhead"] = rows_with(0.25)
    cli.main(["bench", "overhead"])
    out = capsys.readouterr().out
    line = next(line for line in out.splitlines() if line.startswith("an event"))
    assert " ".join(line.split()) == "an event 3 µs 12.5 a log: 10 µs 0.25 x ≤ 0.3 x met, gated"
    assert "150,000 events/s" in out
    assert "≥ 200,000 events/s" in out


def test_the_file_has_the_figures_and_the_machine(figures: dict[str, list[Row]], tmp_path: Path) -> None:
    figures |= {"overhead": rows_with(0.25), "import": rows_with(0.5)}
    path = tmp_path / "new" / "bench.json"
    assert cli.main(["bench", "overhead", "import", "--json", str(path), "--quick"]) == 0
    written = json.loads(path.read_text(encoding="utf-8"))
    assert list(written["scenarios"]) == ["overhead", "import"]
    assert [row["met"] for row in written["scenarios"]["import"]["rows"]] == [False, True, False, None]
    assert Row.from_json(written["scenarios"]["overhead"]["rows"][0]) == rows_with(0.25)[0]
    assert written["quick"] is True
    assert written["machine"]["cores"] >= 1
    assert written["machine"]["python"].startswith("3.")


def test_a_file_that_can_t_be_written_is_told_before_anything_is_measured(
    figures: dict[str, list[Row]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["bench", "overhead", "--json", str(tmp_path)]) == 1  # a KeyError, had it measured
    assert "Is a directory" in capsys.readouterr().err


def test_an_unknown_scenario_is_refused_by_name(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(["bench", "overhaed"])
    assert ended.value.code == 2
    assert "there is no scenario 'overhaed'; there are overhead, paced" in capsys.readouterr().err


def test_a_scenario_whose_process_fails_is_an_error_with_what_it_said() -> None:
    with pytest.raises(run.BenchError, match=r"no such: it ended with status 1(.|\n)*KeyError: 'no such'"):
        run.run_one("no such", Effort())


def test_a_scenario_runs_in_a_process_of_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["bench", "proxy", "--quick"]) == 0
    out = capsys.readouterr().out
    line = next(line for line in out.splitlines() if line.startswith("a proxied call"))
    assert "logging.QueueHandler" in line
    assert "≤ 3 µs" in line


def test_only_the_budget_of_a_ratio_can_be_gated() -> None:
    with pytest.raises(ValueError, match="only the budget of a ratio"):
        Row("an event", 3.0, "µs", budget=2.0, gated=True)
