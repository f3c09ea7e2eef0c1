"""Where the reference trainer falls short, and what else a user counts on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from async_trainer import (
    Callback,
    ComputationalConfig,
    Maps,
    MetricsHandler,
    OptimizationConfig,
    Split,
    SupervisedModel,
    Trainer,
    background,
)  # fmt: skip
from async_trainer.callbacks import ModelCheckpoint
from async_trainer.errors import ConfigurationError
from async_trainer.files.atomic import write_json
from async_trainer.files.weights import load_weights
from tests.train.kit import Boom, FailsAt, Recorder, loader, net, split, trainer


def weights(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


# ------------------------------------------------------------------------------- where the reference falls short


def test_training_without_a_computational_config_uses_what_is_there(tmp_path: Path) -> None:
    seen: list[Any] = []

    class Looks(Callback):
        def on_train_start(self, *, computational: ComputationalConfig, **kwargs: Any) -> None:
            seen.append(computational.torch_device)

        on_test_start = on_train_start

    study = trainer(tmp_path, [Looks()])
    study.train(split())
    study.test("split-0_final", "held-out", dataloader=loader(14, 4))
    there = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else torch.device("cpu")
    assert seen == [there, there]
    Trainer.from_maps(tmp_path / "maps", model=net())


@pytest.mark.parametrize("how", ["no validation data", "an interval that is never reached"])
def test_a_run_that_never_validates_is_fine(tmp_path: Path, how: str) -> None:
    none = how == "no validation data"
    recorder = Recorder()
    study = trainer(tmp_path, [recorder], evaluation_interval=1 if none else 5)
    assert study.train(split(val=None if none else 2)).empty
    assert "on_validation_start" not in recorder.names
    assert recorder.names[-1] == "on_train_end"
    assert not study.maps.split(0).metrics.exists()


def test_a_last_epoch_without_validation_leaves_the_metrics_of_those_before(tmp_path: Path) -> None:
    study = trainer(tmp_path, num_epochs=3, evaluation_interval=2)
    frame = study.train(split())
    assert list(frame["epoch"]) == [2]
    again = Trainer.from_maps(tmp_path / "maps", model=net())
    pd.testing.assert_frame_equal(again.maps.split(0).read_metrics(), frame)
    with pytest.raises(ConfigurationError, match="split 3: there are no metrics"):
        again.maps.split(3).read_metrics()


def test_no_gradient_leaks_from_an_epochs_tail_into_the_next(tmp_path: Path) -> None:
    leaks = []

    class Looks:
        def on_epoch_start(self, *, model: Any) -> None:
            leaks.append(any(p.grad is not None for p in model.parameters()))

    trainer(tmp_path, [Looks()], accumulation_steps=3, num_epochs=3).train(split())
    assert leaks == [False] * 3


def test_a_step_is_the_mean_of_its_batches_that_of_the_tail_too(tmp_path: Path) -> None:
    """Batches of 2, accumulated by 3, are as batches of 6; the 5 batches end with a step of 4 samples."""

    def train(folder: str, batch_size: int, accumulation_steps: int) -> dict[str, torch.Tensor]:
        torch.manual_seed(0)
        model = SupervisedModel(nn.Linear(3, 1), nn.MSELoss(), lambda params: torch.optim.SGD(params, lr=0.1))
        study = trainer(tmp_path / folder, model=model, accumulation_steps=accumulation_steps)
        study.train(Split(0, loader(0, 10, batch_size=batch_size)))
        return weights(model)

    small, large = train("small", 2, 3), train("large", 6, 1)
    for name in small:
        torch.testing.assert_close(small[name], large[name])


def test_a_callback_added_between_two_trainings_gets_the_second(tmp_path: Path) -> None:
    inline, behind = Recorder(), Batches()
    study = trainer(tmp_path)
    study.train(split())
    study.add_callbacks([inline, background(behind)])
    study.train(split(1))
    assert inline.names[0] == "on_train_start"
    assert inline.names[-1] == "on_train_end"
    assert behind.count == 14


class Batches:
    def __init__(self) -> None:
        self.count = 0

    def on_batch_end(self) -> None:
        self.count += 1


def test_a_shuffled_loader_has_another_order_each_epoch_and_the_same_ones_with_the_same_seed(tmp_path: Path) -> None:
    def orders(folder: str) -> list[list[int]]:
        epochs: list[list[int]] = []

        class Looks:
            def on_epoch_start(self) -> None:
                epochs.append([])

            def on_forward_step_start(self, *, batch: Any) -> None:
                epochs[-1] += batch[0].flatten().tolist()

        model = SupervisedModel(nn.Linear(1, 1), nn.MSELoss(), lambda params: torch.optim.SGD(params, lr=1e-6))
        data = TensorDataset(torch.arange(20.0)[:, None], torch.zeros(20, 1))
        study = trainer(tmp_path / folder, [Looks()], model=model, num_epochs=3)
        study.train(Split(0, data, batch_size=4), ComputationalConfig(seed=3))
        return epochs

    first, second = orders("first"), orders("second")
    assert first == second
    assert len({tuple(order) for order in first}) == 3
    assert all(sorted(order) == list(range(20)) for order in first)


def test_a_request_to_stop_is_kept_until_the_next_training(tmp_path: Path) -> None:
    class StopsOnce:
        asked = False

        def on_epoch_end(self, *, state: Any) -> None:
            state.should_stop = state.should_stop or not self.asked
            self.asked = True

    recorder = Recorder()
    study = trainer(tmp_path, [StopsOnce(), recorder], num_epochs=4)
    study.train(split())
    assert recorder.names.count("on_epoch_start") == 1
    recorder.take()
    study.train(split(1))
    assert recorder.names.count("on_epoch_start") == 4


# ------------------------------------------------------------------------------------------ what a user counts on


def test_each_training_starts_from_the_same_weights(tmp_path: Path) -> None:
    """Folds that went on from each other would have seen their validation data."""
    starts: list[dict[str, torch.Tensor]] = []

    class Looks(Callback):
        def on_train_start(self, *, model: Any, **kwargs: Any) -> None:
            starts.append(weights(model))

    study = trainer(tmp_path, [Looks()])
    first = weights(study.model)
    study.train(split())
    assert not equal(first, weights(study.model))
    study.train(split(1))
    again = Trainer.from_maps(tmp_path / "maps", model=net_with_other_weights(), callbacks=[Looks()])
    again.train(split(2))
    assert all(equal(first, start) for start in starts)
    assert len(starts) == 3


def net_with_other_weights() -> SupervisedModel:
    model = net()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1)
    return model


class Counts(nn.Module):
    """Counts the batches that it has seen, where no state_dict shows it; and shares the count."""

    def __init__(self, again: Counts | None = None) -> None:
        super().__init__()
        seen = torch.zeros(()) if again is None else again.seen
        self.register_buffer("seen", seen, persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.seen += self.training
        return x


def test_each_training_starts_from_the_same_buffers_those_in_no_state_dict_too(tmp_path: Path) -> None:
    starts: list[float] = []

    class Looks(Callback):
        def on_train_start(self, *, model: Any, **kwargs: Any) -> None:
            starts.append(float(model.network[0].seen))

    def counting() -> SupervisedModel:
        first = Counts()
        network = nn.Sequential(first, Counts(first), nn.Linear(3, 1))
        return SupervisedModel(network, nn.MSELoss(), lambda params: torch.optim.SGD(params, lr=0.01))

    study = trainer(tmp_path, [Looks()], model=counting())
    study.train(split())
    assert study.model.network[1].seen == 20  # 2 layers, 2 epochs of 5 batches: still one buffer
    study.train(split(1))
    assert study.model.network[1].seen == 20
    other = counting()
    other.network[0].seen += 7
    Trainer.from_maps(tmp_path / "maps", model=other, callbacks=[Looks()]).train(split(2))
    assert starts == [0, 0, 0]
    checkpoint, _ = load_weights(tmp_path / "maps" / "split-0" / "checkpoints" / "final.pt")
    assert list(checkpoint) == ["network.2.weight", "network.2.bias"]


def test_the_run_s_arguments_may_be_named_by_any_later_hook_as_they_are_then(tmp_path: Path) -> None:
    rows: list[Any] = []

    class Names:
        def on_batch_end(
            self, *, optimizers: Any, grad_scaler: Any, metrics: Any, split: Any, optimization: Any,
            computational: Any, callbacks: Any, state: Any,
        ) -> None:  # fmt: skip
            steps = optimizers["optimizer"].state_dict()["state"][0]["step"].item()
            rows.append((state.stage, state.optim_step, steps, len(metrics.df), split.index, optimization.num_epochs))

    inline, behind = Names(), Names()
    trainer(tmp_path, [inline, background(behind)]).train(split(batches=2))
    training = [("training", step, step, (step - 1) // 2, 0, 2) for step in range(1, 5)]
    expected = [
        row
        for epoch in (0, 1)
        for row in training[2 * epoch : 2 * epoch + 2] + 2 * [("evaluation", 2 * epoch + 2, 2 * epoch + 2, epoch, 0, 2)]
    ]
    assert sorted(rows) == sorted(2 * expected)


def test_a_second_training_of_a_split_is_refused_before_anything_is_touched(tmp_path: Path) -> None:
    recorder = Recorder()
    study = trainer(tmp_path, [recorder])
    study.train(split())
    recorder.take()
    before = {path: path.read_bytes() for path in study.maps.path.rglob("*") if path.is_file()}
    state, kept = dict(vars(study.state)), weights(study.model)
    with pytest.raises(ConfigurationError, match=r"split 0 was trained before.*another"):
        study.train(split())
    assert recorder.names == []
    assert {path: path.read_bytes() for path in study.maps.path.rglob("*") if path.is_file()} == before
    assert vars(study.state) == state
    assert equal(kept, weights(study.model))


def test_a_second_trainer_in_one_directory_is_refused_unless_it_may_overwrite(tmp_path: Path) -> None:
    study = trainer(tmp_path)
    study.train(split())
    with pytest.raises(ConfigurationError, match=r"from_maps.*overwrite=True"):
        trainer(tmp_path)
    Trainer(tmp_path / "maps", net(), overwrite=True)
    assert Maps(tmp_path / "maps").splits == ()


def test_a_bad_argument_leaves_no_directory_behind(tmp_path: Path) -> None:
    for bad in (
        {"model": nn.Linear(1, 1)},
        {"metrics": {"loss": 3}},
        {"metrics": 3},
        {"optimization": 3},
        {"callbacks": [Boom]},
        {"overwrite": 1},
    ):
        with pytest.raises(ConfigurationError):
            Trainer(tmp_path / "maps", **{"model": net(), **bad})  # type: ignore[arg-type]
        assert not (tmp_path / "maps").exists()


def test_from_maps_reads_back_what_it_can_and_names_what_it_needs(tmp_path: Path) -> None:
    def error(preds: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return (preds - target).abs().mean(1)

    study = Trainer(
        tmp_path / "maps",
        net(),
        metrics={"error": error},
        optimization=OptimizationConfig(num_epochs=1, clip_grad_norm=1),
    )
    study.train(split())
    with pytest.raises(ConfigurationError, match=r"model=.*SupervisedModel"):
        Trainer.from_maps(tmp_path / "maps")
    with pytest.raises(ConfigurationError, match=r"metrics=.*error"):
        Trainer.from_maps(tmp_path / "maps", model=net())
    with pytest.raises(ConfigurationError, match="does not exist"):
        Trainer.from_maps(tmp_path / "nothing", model=net())
    again = Trainer.from_maps(tmp_path / "maps", model=net_with_other_weights(), metrics={"error": error})
    assert again.optimization == study.optimization
    one = study.test("split-0_final", "held-out", dataloader=loader(14, 4))
    other = again.test("split-0_final", "held-out", dataloader=loader(14, 4))
    pd.testing.assert_frame_equal(one, other)
    with pytest.raises(ConfigurationError, match="dataloader"):
        again.validate(0, ["error"])
    again.validate(0, ["error"], dataloader=loader(10, 4))


def test_the_weights_of_another_model_are_refused_by_name(tmp_path: Path) -> None:
    study = trainer(tmp_path)
    study.train(split())
    other = SupervisedModel(nn.Linear(3, 2), nn.MSELoss(), lambda params: torch.optim.SGD(params, lr=1))
    with pytest.raises(ConfigurationError, match=r"split-0_final.*another model"):
        Trainer.from_maps(tmp_path / "maps", model=other).test("split-0_final", "x", dataloader=loader(14, 4))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda study: study.test("split-0_fnal", "x", dataloader=[]), "did you mean 'split-0_final'"),
        (lambda study: study.test("split-0_final", "a/b", dataloader=[]), "group_name='a/b'"),
        (lambda study: study.test("split-0_final", "x"), "has not been given the data of the group 'x'"),
        (lambda study: study.test("split-0_final", "x", dataloader=iter([])), "iterator"),
        (lambda study: study.test("split-0_final", "x", ["los"], dataloader=[]), "did you mean 'loss'"),
        (lambda study: study.validate(0, ["los"]), "did you mean 'loss'"),
        (lambda study: study.validate(0, "loss"), "list of names"),
        (lambda study: study.validate(7, ["loss"]), "split 7"),
        (lambda study: study.validate(0, ["loss"], model_checkpoint="best"), "there are: final"),
        (lambda study: study.train(3), "split must be a Split"),
        (lambda study: study.train(split(1), 3), "computational must be"),
        (lambda study: study.train(split(1), metrics=["los"]), "did you mean 'loss'"),
    ],
)
def test_bad_input_is_told_by_name_and_touches_nothing(tmp_path: Path, call: Any, message: str) -> None:
    recorder = Recorder()
    study = trainer(tmp_path, [recorder])
    study.train(split())
    recorder.take()
    before = sorted(study.maps.path.rglob("*"))
    with pytest.raises(ConfigurationError, match=message):
        call(study)
    assert recorder.names == []
    assert sorted(study.maps.path.rglob("*")) == before


def test_new_metrics_are_added_to_those_that_were_validated_before(tmp_path: Path) -> None:
    study = trainer(tmp_path)
    study.train(split())
    study.validate(0, ["loss"])
    study.add_metrics(bias=lambda preds, target: (preds - target).mean(1))
    study.validate(0, ["bias"])
    folder = study.maps.split(0).validation("final")
    assert set(pd.read_csv(folder / "metrics.tsv", sep="\t")) == {"bias", "loss"}
    samples = pd.read_csv(folder / "samples.tsv", sep="\t")
    assert set(samples) == {"sample", "bias", "loss"}
    assert list(samples["sample"]) == ["sub-010", "sub-011", "sub-012", "sub-013"]
    assert len(study.metrics.df) == 2, "the training's own metrics are still there"


@pytest.mark.parametrize(("limit", "largest"), [({"clip_grad_value": 1e-3}, 1e-3), ({"clip_grad_norm": 1e-3}, 1e-3)])
def test_gradients_are_clipped_after_on_optimization_step_start(
    tmp_path: Path, limit: dict[str, float], largest: float
) -> None:
    before: list[float] = []
    stepped: list[float] = []

    class Looks(SupervisedModel):
        def optimization_step(self, optimizers: Any, grad_scaler: Any) -> None:
            stepped.append(norm(self))
            super().optimization_step(optimizers, grad_scaler)

    class Sees:
        def on_optimization_step_start(self, *, model: Any) -> None:
            before.append(norm(model))

    def norm(model: nn.Module) -> float:
        gradients = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
        return float(gradients.abs().max() if "clip_grad_value" in limit else gradients.norm())

    model = Looks(nn.Linear(3, 1), nn.MSELoss(), lambda params: torch.optim.SGD(params, lr=1e-3))
    trainer(tmp_path, [Sees()], model=model, num_epochs=1, **limit).train(split())
    assert min(before) > 10 * largest
    assert max(stepped) <= largest * 1.01


def test_amp_runs_the_steps_under_autocast_and_the_weights_stay_in_float32(tmp_path: Path) -> None:
    seen = []

    class Looks(SupervisedModel):
        def forward_step(self, batch: Any) -> torch.Tensor:
            seen.append(self.network(batch["input"]).dtype)
            return super().forward_step(batch)

    model = Looks(nn.Linear(3, 1), nn.MSELoss(), lambda params: torch.optim.SGD(params, lr=1e-3))
    trainer(tmp_path, model=model, num_epochs=1).train(split(), ComputationalConfig(amp=True, device="cpu"))
    assert set(seen) == {torch.bfloat16}
    assert model.network.weight.dtype == torch.float32  # type: ignore[union-attr]


@pytest.mark.parametrize("workers", [0, 2])
def test_weights_and_random_streams_are_the_same_with_no_callback_and_with_ten(tmp_path: Path, workers: int) -> None:
    class NamesAll:
        def on_train_start(self, *, model: Any, optimizers: Any, metrics: Any, split: Any, callbacks: Any) -> None: ...

        def on_batch_end(self, *, model: Any, optimizers: Any, state: Any, metrics: Any) -> None:
            model.state_dict(), optimizers["optimizer"].state_dict(), metrics.df

        def on_backward_step_start(self, *, loss: Any, grad_scaler: Any) -> None:
            loss.item()

        def on_metrics_computation_end(self, *, detailed_metrics_df: Any) -> None:
            detailed_metrics_df["loss"] = 0

    def run(folder: str, callbacks: Any) -> tuple[dict[str, torch.Tensor], torch.Tensor, pd.DataFrame]:
        data = TensorDataset(torch.randn(40, 3, generator=torch.Generator().manual_seed(1)), torch.ones(40, 1))
        study = trainer(tmp_path / folder, callbacks, num_epochs=2)
        frame = study.train(Split(0, data, data, batch_size=8, num_workers=workers), ComputationalConfig(seed=5))
        study.callbacks.close()
        return weights(study.model), torch.get_rng_state(), frame

    none = run("none", [])
    ten = run("ten", background([NamesAll() for _ in range(10)]))
    assert equal(none[0], ten[0])
    assert torch.equal(none[1], ten[1])
    pd.testing.assert_frame_equal(none[2], ten[2])


def test_a_checkpoint_of_a_run_that_failed_is_still_there_to_validate(tmp_path: Path) -> None:
    study = trainer(tmp_path, model=FailsAt(Boom(), forward=8))
    with pytest.raises(Boom):
        study.train(split())
    with pytest.raises(ConfigurationError, match="no checkpoint to validate"):
        study.validate(0)
    again = Trainer.from_maps(tmp_path / "maps", model=FailsAt(Boom()))
    assert again.maps.splits == (0,)


def test_optimizers_without_names_are_refused_by_name(tmp_path: Path) -> None:
    class Nameless(SupervisedModel):
        def build_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=0.1)

    model = Nameless(nn.Linear(3, 1), nn.MSELoss(), torch.optim.SGD)
    with pytest.raises(ConfigurationError, match="build_optimizers must return optimizers by name"):
        trainer(tmp_path, model=model).train(split())


def test_a_misspelt_metric_of_a_background_callback_ends_the_training_before_it_begins(tmp_path: Path) -> None:
    recorder = Recorder()
    study = trainer(tmp_path, [ModelCheckpoint("lss"), recorder])
    with pytest.raises(ConfigurationError, match=r"ModelCheckpoint: metric='lss'.*did you mean 'loss'"):
        study.train(split())
    assert recorder.names == ["on_trainer_init", "on_exception"]


def test_a_hook_that_names_what_no_event_of_a_trainer_brings_is_refused_when_it_is_attached(tmp_path: Path) -> None:
    class Named:
        def on_batch_end(self, *, los: Any) -> None: ...

    class Optional:
        def on_batch_end(self, *, state: Any, event: Any, loss: Any = None, optimizers: Any, **kwargs: Any) -> None: ...

    with pytest.raises(ConfigurationError, match=r"named.on_batch_end names 'los'.*There are: model, maps, state"):
        trainer(tmp_path, [background(Named())])
    study = trainer(tmp_path, [Optional()])
    with pytest.raises(ConfigurationError, match="names 'los'"):
        study.add_callbacks([Named()])
    assert len(study.callbacks.attached) == 1


def test_a_handler_that_is_closed_is_refused(tmp_path: Path) -> None:
    study = trainer(tmp_path, [background(Batches())])
    study.train(split())
    study.callbacks.close()
    for call in (
        lambda: study.train(split(1)),
        lambda: study.validate(0),
        lambda: study.test("split-0_final", "x", dataloader=loader(14, 4)),
        lambda: trainer(tmp_path / "another", study.callbacks),
    ):
        with pytest.raises(ConfigurationError, match="this handler is closed"):
            call()


def test_an_iterable_dataset_may_be_validated_on(tmp_path: Path) -> None:
    class Stream(torch.utils.data.IterableDataset):  # type: ignore[type-arg]
        def __iter__(self) -> Any:
            return iter(loader(10, 4).dataset)  # type: ignore[call-overload]

    study = trainer(tmp_path, num_epochs=1)
    frame = study.train(Split(0, loader(0, 10), Stream(), batch_size=2))
    expected = study.validate(0, dataloader=loader(10, 4))
    assert frame["loss"].iloc[-1] == pytest.approx(expected["loss"].iloc[-1])


def test_a_metrics_handler_may_be_given_to_several_trainers(tmp_path: Path) -> None:
    shared = MetricsHandler()
    losses = {}
    for name, loss in (("mse", nn.MSELoss()), ("l1", nn.L1Loss())):
        torch.manual_seed(0)
        model = SupervisedModel(nn.Linear(3, 1), loss, lambda params: torch.optim.SGD(params, lr=0.0))
        study = Trainer(tmp_path / name, model, metrics=shared, optimization=OptimizationConfig(num_epochs=1))
        losses[name] = study.train(split())["loss"].iloc[0]
        outputs = [(model.network(batch["input"]), batch["target"]) for batch in loader(10, 4)]
        expected = sum(float(loss(preds.detach(), target)) for preds, target in outputs) / len(outputs)
        assert losses[name] == pytest.approx(expected, rel=1e-5)
    assert shared.names == ()


def test_the_tail_is_the_same_whether_the_loader_has_a_length_or_not(tmp_path: Path) -> None:
    class Unsized:
        def __iter__(self) -> Any:
            return iter(loader(0, 6))

    def train(folder: str, data: Any) -> dict[str, torch.Tensor]:
        torch.manual_seed(0)
        model = SupervisedModel(nn.Linear(3, 1), nn.MSELoss(), lambda params: torch.optim.SGD(params, lr=0.1))
        trainer(tmp_path / folder, model=model, accumulation_steps=2).train(Split(0, data))
        return weights(model)

    one, other = train("sized", loader(0, 6)), train("unsized", Unsized())
    for name in one:
        torch.testing.assert_close(one[name], other[name])


def test_a_training_that_never_began_leaves_the_split_free(tmp_path: Path) -> None:
    lazy = SupervisedModel(nn.LazyLinear(1), nn.MSELoss(), lambda params: torch.optim.SGD(params, lr=0.1))
    study = trainer(tmp_path, model=lazy, num_epochs=1)
    with pytest.raises(ConfigurationError, match=r"network.weight has no weights yet.*run a batch through"):
        study.train(split())
    lazy(torch.zeros(1, 3))
    study.train(split())
    assert study.maps.splits == (0,)


def test_of_two_trainers_that_train_one_split_at_once_one_is_refused(tmp_path: Path) -> None:
    study = trainer(tmp_path)
    again = Trainer.from_maps(tmp_path / "maps", model=net())

    class TrainsToo:
        def on_train_start(self) -> None:
            with pytest.raises(ConfigurationError, match="split 0 was trained before"):
                again.train(split())

    study.add_callbacks([TrainsToo()])
    study.train(split())
    with pytest.raises(FileExistsError):
        write_json(study.maps.split(0).config, {}, new=True)
    assert [path.name for path in study.maps.split(0).path.glob(".*")] == []


def test_results_on_other_data_are_not_put_beside_those_that_are_there(tmp_path: Path) -> None:
    study = trainer(tmp_path, num_epochs=1)
    study.train(split())
    study.add_metrics(bias=lambda preds, target: (preds - target).mean(1))
    unnamed = [{key: value for key, value in batch.items() if key != "sample"} for batch in loader(14, 4)]
    other = [{key: value for key, value in batch.items() if key != "sample"} for batch in loader(20, 4)]
    study.test("split-0_final", "held-out", ["loss"], dataloader=unnamed)
    study.test("split-0_final", "held-out", ["bias"], dataloader=other)
    folder = study.maps.test("held-out", "split-0_final")
    assert set(pd.read_csv(folder / "metrics.tsv", sep="\t")) == {"bias"}
    study.test("split-0_final", "held-out", ["loss"])  # the same data again
    assert set(pd.read_csv(folder / "metrics.tsv", sep="\t")) == {"bias", "loss"}


def test_an_evaluation_leaves_the_generators_as_they_were(tmp_path: Path) -> None:
    study = trainer(tmp_path, num_epochs=1)
    study.train(split(), ComputationalConfig(seed=3))
    before = torch.get_rng_state()
    study.validate(0)
    study.test("split-0_final", "held-out", dataloader=loader(14, 4), computational=ComputationalConfig(seed=4))
    assert torch.equal(torch.get_rng_state(), before)


def test_a_training_without_a_batch_is_an_error(tmp_path: Path) -> None:
    class Nothing:
        def __iter__(self) -> Any:
            return iter(())

    with pytest.raises(ConfigurationError, match="has given no batch"):
        trainer(tmp_path).train(Split(0, Nothing()))


def test_amp_steps_over_an_optimizer_without_gradients(tmp_path: Path) -> None:
    class Two(SupervisedModel):
        def build_optimizers(self) -> dict[str, torch.optim.Optimizer]:
            idle = nn.Linear(1, 1)
            return {"used": torch.optim.SGD(self.parameters(), 0.1), "idle": torch.optim.SGD(idle.parameters(), 0.1)}

    model = Two(nn.Linear(3, 1), nn.MSELoss(), torch.optim.SGD)
    before = torch.get_autocast_dtype("cpu")
    torch.set_autocast_dtype("cpu", torch.float16)
    try:
        study = trainer(tmp_path, model=model, num_epochs=1, clip_grad_norm=1.0)
        study.train(split(), ComputationalConfig(device="cpu", amp=True))
    finally:
        torch.set_autocast_dtype("cpu", before)
    assert study.state.optim_step == 5


def test_a_name_of_another_event_is_told_with_that_event(tmp_path: Path) -> None:
    class Loss:
        def on_batch_end(self, *, loss: Any) -> None: ...

    class Group:
        def on_batch_end(self, *, group_name: str) -> None: ...

    with pytest.raises(ConfigurationError, match=r"names 'loss'.*; it comes with on_backward_step_start"):
        trainer(tmp_path, [Loss()])
    with pytest.raises(ConfigurationError, match=r"names 'group_name'.*; it comes with on_test_start"):
        trainer(tmp_path, [Group()])


def test_after_a_mistake_that_kept_the_training_from_beginning_the_script_may_be_run_again(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="lss"):
        trainer(tmp_path, [ModelCheckpoint("lss")]).train(split())
    trainer(tmp_path, [ModelCheckpoint("loss")]).train(split())
    with pytest.raises(ConfigurationError, match="earlier Trainer"):
        trainer(tmp_path)
