"""The kinds of metrics: functions, torch's losses, and what counts by itself."""

from __future__ import annotations

import functools
import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from async_trainer import MetricsHandler
from async_trainer.errors import ConfigurationError
from async_trainer.train.metric import Stateful

CLASSES = torch.arange(7) % 3
LOGITS = torch.randn(7, 3, generator=torch.Generator().manual_seed(1))
OUTPUT = {"preds": LOGITS, "target": CLASSES}
SIZES = (4, 3)  # a short last batch


def batches(output: dict[str, Any]) -> list[dict[str, Any]]:
    bounds = [(0, SIZES[0]), (SIZES[0], sum(SIZES))]
    return [{name: value[start:end] for name, value in output.items()} for start, end in bounds]


def computed(metrics: MetricsHandler, output: dict[str, Any] = OUTPUT) -> dict[str, float]:
    for batch in batches(output):
        metrics(batch)
    return metrics.aggregate()


# ---------------------------------------------------------------------------------------------------------- functions


@pytest.mark.parametrize(
    ("returned", "per_sample"),
    [
        (torch.tensor([1.0, 2.0]), [1.0, 2.0]),
        (torch.tensor([True, False]), [1.0, 0.0]),
        (torch.tensor([3, 4]), [3.0, 4.0]),
        (torch.tensor([1.5, 2.5], dtype=torch.bfloat16), [1.5, 2.5]),
        (torch.tensor([1.0, 2.0], requires_grad=True), [1.0, 2.0]),
        (torch.tensor([[1.0, 3.0], [5.0, 5.0]]), [2.0, 5.0]),
        (torch.tensor([[[True], [False]], [[True], [True]]]), [0.5, 1.0]),
        (torch.tensor(0.5), [0.5, 0.5]),
        (0.5, [0.5, 0.5]),
        (True, [1.0, 1.0]),
        (2, [2.0, 2.0]),
        ([1.0, 2.0], [1.0, 2.0]),
        (np.array([1.0, 2.0]), [1.0, 2.0]),
        (np.array([2.0, 1.0])[::-1], [1.0, 2.0]),
        (np.array([True, False]), [1.0, 0.0]),
        (np.float32(0.5), [0.5, 0.5]),
        (np.array(0.5), [0.5, 0.5]),
    ],
)
def test_what_a_function_may_return(returned: Any, per_sample: list[float]) -> None:
    metrics = MetricsHandler(x=lambda preds: returned)
    frame = metrics({"preds": torch.zeros(2, 3)})
    assert frame["x"].tolist() == per_sample
    assert frame["x"].dtype == "float64"
    assert metrics.aggregate() == {"x": sum(per_sample) / 2}


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        (torch.zeros(3), "metric x: it returned 3 values for a batch of 2 samples"),
        (torch.zeros(3, 2), "3 values for a batch of 2"),
        ([1.0], "1 values for a batch of 2"),
        (None, "metric x: it must return numbers.* NoneType"),
        ("0.5", "must return numbers.* str"),
        ({"a": 1}, "must return numbers.* dict"),
        (np.array(["a", "b"]), "must return numbers"),
        (torch.zeros(2) + 1j, "real numbers"),
    ],
)
def test_what_a_function_may_not_return(returned: Any, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        MetricsHandler(x=lambda preds: returned)({"preds": torch.zeros(2, 3)})


def test_what_a_function_raises_comes_out() -> None:
    def broken(preds: Tensor) -> Tensor:
        raise ZeroDivisionError("mine")

    with pytest.raises(ZeroDivisionError, match="mine"):
        MetricsHandler(x=broken)(OUTPUT)


def test_a_function_gets_what_it_names() -> None:
    got: dict[str, Any] = {}

    def names(target: Any, extra: Any = "default", *, preds: Any, other: Any = "default") -> float:
        got.update(target=target, extra=extra, preds=preds, other=other)
        return 0.0

    MetricsHandler(x=names)({**OUTPUT, "other": 5, "unknown": 6})
    assert got.pop("target") is CLASSES
    assert got.pop("preds") is LOGITS
    assert got == {"extra": "default", "other": 5}


def test_kwargs_get_everything() -> None:
    got: dict[str, Any] = {}
    MetricsHandler(x=lambda preds, **others: got.update(others) or 0.0)({**OUTPUT, "sample": list("abcdefg")})
    assert list(got) == ["target", "sample"]


def test_a_partial_a_method_and_an_object_name_theirs_too() -> None:
    class Judge:
        def method(self, target: Tensor) -> Tensor:
            return target

        def __call__(self, preds: Tensor) -> Tensor:
            return preds[:, 0]

    def scaled(preds: Tensor, factor: float) -> Tensor:
        return preds[:, 0] * factor

    judge = Judge()
    frame = MetricsHandler(a=functools.partial(scaled, factor=2.0), b=judge.method, c=judge)(OUTPUT)
    assert frame["a"].tolist() == (2 * LOGITS[:, 0]).tolist()
    assert frame["b"].tolist() == CLASSES.tolist()
    assert frame["c"].tolist() == LOGITS[:, 0].tolist()


def test_a_name_that_the_output_has_not_is_refused_with_what_it_has() -> None:
    with pytest.raises(
        ConfigurationError, match=r"metric x names 'targets'.*did you mean 'target'.*has: preds, target"
    ):
        MetricsHandler(x=lambda targets: 0.0)(OUTPUT)


@pytest.mark.parametrize("function", [lambda *values: 0.0, max, lambda preds, /: 0.0])
def test_a_function_whose_parameters_have_no_names_is_refused(function: Any) -> None:
    with pytest.raises(ConfigurationError, match=r"metric x: .*wrap it: lambda preds, target"):
        MetricsHandler(x=function)


# ------------------------------------------------------------------------------------------------------- torch's losses

WEIGHT = torch.tensor([0.2, 0.5, 0.3])
TWO_D = {"preds": LOGITS, "target": LOGITS.flip(0).sigmoid()}
LOG_PROBABILITIES = {"preds": LOGITS.log_softmax(1), "target": CLASSES}
PIXELS = {"preds": LOGITS.unsqueeze(2).repeat(1, 1, 5), "target": CLASSES.unsqueeze(1).repeat(1, 5)}
EXACT = [
    (nn.CrossEntropyLoss(), OUTPUT),
    (nn.CrossEntropyLoss(label_smoothing=0.1), OUTPUT),
    (nn.CrossEntropyLoss(), PIXELS),
    (nn.NLLLoss(), LOG_PROBABILITIES),
    (nn.MSELoss(), TWO_D),
    (nn.L1Loss(), TWO_D),
    (nn.HuberLoss(), TWO_D),
    (nn.BCEWithLogitsLoss(), TWO_D),
    (nn.BCEWithLogitsLoss(weight=WEIGHT, pos_weight=WEIGHT), TWO_D),
    (F.cross_entropy, OUTPUT),
    (F.mse_loss, TWO_D),
]


@pytest.mark.parametrize(("loss", "output"), EXACT)
def test_a_loss_as_a_metric_is_the_loss_over_all_samples(loss: Any, output: dict[str, Tensor]) -> None:
    whole = float(loss(output["preds"], output["target"]))
    given, added = MetricsHandler(loss=loss), MetricsHandler()
    added.add_losses({"loss": loss})
    assert computed(given, output)["loss"] == pytest.approx(whole, rel=1e-6)
    assert computed(added, output)["loss"] == pytest.approx(whole, rel=1e-6)


@pytest.mark.parametrize(("loss", "output"), [case for case in EXACT if isinstance(case[0], nn.Module)])
def test_a_models_loss_has_a_value_per_sample_and_goes_on_averaging(loss: Any, output: dict[str, Tensor]) -> None:
    metrics = MetricsHandler()
    metrics.add_losses({"loss": loss})
    values = metrics(output)["loss"].tolist()
    alone = [float(loss(output["preds"][n : n + 1], output["target"][n : n + 1])) for n in range(7)]
    assert values == pytest.approx(alone, rel=1e-5)
    assert len(set(values)) > 1
    assert loss.reduction == "mean"


def test_a_weighted_loss_averages_the_samples_alike() -> None:
    metrics = MetricsHandler()
    metrics.add_losses({"loss": nn.CrossEntropyLoss(weight=WEIGHT)})
    whole = float(F.cross_entropy(LOGITS, CLASSES, weight=WEIGHT, reduction="sum")) / 7
    assert computed(metrics)["loss"] == pytest.approx(whole, rel=1e-6)


def test_of_a_loss_that_sums_a_sample_has_its_sum() -> None:
    loss = nn.MSELoss(reduction="sum")
    metrics = MetricsHandler()
    metrics.add_losses({"loss": loss})
    assert computed(metrics, TWO_D)["loss"] == pytest.approx(float(loss(TWO_D["preds"], TWO_D["target"])) / 7)
    assert loss.reduction == "sum"


def test_a_losss_weights_follow_the_model_to_its_device() -> None:
    model = nn.ModuleDict({"loss": nn.CrossEntropyLoss(weight=WEIGHT.double())})
    metrics = MetricsHandler()
    metrics.add_losses({"loss": model["loss"]})
    model.to(torch.float32)  # as .to(device) does, it replaces buffers
    assert "loss" in metrics(OUTPUT)


def test_a_compiled_loss_goes_on_averaging() -> None:
    loss = nn.MSELoss()
    MetricsHandler().add_losses({"loss": torch.compile(loss)})
    assert loss.reduction == "mean"


def test_a_loss_of_a_class_of_ones_own_has_a_value_per_sample_if_it_has_a_reduction() -> None:
    class Focal(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.reduction = "mean"

        def forward(self, guess: Tensor, truth: Tensor) -> Tensor:
            values = F.cross_entropy(guess, truth, reduction="none") ** 2
            return values.mean() if self.reduction == "mean" else values

    metrics = MetricsHandler()
    metrics.add_losses({"focal": Focal(), "plain": lambda a, b: F.cross_entropy(a, b) ** 2})
    frame = metrics(OUTPUT)
    assert frame["focal"].nunique() == 7
    assert frame["plain"].nunique() == 1


# --------------------------------------------------------------------------------------------- what counts by itself


class Counts:
    """As torchmetrics: update, compute, reset; nothing else."""

    def __init__(self, value: Any = None) -> None:
        self.seen, self.value = 0, value

    def update(self, preds: Tensor) -> None:
        self.seen += len(preds)

    def compute(self) -> Any:
        return self.seen if self.value is None else self.value

    def reset(self) -> None:
        self.seen = 0


def test_what_counts_by_itself_has_no_value_per_sample() -> None:
    given = Counts()
    metrics = MetricsHandler(n=given)
    assert list(metrics(OUTPUT)) == ["sample"]
    metrics(OUTPUT)
    assert metrics.aggregate() == {"n": 14}
    metrics.reset()
    metrics(OUTPUT)
    assert metrics.aggregate() == {"n": 7}
    assert given.seen == 0


def test_a_subset_counts_by_itself() -> None:
    metrics = MetricsHandler(n=Counts())
    metrics(OUTPUT)
    part = metrics.subset(["n"])
    part(OUTPUT)
    part(OUTPUT)
    assert (metrics.aggregate(), part.aggregate()) == ({"n": 7}, {"n": 14})


@pytest.mark.parametrize(
    ("value", "columns"),
    [
        (torch.tensor(0.5), {"m": 0.5}),
        (torch.tensor([0.5]), {"m": 0.5}),
        (np.float64(0.5), {"m": 0.5}),
        (np.array([1, 2]), {"m_0": 1, "m_1": 2}),
        (torch.tensor([0.5, 0.25]), {"m_0": 0.5, "m_1": 0.25}),
        (torch.tensor([[1, 2], [3, 4]]), {"m_0_0": 1, "m_0_1": 2, "m_1_0": 3, "m_1_1": 4}),
        ({"a": torch.tensor(1.5), "b": torch.tensor([1, 2])}, {"m_a": 1.5, "m_b_0": 1, "m_b_1": 2}),
        ((torch.tensor(0.5), torch.tensor(1.5)), {"m_0": 0.5, "m_1": 1.5}),
    ],
)
def test_what_is_computed_becomes_columns_of_numbers(value: Any, columns: dict[str, float]) -> None:
    metrics = MetricsHandler(m=Counts(value))
    metrics(OUTPUT)
    row = metrics.aggregate(epoch=1)
    assert row == columns
    assert all(type(number) in (int, float) for number in row.values())
    assert list(metrics.df) == ["epoch", *columns]
    for name, number in columns.items():
        assert metrics.get_metric_value(name) == number


def test_of_an_empty_loader_nothing_is_computed() -> None:
    metrics = MetricsHandler(n=Counts())
    assert math.isnan(metrics.aggregate()["n"])
    metrics(OUTPUT)
    metrics.reset()
    assert math.isnan(metrics.aggregate()["n"])


def test_it_moves_to_the_device_of_what_it_takes_once() -> None:
    class Moves(Counts):
        moved: list[torch.device] = []  # noqa: RUF012

        def to(self, device: torch.device) -> None:
            self.moved.append(device)

    metric = Stateful("n", Moves())
    output = {"index": torch.zeros(7), "preds": torch.zeros(7, 3, device="meta")}
    metric.update(output, 7)
    metric.update(output, 7)
    assert Moves.moved == [torch.device("meta")]


# ------------------------------------------------------------------------------------------------------- torchmetrics


def test_torchmetrics_over_batches_is_torchmetrics_over_all() -> None:
    kinds = pytest.importorskip("torchmetrics.classification")
    given = kinds.MulticlassF1Score(3)
    metrics = MetricsHandler(f1=given, auroc=kinds.MulticlassAUROC(3))
    row = computed(metrics, {**OUTPUT, "sample": list("abcdefg")})
    assert row["f1"] == pytest.approx(float(kinds.MulticlassF1Score(3)(LOGITS, CLASSES)))
    assert row["auroc"] == pytest.approx(float(kinds.MulticlassAUROC(3)(LOGITS, CLASSES)))
    assert given.update_count == 0


def test_torchmetrics_per_class_has_a_column_for_each() -> None:
    kinds = pytest.importorskip("torchmetrics.classification")
    row = computed(MetricsHandler(f1=kinds.MulticlassF1Score(3, average=None)))
    assert list(row.values()) == pytest.approx(kinds.MulticlassF1Score(3, average=None)(LOGITS, CLASSES).tolist())
    assert list(row) == ["f1_0", "f1_1", "f1_2"]


def test_a_collection_gives_a_column_for_each_of_its_metrics() -> None:
    torchmetrics = pytest.importorskip("torchmetrics")
    kinds = torchmetrics.classification
    collection = torchmetrics.MetricCollection(
        {"f1": kinds.MulticlassF1Score(3, average=None), "recall": kinds.MulticlassRecall(3)}
    )
    metrics = MetricsHandler(all=collection)
    for _ in range(2):  # its metrics share their states from the second batch on
        metrics.reset()
        row = computed(metrics, {**OUTPUT, "sample": list("abcdefg")})
        assert set(row) == {"all_f1_0", "all_f1_1", "all_f1_2", "all_recall"}
        assert row["all_recall"] == pytest.approx(float(kinds.MulticlassRecall(3)(LOGITS, CLASSES)))
    part = metrics.subset()
    part(OUTPUT)
    part.reset()
    assert metrics.aggregate() == row


def test_wrapped_and_combined_torchmetrics_work_with_named_samples() -> None:
    torchmetrics = pytest.importorskip("torchmetrics")
    kinds = torchmetrics.classification
    metrics = MetricsHandler(
        wise=torchmetrics.ClasswiseWrapper(kinds.MulticlassF1Score(3, average=None), labels=["a", "b", "c"]),
        both=kinds.MulticlassRecall(3) + kinds.MulticlassPrecision(3),
    )
    row = computed(metrics, {**OUTPUT, "sample": list("abcdefg")})
    assert [name[-2:] for name in row if name.startswith("wise")] == ["_a", "_b", "_c"]
    expected = kinds.MulticlassRecall(3)(LOGITS, CLASSES) + kinds.MulticlassPrecision(3)(LOGITS, CLASSES)
    assert row["both"] == pytest.approx(float(expected))


def test_a_collection_moves_to_the_device() -> None:
    torchmetrics = pytest.importorskip("torchmetrics")
    metric = Stateful("all", torchmetrics.MetricCollection([torchmetrics.MeanSquaredError()]))
    on_device = torch.zeros(7, device="meta")
    metric.update({"preds": on_device, "target": on_device}, 7)
    (moved,) = metric._metric.values()
    assert moved.sum_squared_error.device.type == "meta"
