"""EarlyStopping: when it stops a training, and that it does nothing else."""

from __future__ import annotations

import math
import pickle
from typing import Any

import pytest
import torch

from async_trainer import CallbacksHandler, Split, TrainerState, background
from async_trainer.callbacks import EarlyStopping
from async_trainer.errors import ConfigurationError
from async_trainer.testing import check_callback, play
from async_trainer.train.metrics import MetricsHandler
from tests.callbacks.loops import Metrics, validate

NAN = math.nan


def epochs(stopping: EarlyStopping, values: list[float]) -> tuple[int, bool]:
    state = validate(CallbacksHandler([stopping]), values)
    return state.current_epoch, state.should_stop


def test_it_stops_after_as_many_validations_without_improvement_as_it_has_patience() -> None:
    assert epochs(EarlyStopping(patience=2), [3, 2, 2, 2.5, 1]) == (4, True)
    assert epochs(EarlyStopping(patience=2), [3, 2, 2.5, 1, 1, 0.5]) == (6, False)
    assert epochs(EarlyStopping(patience=1), [3, 3]) == (2, True)


def test_higher_is_better_with_mode_max() -> None:
    assert epochs(EarlyStopping(mode="max", patience=2), [1, 2, 3, 3, 2, 9]) == (5, True)
    assert epochs(EarlyStopping("accuracy", mode="max", patience=1), [3, 2, 1]) == (3, False)


def test_a_value_better_by_no_more_than_min_delta_is_no_improvement() -> None:
    assert epochs(EarlyStopping(patience=2, min_delta=0.5), [3, 2.75, 2.5, 1]) == (3, True)
    assert epochs(EarlyStopping(patience=2, min_delta=0.5), [3, 2.75, 2.25, 2]) == (4, False)
    assert epochs(EarlyStopping(mode="max", patience=1, min_delta=0.5), [3, 3.5]) == (2, True)


def test_nan_is_never_an_improvement() -> None:
    assert epochs(EarlyStopping(patience=2), [NAN, NAN, 1]) == (2, True)
    assert epochs(EarlyStopping(patience=2), [2, NAN, 1, NAN, NAN, 0]) == (5, True)
    assert epochs(EarlyStopping(patience=2, mode="max"), [NAN, 1, NAN, 2]) == (4, False)
    assert epochs(EarlyStopping(patience=2), [math.inf, math.inf, 1]) == (2, True)


def test_it_never_takes_back_the_wish_of_another_to_stop() -> None:
    stopping = EarlyStopping()
    state, metrics = TrainerState(should_stop=True), Metrics("loss")
    metrics.last = {"loss": 1.0}
    stopping.on_train_start(state=state, metrics=metrics)
    for _ in range(2):  # an improvement, and none
        stopping.on_validation_end(state=state, metrics=metrics)
        assert state.should_stop


def test_each_training_starts_anew() -> None:
    stopping = EarlyStopping(patience=2)
    assert epochs(stopping, [1, 2, 3]) == (3, True)
    assert epochs(stopping, [5, 4, 3]) == (3, False)


def test_a_resumed_training_goes_on_counting_whichever_comes_first_the_state_or_the_event() -> None:
    before = EarlyStopping(patience=3)
    validate(CallbacksHandler([before]), [1, 2])
    state = pickle.loads(pickle.dumps(before.state_dict()))

    loaded_first = EarlyStopping(patience=3)
    handler = CallbacksHandler([loaded_first])
    handler.load_state_dict({"early_stopping": state})
    assert validate(handler, [2, 2, 2], start="on_resume").current_epoch == 2

    after = EarlyStopping(patience=3)
    after.on_resume(metrics=Metrics("loss"))
    after.load_state_dict(state)
    assert repr(after) == "<EarlyStopping: loss, best 1.0, 1 of 3 without improvement>"


def test_a_mapping_will_do_for_metrics_in_a_plain_loop() -> None:
    state, metrics = TrainerState(), {"loss": 1.0}
    with CallbacksHandler([EarlyStopping(patience=1)]) as handler:
        handler.call_event("on_train_start")
        for _ in range(2):
            handler.call_event("on_validation_end", state=state, metrics=metrics)
    assert state.should_stop


def test_it_watches_one_of_several_values_of_a_metric_of_a_metrics_handler() -> None:
    metrics = MetricsHandler(recall=Recall())
    state, stopping = TrainerState(), EarlyStopping("recall_1", mode="max", patience=1)
    with CallbacksHandler([stopping]) as handler:
        handler.call_event("on_train_start", state=state, metrics=metrics)
        for epoch in (1, 2):
            metrics({"preds": torch.tensor([0.5])}, epoch=epoch)
            metrics.aggregate(epoch=epoch)
            handler.call_event("on_validation_end", state=state, metrics=metrics)
    assert stopping.best == 0.5
    assert state.should_stop


class Recall:
    """Of each of two classes."""

    def update(self, preds: Any) -> None: ...

    def compute(self) -> list[float]:
        return [1.0, 0.5]

    def reset(self) -> None: ...


@pytest.mark.slow
def test_it_does_the_same_however_it_is_run() -> None:
    class Watching(EarlyStopping):
        steers = False  # it only counts: it has the patience of a saint

    check_callback(lambda: Watching(patience=99))


def test_a_rehearsed_training_is_watched() -> None:
    stopping = EarlyStopping()
    play(stopping, epochs=3)
    assert 0 < stopping.best < 9


def test_an_unknown_metric_is_refused_when_the_training_starts() -> None:
    handler = CallbacksHandler([EarlyStopping("acuracy", mode="max")])
    with pytest.raises(ConfigurationError, match=r"metric='acuracy'.*did you mean 'accuracy'\?; there are: loss, acc"):
        handler.call_event("on_train_start", state=TrainerState(), metrics=Metrics("loss", "accuracy"))
    with pytest.raises(ConfigurationError, match=r"EarlyStopping: metric='acuracy'"):
        handler.call_event("on_resume", state=TrainerState(), metrics=Metrics("loss", "accuracy"))
    with pytest.raises(ConfigurationError, match="there are: loss"):
        handler.call_event("on_validation_end", state=TrainerState(), metrics={"loss": 1.0})


def test_it_is_refused_in_the_background() -> None:
    with pytest.raises(ConfigurationError, match=r"pass it as EarlyStopping\(...\), without background"):
        CallbacksHandler([background(EarlyStopping())])


def test_a_split_without_validation_data_is_refused() -> None:
    handler = CallbacksHandler([EarlyStopping()])
    with pytest.raises(ConfigurationError, match=r"EarlyStopping: metric='loss': .* has no validation data"):
        handler.call_event("on_train_start", state=TrainerState(), split=Split(0, [1]))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"metric": None}, "metric must be the name"),
        ({"metric": ""}, "metric must be the name"),
        ({"mode": "mim"}, "mode must be 'min'.*did you mean 'min'"),
        ({"mode": None}, "mode must be"),
        ({"patience": 0}, "patience must be a whole number of validations, 1 or more, not 0"),
        ({"patience": 2.0}, "patience must be"),
        ({"patience": True}, "patience must be"),
        ({"min_delta": -1}, "min_delta must be a number, 0 or more"),
        ({"min_delta": NAN}, "min_delta must be"),
        ({"min_delta": "1"}, "min_delta must be"),
    ],
)
def test_a_bad_argument_is_refused_by_name(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        EarlyStopping(**arguments)
