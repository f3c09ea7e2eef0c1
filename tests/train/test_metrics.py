"""MetricsHandler: its frames, its files, and what a background hook sees of it."""

from __future__ import annotations

import math
import pickle
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from pandas.testing import assert_frame_equal
from torch import Tensor

from async_trainer import CallbacksHandler, Event, MetricsHandler, background
from async_trainer.errors import ConfigurationError, StandInError
from async_trainer.snapshot import Memo, Scope, keep, open_value, take
from async_trainer.testing import hold
from async_trainer.train.metrics import SealedMetrics, read_tsv, save_tsv


def accuracy(preds: Tensor, target: Tensor) -> Tensor:
    return preds.argmax(1) == target


def gap(preds: Tensor, target: Tensor) -> Tensor:
    return (preds[:, 0] - target).abs()


def output(*, first: int = 0, size: int = 4, **more: Any) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(first)
    return {"preds": torch.randn(size, 3, generator=generator), "target": torch.arange(first, first + size) % 3, **more}


def view_of(metrics: MetricsHandler) -> tuple[Any, Scope]:
    scope = Scope("on_validation_end")
    return open_value(take(metrics, Memo(), "metrics"), scope), scope


# ------------------------------------------------------------------------------------------------------------ frames


def test_a_frame_has_a_row_per_sample_and_the_epoch_first() -> None:
    frame = MetricsHandler(accuracy=accuracy, gap=gap)(output(), epoch=3)
    assert list(frame) == ["epoch", "sample", "accuracy", "gap"]
    assert frame.dtypes.astype(str).to_dict() == {
        "epoch": "int64", "sample": "int64", "accuracy": "float64", "gap": "float64",
    }  # fmt: skip
    assert frame["epoch"].tolist() == [3] * 4
    assert frame["sample"].tolist() == [0, 1, 2, 3]


def test_without_an_epoch_there_is_no_column_for_it() -> None:
    metrics = MetricsHandler(gap=gap)
    assert list(metrics(output())) == ["sample", "gap"]
    metrics.aggregate()
    assert list(metrics.df) == ["gap"]


def test_samples_are_numbered_on_over_the_batches_and_anew_after_a_reset() -> None:
    metrics = MetricsHandler(gap=gap)
    metrics(output())
    assert metrics(output(size=2))["sample"].tolist() == [4, 5]
    metrics.reset()
    assert metrics(output(size=2))["sample"].tolist() == [0, 1]


@pytest.mark.parametrize("names", [["a", "b"], ("a", "b"), np.array(["a", "b"]), dict.fromkeys("ab").keys()])
def test_samples_are_named_by_the_output(names: Any) -> None:
    assert MetricsHandler(gap=gap)(output(size=2, sample=names))["sample"].tolist() == ["a", "b"]


def test_samples_named_by_a_tensor_are_numbers() -> None:
    assert MetricsHandler(gap=gap)(output(size=2, sample=torch.tensor([7, 9])))["sample"].tolist() == [7, 9]


@pytest.mark.parametrize("names", [["a"], "ab", torch.tensor(3), ["a", "b", "c"]])
def test_as_many_samples_are_named_as_there_are(names: Any) -> None:
    metrics = MetricsHandler(gap=gap)
    with pytest.raises(ConfigurationError, match=r"evaluation_step named \d samples in a batch of 2"):
        metrics(output(size=2, sample=names))
    assert metrics.detailed_df.empty


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (torch.zeros(3), "must return a mapping of names to tensors.* a Tensor"),
        ((1, 2), "must return a mapping"),
        ({"loss": torch.tensor(1.0), "note": 3}, "nothing that has a batch dimension"),
        ({}, "nothing that has a batch dimension"),
    ],
)
def test_an_output_without_samples_is_refused(wrong: Any, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        MetricsHandler(gap=gap)(wrong)


def test_detailed_df_has_all_samples_of_the_last_evaluation() -> None:
    metrics = MetricsHandler(gap=gap)
    batches = [output(first=0), output(first=4), output(first=8, size=1)]
    frames = [metrics(batch, epoch=1) for batch in batches]
    assert_frame_equal(metrics.detailed_df, pd.concat(frames, ignore_index=True))
    metrics.reset()
    assert list(metrics.detailed_df) == ["sample", "gap"]
    assert metrics.detailed_df.empty


def test_who_writes_to_a_frame_writes_to_nobody_elses() -> None:
    metrics = MetricsHandler(gap=gap)
    first = metrics(output(sample=list("abcd")), epoch=1)
    expected = first.copy(deep=True)
    first.loc[:, "gap"] = -1.0
    del first["sample"]
    assert_frame_equal(metrics.detailed_df, expected)
    second = metrics.detailed_df
    second.loc[:, "gap"] = -3.0
    assert_frame_equal(metrics.detailed_df, expected)
    assert not any(np.shares_memory(metrics.detailed_df["gap"].to_numpy(), part["gap"]) for part in metrics._details)


def test_the_row_that_aggregate_returns_is_the_callers() -> None:
    metrics = MetricsHandler(gap=gap)
    metrics(output())
    metrics.aggregate()["gap"] = -1.0
    assert metrics.get_metric_value("gap") >= 0


# --------------------------------------------------------------------------------------------------------- aggregates


@pytest.mark.parametrize("sizes", [(4, 4), (4, 4, 1), (1,), (3, 0, 2)])
def test_the_aggregate_is_the_metric_over_all_samples(sizes: tuple[int, ...]) -> None:
    metrics = MetricsHandler(gap=gap, mean=lambda preds, target: gap(preds, target).mean() if len(preds) else 0.0)
    batches = [output(first=10 * place, size=size) for place, size in enumerate(sizes)]
    for batch in batches:
        metrics(batch)
    everything = torch.cat([gap(**batch) for batch in batches])
    row = metrics.aggregate()
    assert row["gap"] == pytest.approx(float(everything.mean()), rel=1e-6)
    assert row["mean"] == pytest.approx(row["gap"], rel=1e-6)


def test_an_empty_loader_gives_nan() -> None:
    metrics = MetricsHandler(gap=gap)
    row = metrics.aggregate(epoch=1)
    assert math.isnan(row["gap"])
    assert math.isnan(metrics.get_metric_value("gap", 1))


def test_nan_is_not_averaged_away() -> None:
    metrics = MetricsHandler(x=lambda preds: preds[:, 0])
    metrics({"preds": torch.tensor([[1.0], [float("nan")]])})
    metrics({"preds": torch.tensor([[1.0], [2.0]])})
    assert math.isnan(metrics.aggregate()["x"])


def test_a_million_values_sum_without_drift() -> None:
    metrics = MetricsHandler(x=lambda preds: preds)
    for _ in range(100):
        metrics({"preds": torch.full((10_000,), 0.1)})
    assert metrics.aggregate()["x"] == pytest.approx(float(torch.tensor(0.1)), rel=1e-12)


def test_df_has_a_row_per_evaluation() -> None:
    metrics = MetricsHandler(gap=gap)
    for epoch in (2, 4):
        metrics.reset()
        metrics(output(first=epoch), epoch=epoch)
        metrics.aggregate(epoch=epoch)
    assert metrics.df["epoch"].tolist() == [2, 4]
    assert metrics.df["epoch"].dtype == "int64"
    assert metrics.get_metric_value("gap") == metrics.df["gap"].iloc[1]
    assert metrics.get_metric_value("gap", epoch=2) == metrics.df["gap"].iloc[0]
    metrics.reset(results=True)
    assert list(metrics.df) == ["gap"]
    assert metrics.df.empty


def test_a_value_that_is_not_there_is_refused_with_what_there_is() -> None:
    metrics = MetricsHandler(gap=gap)
    with pytest.raises(ConfigurationError, match="no evaluation yet"):
        metrics.get_metric_value("gap")
    with pytest.raises(ConfigurationError, match="did you mean 'gap'"):
        metrics.get_metric_value("gpa")
    metrics.aggregate(epoch=1)
    with pytest.raises(ConfigurationError, match="no evaluation in epoch 2"):
        metrics.get_metric_value("gap", epoch=2)
    with pytest.raises(ConfigurationError, match=r"did you mean 'gap'\?; there are: gap"):
        metrics.get_metric_value("gpa")
    with pytest.raises(ConfigurationError, match="no metric 'epoch'"):
        metrics.get_metric_value("epoch")


# -------------------------------------------------------------------------------------------------------- the handlers


def test_a_subset_has_results_of_its_own() -> None:
    metrics = MetricsHandler(accuracy=accuracy, gap=gap)
    metrics(output())
    metrics.aggregate()
    part = metrics.subset(["gap"])
    assert part.names == ("gap",)
    assert part.df.empty
    part(output(first=5))
    part(output(first=6))
    part.aggregate()
    assert len(part.df) == len(metrics.df) == 1
    assert len(part.detailed_df) == 8
    assert len(metrics.detailed_df) == 4
    assert metrics.aggregate()["gap"] == metrics.df["gap"].iloc[0]


def test_a_subset_of_all_has_all_and_added_ones_are_not_shared() -> None:
    metrics = MetricsHandler(gap=gap)
    part = metrics.subset()
    part.add_metrics(accuracy=accuracy)
    assert part.names == ("gap", "accuracy")
    assert metrics.names == ("gap",)


def test_a_subset_of_what_is_not_there_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="no metric 'gpa'; did you mean 'gap'"):
        MetricsHandler(gap=gap).subset(["gpa"])
    with pytest.raises(ConfigurationError, match=r"list of names: \['gap'\]"):
        MetricsHandler(gap=gap).subset("gap")


@pytest.mark.parametrize(
    ("name", "metric", "message"),
    [
        ("gap", gap, "a metric 'gap' already"),
        ("sample", gap, "'sample' is a column"),
        ("epoch", gap, "'epoch' is a column"),
        ("f1", 3, "f1 must be a function"),
        ("f1", torch.nn.MSELoss, r"an instance of it: MSELoss\(\.\.\.\)"),
    ],
)
def test_of_metrics_that_are_added_all_come_or_none(name: str, metric: Any, message: str) -> None:
    metrics = MetricsHandler(gap=gap)
    with pytest.raises(ConfigurationError, match=message):
        metrics.add_metrics(**{"fine": accuracy, name: metric})
    assert metrics.names == ("gap",)


def test_a_metric_may_be_called_self() -> None:
    assert MetricsHandler(self=gap).names == ("self",)


def test_a_loss_gives_way_to_a_metric_of_its_name() -> None:
    metrics = MetricsHandler(loss=gap)
    metrics.add_losses({"loss": torch.nn.L1Loss(), "other": torch.nn.L1Loss()})
    assert metrics.names == ("loss", "other")
    assert metrics.subset(["loss"])(output())["loss"].tolist() == gap(**output()).tolist()


def test_a_handler_without_metrics_still_knows_the_samples(tmp_path: Path) -> None:
    metrics = MetricsHandler()
    assert list(metrics(output())) == ["sample"]
    assert metrics.aggregate() == {}
    metrics.save(tmp_path / "metrics.tsv", tmp_path / "samples.tsv")
    assert read_tsv(tmp_path / "metrics.tsv").empty
    assert read_tsv(tmp_path / "samples.tsv")["sample"].tolist() == [0, 1, 2, 3]


def test_its_repr_is_one_line() -> None:
    assert repr(MetricsHandler()) == "<MetricsHandler: no metrics; 0 evaluations>"
    assert repr(MetricsHandler(gap=gap, a=gap)) == "<MetricsHandler: gap, a; 0 evaluations>"


# --------------------------------------------------------------------------------------------------------------- files


def test_what_is_saved_comes_back_to_the_last_digit(tmp_path: Path) -> None:
    metrics = MetricsHandler(x=lambda preds: preds)
    values = torch.tensor([1 / 3, 1e-310, 1e308, -0.0, float("nan"), float("inf"), 0.1 + 0.2], dtype=torch.float64)
    metrics({"preds": values}, epoch=1)
    for epoch in (1, 2, 3):
        metrics.reset()
        metrics({"preds": values[:1] * epoch / 7}, epoch=epoch)
        metrics.aggregate(epoch=epoch)
    metrics({"preds": values}, epoch=3)
    metrics.save(tmp_path / "metrics.tsv", tmp_path / "samples.tsv")
    assert_frame_equal(read_tsv(tmp_path / "metrics.tsv"), metrics.df, check_exact=True)
    assert_frame_equal(read_tsv(tmp_path / "samples.tsv"), metrics.detailed_df, check_exact=True)
    other = MetricsHandler(x=lambda preds: preds)
    other.load(tmp_path / "metrics.tsv")
    assert_frame_equal(other.df, metrics.df, check_exact=True)
    assert other.get_metric_value("x", epoch=2) == metrics.get_metric_value("x", epoch=2)
    other.aggregate(epoch=4)
    assert other.df["epoch"].tolist() == [1, 2, 3, 4]
    assert other.df["epoch"].dtype == "int64"


@pytest.mark.parametrize(
    "names",
    [["007", "010"], ["NA", "nan", "None", "", "null"], ["1e5", "0x1", "1.0", "True"], ["a\tb", 'c"d', "e\nf", "ü ☃"]],
)
def test_names_of_samples_come_back_as_they_are(tmp_path: Path, names: list[str]) -> None:
    save_tsv(pd.DataFrame({"sample": names, "x": 0.5}), tmp_path / "samples.tsv")
    assert read_tsv(tmp_path / "samples.tsv")["sample"].tolist() == names


def test_numbers_of_samples_come_back_as_numbers(tmp_path: Path) -> None:
    save_tsv(pd.DataFrame({"sample": [0, -5, 10**17], "x": float("nan")}), tmp_path / "samples.tsv")
    again = read_tsv(tmp_path / "samples.tsv")
    assert again["sample"].tolist() == [0, -5, 10**17]
    assert again["x"].isna().all()


def test_a_file_of_other_metrics_is_refused_and_nothing_changes(tmp_path: Path) -> None:
    save_tsv(pd.DataFrame({"epoch": [1], "gap": [0.5]}), tmp_path / "metrics.tsv")
    metrics = MetricsHandler(accuracy=accuracy)
    metrics.aggregate(epoch=7)
    with pytest.raises(ConfigurationError, match="has no column 'accuracy'"):
        metrics.load(tmp_path / "metrics.tsv")
    assert metrics.df["epoch"].tolist() == [7]


# ------------------------------------------------------------------------------------------------- in the background


def evaluated() -> MetricsHandler:
    metrics = MetricsHandler(gap=gap)
    metrics(output(), epoch=1)
    metrics.aggregate(epoch=1)
    return metrics


@pytest.mark.parametrize("opened", ["before", "after"])
def test_a_view_shows_the_event_while_the_live_one_goes_on(opened: str) -> None:
    metrics = evaluated()
    rows, details = metrics.df, metrics.detailed_df
    sealed, scope = take(metrics, Memo(), "metrics"), Scope()
    view = open_value(sealed, scope) if opened == "before" else None
    metrics(output(first=1), epoch=1)
    metrics.aggregate(epoch=1)
    metrics.add_metrics(accuracy=accuracy)
    view = view or open_value(sealed, scope)
    for _ in range(2):
        assert_frame_equal(view.df, rows)
        assert_frame_equal(view.detailed_df, details)
        assert view.names == ("gap",)
        assert view.get_metric_value("gap") == rows["gap"].iloc[0]
        metrics.reset(results=True)
        metrics(output(first=2), epoch=2)


def test_a_view_of_a_pass_under_way_shows_its_first_batches() -> None:
    metrics = MetricsHandler(gap=gap)
    views = []
    for first in range(5):
        views.append(take(metrics, Memo(), "metrics"))
        metrics(output(first=first))
    everything = metrics.detailed_df
    for batches, sealed in enumerate(views):
        assert len(open_value(sealed, Scope()).detailed_df) == 4 * batches
    assert_frame_equal(open_value(views[3], Scope()).detailed_df, everything.iloc[:12])


def test_a_view_saves_what_it_shows(tmp_path: Path) -> None:
    metrics = evaluated()
    view, _ = view_of(metrics)
    rows = metrics.df
    metrics.reset(results=True)
    view.save(tmp_path / "metrics.tsv")
    assert_frame_equal(read_tsv(tmp_path / "metrics.tsv"), rows)


@pytest.mark.parametrize(
    "use",
    [
        lambda view: view(output()),
        lambda view: view.aggregate(),
        lambda view: view.reset(),
        lambda view: view.add_metrics(accuracy=accuracy),
        lambda view: view.add_losses({}),
        lambda view: view.subset(["gap"]),
        lambda view: view.load("metrics.tsv"),
    ],
)
def test_a_view_can_not_be_changed_and_says_so(use: Any) -> None:
    view, _ = view_of(evaluated())
    with pytest.raises(StandInError, match=r"background hooks see a snapshot.*inline"):
        use(view)


def test_a_view_expires_with_its_hook_and_says_so() -> None:
    view, scope = view_of(evaluated())
    scope.close()
    with pytest.raises(StandInError, match=r"on_validation_end has returned.*name `metrics` in each hook"):
        view.get_metric_value("gap")
    with pytest.raises(StandInError, match="has returned"):
        view.df  # noqa: B018


def test_a_view_that_is_kept_stays() -> None:
    metrics = evaluated()
    rows = metrics.df
    view, scope = view_of(metrics)
    keep({"metrics": view})
    scope.close()
    metrics.reset(results=True)
    assert_frame_equal(view.df, rows)


def test_writing_to_a_views_rows_or_frames_reaches_neither_the_live_ones_nor_another_hook() -> None:
    metrics = evaluated()
    rows, details = metrics.df, metrics.detailed_df
    sealed = take(metrics, Memo(), "metrics")
    view, other = open_value(sealed, Scope()), open_value(sealed, Scope())
    for frame in (view.df, view.detailed_df):
        frame.loc[:, "gap"] = -1.0
    view._rows[0]["gap"] = -1.0
    view._details.clear()
    for one in (metrics, other):
        assert_frame_equal(one.df, rows)
        assert_frame_equal(one.detailed_df, details)


def test_a_capture_copies_no_batch() -> None:
    metrics = MetricsHandler(gap=gap)
    for first in range(50):
        metrics(output(first=first))
    metrics.aggregate()
    sealed = take(metrics, Memo(), "metrics")
    assert isinstance(sealed, SealedMetrics)
    assert sealed.details is metrics._details
    assert sealed.rows is metrics._rows


def test_a_capture_leaves_the_metrics_themselves_behind() -> None:
    metrics = MetricsHandler(gap=lambda preds: preds.sum(1))
    metrics(output())
    pickle.loads(pickle.dumps(take(metrics, Memo(), "metrics")))


def test_hooks_in_the_background_see_each_event_as_it_was() -> None:
    seen: list[tuple[int, int, list[float]]] = []

    class Reads:
        def on_batch_end(self, *, state: Any, metrics: Any) -> None:
            seen.append((state, len(metrics.detailed_df), metrics.df.get("gap", pd.Series(dtype=float)).tolist()))

    metrics = MetricsHandler(gap=gap)
    expected = []
    with CallbacksHandler([background(Reads(), name="reads")]) as handler, hold(handler):
        for number in range(30):
            if number % 10 == 0:
                metrics.reset()
            metrics(output(first=number))
            if number % 10 == 9:
                metrics.aggregate()
            rows = metrics.df["gap"].tolist() if len(metrics.df) else []
            expected.append((number, len(metrics.detailed_df), rows))
            handler.call_event(Event.BATCH_END, state=number, metrics=metrics)
    assert seen == expected


def test_opening_on_many_threads_while_the_live_one_goes_on_tears_nothing() -> None:
    metrics = MetricsHandler(gap=gap)
    sealed: list[tuple[int, int, Any]] = []
    wrong: list[Any] = []
    done = threading.Event()

    def check(samples: int, rows: int, taken: Any) -> None:
        view = open_value(taken, Scope())
        if len(view.detailed_df) != samples or len(view.df) != rows or view.df.isna().any(axis=None):
            wrong.append((samples, rows, view))

    def read() -> None:
        place = 0
        while not done.is_set() or place < len(sealed):
            if place < len(sealed):
                check(*sealed[place])
                place += 1

    readers = [threading.Thread(target=read) for _ in range(2)]
    for reader in readers:
        reader.start()
    try:
        batch = output(size=1)
        for number in range(240):
            if number % 20 == 0:
                metrics.reset(results=number % 80 == 0)
            metrics(batch, epoch=1)
            if number % 5 == 4:
                metrics.aggregate(epoch=number)
            sealed.append((number % 20 + 1, len(metrics._rows), take(metrics, Memo(), "metrics")))
    finally:
        done.set()
        for reader in readers:
            reader.join()
    assert not wrong
