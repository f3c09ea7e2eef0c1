"""``async-trainer report``: one page, of whole, partial, killed and resumed runs."""

from __future__ import annotations

import json
import os
import socket
import sys
import threading
from pathlib import Path
from typing import Any

import pyarrow.parquet
import pytest
import torch

from async_trainer import CallbacksHandler, OptimizationConfig, Split, SupervisedModel, Trainer, background, cli
from async_trainer.callbacks import MetricsLog, TrainingCheckpoint, parquet_rows
from async_trainer.errors import LaneError
from async_trainer.watching import status
from async_trainer.watching.report.charts import COLOURS, POINTS, line_chart, log_ticks, nice_ticks, thinned
from async_trainer.watching.report.gather import gather
from async_trainer.watching.steps import Steps
from tests.watch.kit import Page, status_of

BATCHES = 8


class Fails:
    def on_validation_end(self, *, state: Any) -> None:
        raise ValueError("</pre><script>alert(1)</script>")


class StopsTheRun:
    """Inline."""

    def __init__(self, epoch: int) -> None:
        self.epoch = epoch

    def on_epoch_start(self, *, state: Any) -> None:
        if state.current_epoch == self.epoch:
            raise RuntimeError("a bad day")


def make_trainer(folder: Path, *callbacks: Any, epochs: int = 3, timeline: bool = False, made: bool = False) -> Trainer:
    torch.manual_seed(0)
    network = torch.nn.Linear(4, 1)
    model = SupervisedModel(network, torch.nn.MSELoss(), lambda params: torch.optim.SGD(params, lr=0.1))
    handler = CallbacksHandler([MetricsLog(), *callbacks], timeline=timeline)
    if made:
        return Trainer.from_maps(folder, model=model, callbacks=handler)
    return Trainer(folder, model, optimization=OptimizationConfig(num_epochs=epochs), callbacks=handler)


def split(index: int = 0) -> Split:
    x = torch.arange(64.0).reshape(16, 4) / 64
    data = torch.utils.data.TensorDataset(x, x.sum(1, keepdim=True))
    return Split(index, data, data, batch_size=2)


def report(run: Path) -> Page:
    assert cli.main(["report", str(run)]) == 0
    text = (run / "report.html").read_text()
    assert "script" not in Page(text).tags
    return Page(text)


def test_a_trainers_run_has_it_all_and_what_was_said_is_escaped(tmp_path: Path) -> None:
    run = tmp_path / "run <1>"
    trainer = make_trainer(run, background(Fails()), StopsTheRun(99), timeline=True)
    trainer.train(split())
    trainer.train(split(1))
    trainer.callbacks.close()
    page = report(run)
    assert [one for one in page.headings if "split" in one] == ["run <1> · split 0", "run <1> · split 1"]
    for section in ("Where the loop's time went", "Step times", "Lanes", "Failures", "Metrics"):
        assert page.headings.count(section) == 2
    assert "</pre><script>alert(1)</script>" in page.words
    assert page.words.count("ValueError: </pre><script>alert(1)</script>") >= 2
    for words in ("metrics_log", "fails", "3 times", "forward", "inline hooks", "loss", "of 3", "at ui.perfetto.dev"):
        assert words in page.words
    assert page.tags.count("svg") >= 2 * 4, "step times over the run and as a histogram, loss, learning rate"
    assert page.words.count("3 times") == 2, "each training has its own books"
    assert [one.status.said["lanes"]["fails"]["failed"] for one in gather(run)] == [3, 3]
    steps = status.read(run / "split-0" / status.NAME).said["steps"]
    assert steps["count"] == 3 * BATCHES, "batches of the validation are no steps"
    assert sum(steps["classes"].values()) == 3 * BATCHES - 3, "an epoch's first comes after a validation, or a start"


def test_it_needs_nothing_from_elsewhere(tmp_path: Path) -> None:
    status_of(tmp_path)
    page = report(tmp_path)
    assert not {name for name, _ in page.attributes} & {"src", "href", "srcset", "data", "onclick"}
    assert "url(" not in (tmp_path / "report.html").read_text()
    policy = [value for name, value in page.attributes if name == "content" and value and "default-src" in value]
    assert policy == ["default-src 'none'; style-src 'unsafe-inline'"]


def test_a_training_that_failed_and_was_resumed_is_one_run(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path / "run", TrainingCheckpoint(), StopsTheRun(3), timeline=True)
    with pytest.raises(RuntimeError, match="a bad day"):
        trainer.train(split())
    trainer.callbacks.close()
    page = report(tmp_path / "run")
    assert "ended by RuntimeError" in page.words
    trainer = make_trainer(tmp_path / "run", TrainingCheckpoint(), made=True, timeline=True)
    trainer.resume(0, split())
    trainer.callbacks.close()
    (found,) = gather(tmp_path / "run")
    assert found.status.state == "finished"
    again = found.status.said["steps"]["count"]  # those of the second epoch too, if its resume state came too late
    assert found.steps == 2 * BATCHES + again
    assert again in (BATCHES, 2 * BATCHES)
    assert len(found.resumed) == 1
    assert found.seconds > found.resumed[0] > 0
    assert [step for step, _ in found.curves["loss"]["training"]] == list(range(3 * BATCHES))
    assert len(found.curves["loss"]["validation"]) == 3
    from tests.watch.test_timeline import check_nesting, events_of

    events = events_of(tmp_path / "run" / "split-0" / status.TIMELINE)
    assert sum(one["name"] == "batch" and one["ph"] == "X" for one in events) == 2 * found.steps
    check_nesting(events)
    assert "finished" in report(tmp_path / "run").words


def test_a_callback_whose_output_is_missed_does_not_make_the_run_look_finished(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path / "run", background(Fails(), on_error="raise_at_end"))
    with pytest.raises(LaneError):
        trainer.train(split())
    assert status.read(tmp_path / "run" / "split-0" / status.NAME).state == "ended by LaneError"


@pytest.mark.parametrize("state", ["running", "killed", "finished"])
def test_a_run_that_has_said_almost_nothing_has_a_page(state: str, tmp_path: Path) -> None:
    here = {"host": socket.gethostname()} if state == "killed" else {}  # where its process is known not to be
    status_of(tmp_path, state="running" if state == "killed" else state, lanes={}, **here)
    page = report(tmp_path)
    assert state in page.words
    assert "all callbacks ran inline" in page.words


def test_what_died_with_a_run_that_was_killed_is_counted(tmp_path: Path) -> None:
    lane = json.loads(status_of(tmp_path).read_text())["lanes"]["log"]
    for count, words in ((0, "none failed, dropped or lost"), (10, "10 never handled")):
        status_of(tmp_path, lanes={"log": {**lane, "queued": count}}, host=socket.gethostname())
        assert words in report(tmp_path).words


def test_what_is_damaged_is_told_and_the_rest_shown(tmp_path: Path) -> None:
    status_of(tmp_path)
    point = {"at": 1.0, "steps": 3, "step": [0.1, 0.2], "paid": {}, "lanes": {"log": [3, 0.5]}}
    torn = json.dumps({**point, "at": 2.0})
    (tmp_path / status.HISTORY).write_text(f"{json.dumps(point)}\n{torn}\n{torn[:20]}")  # killed while it wrote
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": 0.5}\n{"step": 2, "loss": "NaN"}\nno JSON\n')
    (found,) = gather(tmp_path)
    assert [at for at, _, _ in found.step_times] == [1.0, 2.0]
    assert found.curves == {"loss": {"training": [(1.0, 0.5)]}}
    assert found.unread == ["metrics.jsonl, line 3: Expecting value: line 1 column 1 (char 0)"]
    page = report(tmp_path)
    assert "Not read: metrics.jsonl, line 3" in page.words
    assert "Events that wait" in page.words


def test_metrics_are_read_from_csv_and_tsv_too(tmp_path: Path) -> None:
    status_of(tmp_path / "csv")
    (tmp_path / "csv" / "metrics.csv").write_text(
        "epoch,batch,step,name,value\n1,1,0,loss,0.5\n1,,8,validation/loss,nan\n"
    )
    status_of(tmp_path / "tsv")
    (tmp_path / "tsv" / "metrics.tsv").write_text("epoch\tloss\n1\t0.5\n2\t0.25\n")
    (of_csv,), (of_tsv,) = gather(tmp_path / "csv"), gather(tmp_path / "tsv")
    assert of_csv.curves == {"loss": {"training": [(0.0, 0.5)]}}
    assert of_tsv.curves == {"loss": {"validation": [(1.0, 0.5), (2.0, 0.25)]}}
    assert of_tsv.by_epoch


def test_metrics_are_read_from_parquet_as_from_json_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet_rows, "SEGMENT", 5)  # several files
    trainer = make_trainer(tmp_path / "run", MetricsLog(tmp_path / "run" / "split-0" / "logs" / "rows.parquet"))
    trainer.train(split())
    trainer.callbacks.close()
    logs = tmp_path / "run" / "split-0" / "logs"
    (of_both,) = gather(tmp_path / "run")
    (logs / "metrics.jsonl").rename(tmp_path / "metrics.jsonl")
    (of_parquet,) = gather(tmp_path / "run")
    (logs / "rows.parquet").rename(tmp_path / "rows.parquet")
    (tmp_path / "metrics.jsonl").rename(logs / "metrics.jsonl")
    (of_lines,) = gather(tmp_path / "run")
    assert len(list((tmp_path / "rows.parquet").iterdir())) > 3
    assert of_parquet.curves == of_lines.curves != {}
    assert len(of_lines.curves["loss"]["training"]) == 3 * BATCHES
    assert len(of_lines.curves["loss"]["validation"]) == 3
    assert of_both.curves == of_lines.curves  # not each value twice
    assert not of_parquet.unread
    (tmp_path / "rows.parquet").rename(logs / "rows.parquet")
    (logs / "metrics.jsonl").unlink()
    assert "Metrics" in report(tmp_path / "run").headings


def test_parquet_that_is_damaged_of_another_kind_or_can_not_be_read_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    status_of(tmp_path)
    (tmp_path / "rows.parquet").mkdir()
    (tmp_path / "rows.parquet" / "rows-0.parquet").write_bytes(b"PAR1 and no more")
    pyarrow.parquet.write_table(
        pyarrow.table({"step": [1, 2], "name": ["loss", None], "value": [0.5, float("nan")]}),
        tmp_path / "rows.parquet" / "rows-1.parquet",
    )
    pyarrow.parquet.write_table(pyarrow.table({"price": [1.5]}), tmp_path / "other.parquet")
    (found,) = gather(tmp_path)
    assert found.curves == {"loss": {"training": [(1.0, 0.5)]}}
    (told,) = found.unread
    assert told.startswith("rows.parquet, rows-0.parquet: ")
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    (found,) = gather(tmp_path)
    assert not found.curves
    assert all("pip install 'async_trainer[parquet]'" in one for one in found.unread)
    assert "Not read: rows.parquet" in report(tmp_path).words


def test_what_is_no_run_has_no_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["report", str(tmp_path)]) == 1
    assert "holds no status file" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_the_page_goes_where_it_is_asked_to_go(tmp_path: Path) -> None:
    status_of(tmp_path / "run")
    assert cli.main(["report", str(tmp_path / "run"), "--output", str(tmp_path / "page.html")]) == 0
    Page((tmp_path / "page.html").read_text())
    assert not (tmp_path / "run" / "report.html").exists()


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [(0, 10, [0, 2, 4, 6, 8, 10]), (0, 0, [-1, -0.5, 0, 0.5, 1]), (0.1, 0.9, [0, 0.2, 0.4, 0.6, 0.8, 1.0])],
)
def test_ticks_are_round_and_hold_what_is_between(low: float, high: float, ticks: list[float]) -> None:
    assert nice_ticks(low, high) == pytest.approx(ticks)


@pytest.mark.parametrize(
    "losses",
    [
        ["1.0", "1e100", "1.5e308"],
        ["1.7e308", "1.7e308"],
        ["1.7e308", "-1.7e308"],
        ["0.0", "5e-324"],
        ["1.0", "1" + "0" * 400],
        ["1.0", "[" * 100_000],
    ],
)
def test_losses_at_the_ends_of_what_a_number_can_be_are_drawn(tmp_path: Path, losses: list[str]) -> None:
    status_of(tmp_path)
    rows = [f'{{"epoch": 1, "batch": {n}, "step": {n}, "loss": {loss}}}' for n, loss in enumerate(losses)]
    (tmp_path / "metrics.jsonl").write_text("\n".join(rows) + "\n")
    assert report(tmp_path).tags


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no pipes with names")
def test_the_page_goes_through_a_pipe_or_a_link_and_leaves_them(tmp_path: Path) -> None:
    run, pipe, link, target = (tmp_path / one for one in ("run", "pipe", "link", "target"))
    status_of(run)
    os.mkfifo(pipe)
    read: list[bytes] = []
    reader = threading.Thread(target=lambda: read.append(pipe.read_bytes()))
    reader.start()
    assert cli.main(["report", str(run), "--output", str(pipe)]) == 0
    reader.join(60)
    assert read[0].endswith(b"</html>\n")
    assert pipe.is_fifo()
    target.write_text("old")
    link.symlink_to(target)
    assert cli.main(["report", str(run), "--output", str(link)]) == 0
    assert link.is_symlink()
    assert target.read_bytes() == read[0]


@pytest.mark.parametrize(("low", "high"), [(1e-5, 3.0), (0.02, 0.021), (1.0, 1.0), (7.0, 12.0), (1e-12, 1e12)])
def test_logarithmic_ticks_hold_what_is_between(low: float, high: float) -> None:
    ticks = log_ticks(low, high)
    assert ticks == sorted(set(ticks))
    assert len(ticks) > 1
    assert ticks[0] <= low * 1.001
    assert ticks[-1] >= high * 0.999


def test_a_long_line_keeps_its_extremes_and_its_order() -> None:
    line = [(float(x), 0.0) for x in range(100_000)]
    line[12_345], line[67_890] = (12_345.0, 9.0), (67_890.0, -9.0)
    thin = thinned(line)
    assert len(thin) <= 2 * POINTS
    assert {(12_345.0, 9.0), (67_890.0, -9.0)} <= set(thin)
    assert thin == sorted(thin)


def test_a_chart_holds_any_numbers() -> None:
    for line in (
        [(0.0, 0.0)],
        [(1.0, 5.0), (1.0, 5.0)],
        [(0.0, -1e300), (1.0, 1e300)],
        [(0.0, 1e-300), (1.0, 1e-299)],
        [],
    ):
        for log in (False, True):
            Page(line_chart({"<b>": line}, label='"', x_label="<i>", log=log))
    many = line_chart({str(n): [(0.0, 1.0), (1.0, n)] for n in range(20)}, label="", x_label="")
    assert all(colour in many for colour in COLOURS)


def test_steps_are_counted_from_one_end_to_the_next() -> None:
    steps = Steps()
    assert steps.quantile(0.5) is None
    for end in (0.0, 0.1, 0.2, 0.3, 1.3):
        steps.ended(end)
    assert steps.take_recent() == (4, pytest.approx(0.1), pytest.approx(1.0))
    assert steps.take_recent() is None
    steps.interrupted()
    steps.ended(100.0)
    assert steps.count == 6
    assert steps.seconds == pytest.approx(1.3)
    assert steps.quantile(0.5) == pytest.approx(0.1, rel=0.13)
    assert steps.quantile(0.99) == pytest.approx(1.0, rel=0.13)
