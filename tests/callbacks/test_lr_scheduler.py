"""LRScheduler: the rates that an optimizer steps with."""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LinearLR, OneCycleLR, ReduceLROnPlateau, SequentialLR, StepLR
from torch.optim.lr_scheduler import LRScheduler as TorchScheduler

from async_trainer import CallbacksHandler, TrainerState, background
from async_trainer.callbacks import LRScheduler
from async_trainer.errors import ConfigurationError
from async_trainer.testing import Rehearsal, play
from tests.callbacks.loops import Training, sgd


@pytest.fixture(autouse=True)
def _no_warnings() -> Iterator[None]:
    """Torch warns of a scheduler that is stepped before its optimizer: that is an error here."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", "The epoch parameter")  # SequentialLR of torch 2.6 gives it to its schedulers
        yield


def halve(optimizer: Optimizer) -> StepLR:
    return StepLR(optimizer, 1, gamma=0.5)


def halve_on_plateau(optimizer: Optimizer) -> ReduceLROnPlateau:
    return ReduceLROnPlateau(optimizer, factor=0.5, patience=0)


def warm_up(optimizer: Optimizer) -> LinearLR:
    return LinearLR(optimizer, start_factor=0.25, total_iters=4)


def one_cycle(optimizer: Optimizer) -> OneCycleLR:
    return OneCycleLR(optimizer, 8.0, total_steps=12)


def in_sequence(optimizer: Optimizer) -> SequentialLR:
    return SequentialLR(optimizer, [warm_up(optimizer), halve(optimizer)], [3])


def by_epoch(optimizer: Optimizer) -> LambdaLR:
    return LambdaLR(optimizer, lambda epoch: 1 / (1 + epoch))


def rates(scheduler: LRScheduler, epochs: int = 3, **options: Any) -> list[float]:
    training = Training(CallbacksHandler([scheduler]), **options)
    training.start()
    training.run(epochs)
    training.end()
    return [rate for (rate,) in training.rates]


def test_it_steps_after_each_epoch() -> None:
    assert rates(LRScheduler(halve)) == [1, 1, 0.5, 0.5, 0.25, 0.25]


def test_it_steps_after_each_optimization_step() -> None:
    assert rates(LRScheduler(halve, interval="step")) == [1, 0.5, 0.25, 0.125, 0.0625, 0.03125]
    assert rates(LRScheduler(warm_up, interval="step")) == [0.25, 0.4375, 0.625, 0.8125, 1, 1]


def test_it_watches_a_metric_after_each_validation() -> None:
    losses = [3.0, 3.0, 2.0, math.nan, 1.0]
    plateau = LRScheduler(halve_on_plateau, metric="loss")
    assert rates(plateau, 5, losses=lambda epoch: losses[epoch - 1])[::2] == [1, 1, 0.5, 0.5, 0.25]


def test_a_step_that_amp_skips_moves_no_schedule_and_provokes_no_warning() -> None:
    assert rates(LRScheduler(halve, interval="step"), skipped=[1, 4]) == [1, 1, 0.5, 0.25, 0.25, 0.125]
    assert rates(LRScheduler(halve), skipped=[1, 2, 3]) == [1, 1, 1, 1, 0.5, 0.5]


def test_a_grad_scaler_that_finds_infinities_skips_the_schedule_too() -> None:
    optimizer = sgd()
    weight = optimizer.param_groups[0]["params"][0]
    scaler = torch.amp.GradScaler("cpu")
    scheduler = LRScheduler(halve, interval="step")
    with CallbacksHandler([scheduler]) as handler:
        handler.call_event("on_train_start", optimizers={"sgd": optimizer})
        seen = []
        for factor in (math.inf, 1.0, 1.0):
            optimizer.zero_grad()
            scaler.scale(weight.sum() * factor).backward()
            scaler.step(optimizer)
            scaler.update()
            handler.call_event("on_optimization_step_end")
            seen.append(optimizer.param_groups[0]["lr"])
    assert seen == [1, 0.5, 0.25]


def test_each_optimizer_has_a_scheduler_or_only_the_one_that_is_named() -> None:
    for name, expected in ((None, [(1, 4), (0.5, 2)]), ("g", [(1, 4), (0.5, 4)]), ("d", [(1, 4), (1, 2)])):
        training = Training(CallbacksHandler([LRScheduler(halve, optimizer=name)]), {"g": sgd(), "d": sgd(4.0)})
        training.start()
        training.run(2)
        assert training.rates[::2] == expected


def test_each_training_has_schedulers_of_its_own_and_lets_go_of_the_last_ones() -> None:
    scheduler = LRScheduler(halve)
    first = sgd()
    assert rates(scheduler, optimizers={"sgd": first}) == [1, 1, 0.5, 0.5, 0.25, 0.25]
    assert rates(scheduler) == [1, 1, 0.5, 0.5, 0.25, 0.25]
    assert first.param_groups[0]["lr"] == 0.125
    assert not scheduler._schedules
    assert not first._optimizer_step_post_hooks
    assert repr(scheduler) == "<LRScheduler: after each epoch; not running>"

    ended_early = Training(CallbacksHandler([scheduler]))
    ended_early.start()
    assert repr(scheduler) == "<LRScheduler: after each epoch; StepLR of sgd>"
    assert rates(scheduler) == [1, 1, 0.5, 0.5, 0.25, 0.25]
    assert not ended_early.optimizers["sgd"]._optimizer_step_post_hooks


@pytest.mark.parametrize(
    ("make", "options"),
    [
        (halve, {}),
        (by_epoch, {}),
        (warm_up, {"interval": "step"}),
        (one_cycle, {"interval": "step"}),
        (in_sequence, {"interval": "step"}),
        (halve_on_plateau, {"metric": "loss"}),
    ],
)
@pytest.mark.parametrize("cut", [1, 2, 3, 4])
@pytest.mark.parametrize("order", ["callbacks, event, optimizer", "optimizer, event, callbacks"])
def test_a_resumed_training_has_the_rates_of_one_that_was_never_interrupted(
    make: Callable[[Optimizer], TorchScheduler], options: dict[str, Any], cut: int, order: str
) -> None:
    """Cut after optimization step ``cut``: at 2 and 4 what is left of the epoch is its end."""

    def training() -> Training:
        return Training(CallbacksHandler([LRScheduler(make, **options)]))

    def go_on(one: Training, until: int) -> None:
        while one.state.optim_step < until:
            one.state.current_epoch = one.state.optim_step // 2 + 1
            one.step()
            if one.state.optim_step % 2 == 0 and one.state.optim_step != until:
                one.end_epoch()

    whole = training()
    whole.start()
    go_on(whole, 8)

    before = training()
    before.start()
    go_on(before, cut)
    saved = io.BytesIO()
    torch.save({"callbacks": before.handler.state_dict(), "sgd": before.optimizers["sgd"].state_dict()}, saved)
    go_on(before, cut + 3)
    saved.seek(0)
    states = torch.load(saved, weights_only=True)

    after = training()
    after.state = TrainerState(current_epoch=before.state.current_epoch)
    steps = {
        "event": lambda: after.start("on_resume"),
        "optimizer": lambda: after.optimizers["sgd"].load_state_dict(states["sgd"]),
        "callbacks": lambda: after.handler.load_state_dict(states["callbacks"]),
    }
    for step in order.split(", "):
        steps[step]()
    after.state.current_epoch, after.state.optim_step = (cut - 1) // 2 + 1, cut
    if cut % 2 == 0:
        after.end_epoch()
    go_on(after, 8)
    assert [*whole.rates[:cut], *after.rates] == whole.rates
    groups = (one.optimizers["sgd"].param_groups[0] for one in (whole, after))
    assert len({tuple(value for key, value in group.items() if key != "params") for group in groups}) == 1


def test_a_rate_that_is_a_tensor_stays_the_same_tensor() -> None:
    def adam() -> dict[str, Optimizer]:
        weight = torch.nn.Parameter(torch.zeros(1))
        weight.grad = torch.ones(1)
        return {"adam": torch.optim.Adam([weight], lr=torch.tensor(1.0), capturable=False, foreach=False)}

    before = Training(CallbacksHandler([LRScheduler(halve)]), adam())
    before.start()
    before.optimizers["adam"].step()
    before.end_epoch()
    after = Training(CallbacksHandler([LRScheduler(halve)]), adam())
    rate = after.optimizers["adam"].param_groups[0]["lr"]
    after.start("on_resume")
    after.handler.load_state_dict(before.handler.state_dict())
    assert after.optimizers["adam"].param_groups[0]["lr"] is rate
    assert rate.item() == 0.5


def cutting(handler: CallbacksHandler, rehearsal: Rehearsal, cuts: list[tuple[dict[str, Any], Rehearsal]]) -> Any:
    """Fires events at ``handler``, and takes its states and a fork of the training at the end of each epoch."""

    def fire(event: str, **arguments: Any) -> None:
        handler.call_event(event, **arguments)
        if event == "on_epoch_end":
            cuts.append((handler.state_dict(), rehearsal.fork()))

    return fire


def test_it_schedules_a_rehearsed_training_and_goes_on_after_a_resume(tmp_path: Path) -> None:
    for make, options in ((halve, {}), (warm_up, {"interval": "step"}), (halve_on_plateau, {"metric": "loss"})):
        whole, first = Rehearsal(tmp_path, 3), Rehearsal(tmp_path, 3)
        whole.train(CallbacksHandler([LRScheduler(make, **options)]))
        handler = CallbacksHandler([LRScheduler(make, **options)])
        cuts: list[tuple[dict[str, Any], Rehearsal]] = []
        first.train(handler, until=2, fire=cutting(handler, first, cuts))
        (states, second), _ = cuts
        resumed = CallbacksHandler([LRScheduler(make, **options)])
        resumed.load_state_dict(states)
        second.train(resumed)
        for one, other in zip(whole.model.parameters(), second.model.parameters(), strict=True):
            assert torch.equal(one, other)
        rates = [next(iter(one.optimizers.values())).param_groups[0]["lr"] for one in (whole, second)]
        assert rates[0] == rates[1]


def test_what_it_is_given_that_cant_work_is_refused_at_the_start() -> None:
    other = sgd()

    def refused(scheduler: LRScheduler) -> str:
        with pytest.raises(ConfigurationError) as refusal:
            Training(CallbacksHandler([scheduler])).start()
        return str(refusal.value)

    assert "optimizer='sdg': there is no such optimizer; did you mean 'sgd'?" in refused(
        LRScheduler(halve, optimizer="sdg")
    )
    assert "metric='los': there is no such metric; did you mean 'loss'?" in refused(
        LRScheduler(halve_on_plateau, metric="los")
    )
    assert "must return a scheduler of torch, not None" in refused(LRScheduler(lambda _: None))  # type: ignore[arg-type, return-value]
    assert "is of another optimizer" in refused(LRScheduler(lambda _: halve(other)))
    assert "ReduceLROnPlateau needs a metric to watch: metric='loss'" in refused(LRScheduler(halve_on_plateau))
    assert "StepLR watches no metric: leave out metric='loss'" in refused(LRScheduler(halve, metric="loss"))


def test_the_state_of_other_optimizers_is_refused() -> None:
    training = Training(CallbacksHandler([LRScheduler(halve)]))
    training.start()
    with pytest.raises(ConfigurationError, match="the state is of the optimizers adam; this training schedules sgd"):
        training.handler.load_state_dict({"lr_scheduler": {"adam": {}}})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"factory": 3}, "factory must be a function"),
        ({"factory": halve(sgd())}, r"lambda optimizer: StepLR\(optimizer"),
        ({"factory": halve, "interval": "steps"}, "did you mean 'step'"),
        ({"factory": halve, "interval": 2}, "interval must be"),
        ({"factory": halve, "metric": ""}, "metric must be a name"),
        ({"factory": halve, "optimizer": 0}, "optimizer must be a name"),
        ({"factory": halve, "metric": "loss", "interval": "step"}, "leave out interval"),
    ],
)
def test_a_bad_argument_is_refused_by_name(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        LRScheduler(**arguments)


def test_it_is_refused_in_the_background() -> None:
    with pytest.raises(ConfigurationError, match=r"pass it as LRScheduler\(...\), without background"):
        play(background(LRScheduler(halve)), epochs=1)
