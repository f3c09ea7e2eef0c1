"""The Ignite adapter, inside the real Ignite."""

from __future__ import annotations

import functools
import gc
import logging
import threading
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("ignite")

from ignite.engine import Engine, Events, create_supervised_evaluator
from ignite.handlers import (
    Checkpoint,
    DiskSaver,
    EarlyStopping,
    LRScheduler,
    ModelCheckpoint,
    ProgressBar,
    TensorboardLogger,
    TerminateOnNan,
    Timer,
    global_step_from_engine,
)
from ignite.handlers.checkpoint import CheckpointEvents
from ignite.handlers.tensorboard_logger import GradsScalarHandler, OptimizerParamsHandler, WeightsScalarHandler
from ignite.metrics import Loss, RunningAverage

from async_trainer import CallbacksHandler
from async_trainer.adapters import ignite
from async_trainer.errors import ConfigurationError, LaneError
from tests.adapters.pages import run_page

LIMIT = 60.0  # s


class Study:
    """A small training: its trainer and evaluator, and the net, data and optimizer that they use."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.BatchNorm1d(8), torch.nn.Linear(8, 1))
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=0.05)
        x = torch.randn(24, 4)
        self.data = [(part, part.sum(1, keepdim=True)) for part in x.split(4)]
        self.trainer = Engine(self.step)
        RunningAverage(output_transform=lambda loss: loss).attach(self.trainer, "loss")
        self.evaluator = create_supervised_evaluator(self.model, {"mse": Loss(torch.nn.functional.mse_loss)})
        self.trainer.add_event_handler(Events.EPOCH_COMPLETED, lambda: self.evaluator.run(self.data))
        self.schedule = torch.optim.lr_scheduler.StepLR(self.optimizer, 4, 0.8)
        self.trainer.add_event_handler(Events.ITERATION_COMPLETED, LRScheduler(self.schedule))

    def step(self, engine: Engine, batch: Any) -> float:
        self.model.train()
        self.optimizer.zero_grad()
        loss = (self.model(batch[0]) - batch[1]).square().mean()
        loss.backward()
        self.optimizer.step()
        return loss.item()


def unchanged(one: Any) -> Any:
    """In the place of ``ignite.background``: the handler stays inline."""
    return one


def attach_all(study: Study, folder: Path, background: Any) -> tuple[Any, Any]:
    """Checkpoints of each kind, and a TensorBoard log of all that Ignite can log."""
    trainer, evaluator, model = study.trainer, study.evaluator, study.model
    score = ModelCheckpoint(
        folder / "best",
        "net",
        score_name="mse",
        score_function=lambda engine: -engine.state.metrics["mse"],
        n_saved=2,
        global_step_transform=global_step_from_engine(trainer),
        require_empty=False,
    )
    evaluator.add_event_handler(Events.COMPLETED, background(score), {"model": model})
    everything = {"model": model, "optimizer": study.optimizer, "schedule": study.schedule, "trainer": trainer}
    last = background(
        Checkpoint(everything, DiskSaver(str(folder / "last"), require_empty=False), n_saved=2, include_self=True)
    )
    trainer.add_event_handler(Events.EPOCH_COMPLETED, last)
    logger = background(TensorboardLogger(str(folder / "board")))
    logger.attach_output_handler(trainer, Events.ITERATION_COMPLETED, "train", ["loss"], lambda loss: {"step": loss})
    logger.attach_output_handler(evaluator, Events.EPOCH_COMPLETED, "val", "all",
                                 global_step_transform=global_step_from_engine(trainer))  # fmt: skip
    logger.attach_opt_params_handler(trainer, Events.ITERATION_STARTED, study.optimizer)
    logger.attach(trainer, WeightsScalarHandler(model), Events.ITERATION_COMPLETED(every=2))
    logger.attach(trainer, GradsScalarHandler(model), Events.EPOCH_COMPLETED | Events.STARTED)
    return last, logger


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    read = EventAccumulator(str(folder))
    read.Reload()
    return {tag: [(one.step, one.value) for one in read.Scalars(tag)] for tag in read.Tags()["scalars"]}


def files(folder: Path) -> dict[str, Any]:
    """The checkpoints of a run, by name; compared by :func:`same`."""
    return {str(path.relative_to(folder)): torch.load(path) for path in folder.rglob("*.pt")}


def same(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor):
        return isinstance(other, torch.Tensor) and torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(value, other[key]) for key, value in one.items())
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)


def train(folder: Path, background: Any, epochs: int = 3) -> Study:
    study = Study()
    _, logger = attach_all(study, folder, background)
    study.trainer.run(study.data, max_epochs=epochs)
    logger.close()
    return study


def test_a_run_gives_the_same_files_and_metrics_inline_and_in_the_background(tmp_path: Path) -> None:
    inline = train(tmp_path / "inline", unchanged)
    behind = train(tmp_path / "behind", ignite.background)
    assert same(inline.model.state_dict(), behind.model.state_dict())
    assert inline.trainer.state.metrics == behind.trainer.state.metrics
    written = files(tmp_path / "inline")
    assert len(written) == 4
    assert same(written, files(tmp_path / "behind"))
    logged = scalars(tmp_path / "inline" / "board")
    assert len(logged["lr/group_0"]) == 18
    assert len(logged["grads_norm/0/weight"]) == 3
    assert logged == scalars(tmp_path / "behind" / "board")


def test_a_run_that_was_broken_off_goes_on_from_what_the_background_has_written(tmp_path: Path) -> None:
    for name, background in (("inline", unchanged), ("behind", ignite.background)):
        folder = tmp_path / name
        study = Study()
        attach_all(study, folder, background)
        study.trainer.add_event_handler(Events.ITERATION_COMPLETED(once=9), boom)
        with pytest.raises(ZeroDivisionError):
            study.trainer.run(study.data, max_epochs=3)
        resumed = Study()
        last, _ = attach_all(resumed, folder, background)
        everything = {**last.to_save, "checkpointer": last}
        Checkpoint.load_objects(everything, folder / "last" / "checkpoint_6.pt")
        assert resumed.trainer.state.iteration == 6
        resumed.trainer.run(resumed.data, max_epochs=3)
        assert last.last_checkpoint.name == "checkpoint_18.pt"
    assert same(files(tmp_path / "inline"), files(tmp_path / "behind"))
    assert len(files(tmp_path / "behind")) >= 4


def boom() -> None:
    raise ZeroDivisionError("a bad batch")


# ------------------------------------------------------------------------------------------------- what a handler sees


class Hold:
    """Holds the lane of a handler, until it is let go."""

    def __init__(self) -> None:
        self.open = threading.Event()

    def wait(self) -> None:
        assert self.open.wait(LIMIT)


def test_the_engine_and_what_a_handler_is_given_are_as_of_the_event() -> None:
    study, hold, seen = Study(), Hold(), []
    weights: list[torch.Tensor] = []

    def look(engine: Engine, model: torch.nn.Module, word: str = "") -> None:
        hold.wait()
        state = engine.state
        assert isinstance(engine, Engine)
        seen.append((state.iteration, state.epoch, state.output, dict(state.metrics), engine.last_event_name, word))
        weights.append(model[0].weight.detach().clone())

    study.trainer.add_event_handler(Events.ITERATION_COMPLETED, ignite.background(look), study.model, word="w")
    live: list[Any] = []
    live_weights: list[torch.Tensor] = []

    @study.trainer.on(Events.ITERATION_COMPLETED)
    def note(engine: Engine) -> None:
        state = engine.state
        live.append((state.iteration, state.epoch, state.output, dict(state.metrics), engine.last_event_name, "w"))
        live_weights.append(study.model[0].weight.detach().clone())

    study.trainer.add_event_handler(Events.ITERATION_COMPLETED(once=5), hold.open.set)
    study.trainer.run(study.data, max_epochs=1)
    assert seen == live
    assert same(weights, live_weights)
    assert len({tuple(one.flatten().tolist()) for one in weights}) == 6


def test_what_a_handler_closes_over_is_as_of_the_event() -> None:
    study, hold, seen = Study(), Hold(), []
    trainer, optimizer, net = study.trainer, study.optimizer, {"net": study.model}

    def look() -> None:
        hold.wait()
        seen.append((trainer.state.iteration, optimizer.param_groups[0]["lr"], net["net"][0].weight.sum().item()))

    live: list[Any] = []
    trainer.add_event_handler(Events.ITERATION_COMPLETED, ignite.background(look))
    trainer.add_event_handler(
        Events.ITERATION_COMPLETED,
        lambda: live.append(
            (trainer.state.iteration, optimizer.param_groups[0]["lr"], study.model[0].weight.sum().item())
        ),
    )
    trainer.add_event_handler(Events.ITERATION_COMPLETED(once=5), hold.open.set)
    trainer.run(study.data, max_epochs=1)
    assert seen == live
    assert len(set(seen)) == 6


def test_what_a_handler_has_as_an_attribute_is_as_of_the_event_and_what_it_changes_is_its_own() -> None:
    class Norms:
        def __init__(self, model: torch.nn.Module) -> None:
            self.model = model
            self.count = 0
            self.norms: list[float] = []

        def look(self) -> None:
            hold.wait()
            self.count += 1
            self.norms.append(self.model[0].weight.norm().item())

    study, hold = Study(), Hold()
    norms, live = Norms(study.model), []
    study.trainer.add_event_handler(Events.ITERATION_COMPLETED, ignite.background(norms.look))
    study.trainer.add_event_handler(
        Events.ITERATION_COMPLETED, lambda: live.append(study.model[0].weight.norm().item())
    )
    study.trainer.add_event_handler(Events.ITERATION_COMPLETED(once=5), hold.open.set)
    study.trainer.run(study.data, max_epochs=1)
    assert norms.norms == live
    assert norms.count == 6
    assert norms.model is study.model


def test_a_function_that_a_handler_has_as_an_attribute_sees_the_event_too() -> None:
    class Steps:
        def __init__(self, step: Any) -> None:
            self.step = step

        def __call__(self, engine: Engine) -> None:
            hold.wait()
            seen.append(self.step(engine, Events.ITERATION_COMPLETED))

    study, hold, seen = Study(), Hold(), []
    steps = Steps(global_step_from_engine(study.trainer))
    study.trainer.add_event_handler(Events.ITERATION_COMPLETED, ignite.background(steps))
    study.trainer.add_event_handler(Events.ITERATION_COMPLETED(once=5), hold.open.set)
    study.trainer.run(study.data, max_epochs=1)
    assert seen == [1, 2, 3, 4, 5, 6]


SCRIPT = Study()  # a script's global


def test_what_a_handler_names_of_its_globals_is_as_of_the_event() -> None:
    hold, seen, live = Hold(), [], []
    trainer = SCRIPT.trainer

    def look() -> None:
        hold.wait()
        seen.append(GLOBAL_MODEL[0].weight.sum().item())

    trainer.add_event_handler(Events.ITERATION_COMPLETED, ignite.background(look))
    trainer.add_event_handler(Events.ITERATION_COMPLETED, lambda: live.append(GLOBAL_MODEL[0].weight.sum().item()))
    trainer.add_event_handler(Events.ITERATION_COMPLETED(once=5), hold.open.set)
    trainer.run(SCRIPT.data, max_epochs=1)
    assert seen == live
    assert len(set(seen)) == 6


GLOBAL_MODEL = SCRIPT.model


def test_a_batch_is_copied_only_where_it_is_selected() -> None:
    study, seen = Study(), []

    def look(engine: Engine) -> None:
        seen.append(engine.state.batch)

    selected = ignite.background(look, select={"batch": lambda batch: batch[0], "output": None})
    refused = ignite.background(look)
    for one in (selected, refused):
        study.trainer.add_event_handler(Events.ITERATION_COMPLETED, one)
    study.trainer.run(study.data, max_epochs=1)
    assert same(seen, [x for x, _ in study.data])
    report = refused.handler.close()
    assert (report.failed, report.delivered) == (6, 0)
    assert "select={'batch': lambda batch: batch}" in str(report.errors[0])


def test_a_select_that_fails_fails_the_handler_and_not_the_training() -> None:
    study = Study()
    look = ignite.background(lambda engine: engine.state.output, select={"output": lambda output: 1 / 0})
    study.trainer.add_event_handler(Events.ITERATION_COMPLETED, look)
    study.trainer.run(study.data, max_epochs=1)
    assert study.trainer.state.iteration == 6
    assert "ZeroDivisionError" in str(look.handler.close().errors[0])


@pytest.mark.parametrize("how", ["engine.state.best = 1", "terminate", "run", "fire"])
def test_what_would_steer_fails_in_the_background(how: str) -> None:
    def steer(engine: Engine) -> None:
        if how.startswith("engine.state"):
            setattr(engine.state, "best", 1)  # noqa: B010  # not to be seen in the code
        else:
            getattr(engine, {"fire": "fire_event"}.get(how, how))(*[] if how == "terminate" else [Events.COMPLETED])

    study = Study()
    steering = ignite.background(steer)
    study.trainer.add_event_handler(Events.EPOCH_COMPLETED, steering)
    study.trainer.add_event_handler(Events.COMPLETED, lambda: None)
    study.trainer.run(study.data, max_epochs=2)
    report = steering.handler.close()
    assert report.failed == 2
    assert "run inline" in str(report.errors[0])


def test_an_event_that_a_handler_fires_and_somebody_listens_to_is_an_error_at_the_end(tmp_path: Path) -> None:
    study = Study()
    study.trainer.register_events(*CheckpointEvents)
    study.trainer.add_event_handler(CheckpointEvents.SAVED_CHECKPOINT, lambda: None)
    saver = ignite.background(Checkpoint({"model": study.model}, str(tmp_path)))
    study.trainer.add_event_handler(Events.EPOCH_COMPLETED, saver)
    with pytest.raises(LaneError, match="SAVED_CHECKPOINT"):
        study.trainer.run(study.data, max_epochs=1)


# -------------------------------------------------------------------------------------------------- attaching, refusals


def test_handlers_are_called_as_ignite_calls_them_and_refused_where_it_refuses_them() -> None:
    calls: list[Any] = []

    def bare() -> None:
        calls.append("bare")

    def with_arguments(engine: Engine, a: int, b: int = 0) -> None:
        calls.append((engine.state.iteration, a, b))

    study = Study()
    lane = CallbacksHandler()
    behind = functools.partial(ignite.background, handler=lane, lane="one")
    study.trainer.add_event_handler(Events.ITERATION_COMPLETED(every=3), behind(bare))
    study.trainer.on(Events.ITERATION_COMPLETED(every=3), 1, b=2)(behind(with_arguments))
    study.trainer.add_event_handler(Events.EPOCH_STARTED | Events.COMPLETED, behind(functools.partial(calls.append)), 7)
    with pytest.raises(ValueError, match="takes parameters"):
        study.trainer.add_event_handler(Events.STARTED, behind(bare), 1, 2)
    study.trainer.run(study.data, max_epochs=1)
    assert calls == [7, "bare", (3, 1, 2), "bare", (6, 1, 2), 7]


def test_handlers_are_found_and_removed_by_what_was_wrapped() -> None:
    def look() -> None: ...

    trainer = Study().trainer
    behind = ignite.background(look)
    handle = trainer.add_event_handler(Events.ITERATION_COMPLETED(every=2), behind)
    assert trainer.has_event_handler(look, Events.ITERATION_COMPLETED)
    assert trainer.has_event_handler(behind, Events.ITERATION_COMPLETED)
    handle.remove()
    assert not trainer.has_event_handler(look)
    trainer.add_event_handler(Events.STARTED, behind)
    trainer.remove_event_handler(look, Events.STARTED)
    assert not trainer.has_event_handler(behind)


def test_a_loggers_handles_remove_what_it_has_attached(tmp_path: Path) -> None:
    trainer = Study().trainer
    logger = ignite.background(TensorboardLogger(str(tmp_path)))
    output = {"tag": "a", "output_transform": lambda loss: loss}
    handles = [
        logger.attach_output_handler(trainer, events, **output)
        for events in (Events.EPOCH_COMPLETED, Events.EPOCH_COMPLETED | Events.STARTED)
    ]
    count = sum(len(listed) for listed in trainer._event_handlers.values())
    for handle in handles:
        handle.remove()
    assert sum(len(listed) for listed in trainer._event_handlers.values()) == count - 3
    logger.close()


def test_a_progress_bar_runs_on_its_lane() -> None:
    import io

    study, screen = Study(), io.StringIO()
    bar = ignite.background(ProgressBar(persist=True, file=screen, mininterval=0))
    assert isinstance(bar, ProgressBar)
    bar.attach(study.trainer, ["loss"])
    study.trainer.run(study.data, max_epochs=2)
    assert "Epoch [2/2]" in screen.getvalue()
    assert "[6/6]" in screen.getvalue()
    assert bar.handler.stats().lanes["progress_bar"].delivered == 14


def test_what_mlflow_logs_goes_to_the_run_that_is_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    from ignite.handlers import MLflowLogger

    study = Study()
    logger = ignite.background(MLflowLogger(tracking_uri=f"file:{tmp_path}/runs"))
    run = logger.active_run.info.run_id
    logger.attach_output_handler(study.trainer, Events.EPOCH_COMPLETED, "train", ["loss"])
    study.trainer.run(study.data, max_epochs=2)
    client = mlflow.MlflowClient()
    logged = client.get_metric_history(run, "train loss")
    assert [one.step for one in logged] == [1, 2]
    assert len(client.search_runs([logger.active_run.info.experiment_id])) == 1
    logger.close()
    mlflow.end_run()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda s: EarlyStopping(2, lambda engine: 0.0, s.trainer), "EarlyStopping writes to the engine"),
        (lambda s: TerminateOnNan(), "TerminateOnNan writes to the engine"),
        (lambda s: LRScheduler(s.schedule), "LRScheduler writes to the engine or an optimizer"),
        (lambda s: Timer().pause, "measures the engine"),
        (lambda s: s.trainer.terminate, "it is a method of an engine, terminate"),
        (lambda s: s.schedule.step, "it is a method of a live StepLR"),
        (lambda s: functools.partial(print, s.model), "bound to live objects"),
        (lambda s: Study, "not Study"),
        (lambda s: 3, "not int"),
    ],
)
def test_what_steers_is_refused(make: Any, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        ignite.background(make(Study()))


def test_functions_that_steer_are_refused_by_their_code() -> None:
    study = Study()
    trainer, evaluator, schedule = study.trainer, study.evaluator, study.schedule

    def store(engine: Engine) -> None:
        engine.state.best = engine.state.output

    class Stop:
        def __call__(self, engine: Engine) -> None:
            engine.terminate()

    for target, message in (
        (lambda: trainer.terminate(), r"calls \.terminate\(\)"),
        (lambda: evaluator.run(study.data), r"calls \.run\(\)"),
        (lambda: schedule.step(), r"calls \.step\(\)"),
        (store, r"sets engine\.state\.best"),
        (Stop(), r"calls \.terminate\(\)"),
    ):
        with pytest.raises(ConfigurationError, match=message):
            ignite.background(target)


@pytest.mark.parametrize(
    "options", [{"every": {"on_batch_end": 2}}, {"when": bool}, {"placement": "process"}, {"x": 1}]
)
def test_options_that_ignite_has_a_way_for_are_refused(options: Any) -> None:
    with pytest.raises(ConfigurationError):
        ignite.background(print, **options)


def test_a_process_is_refused_and_the_message_says_what_to_do() -> None:
    with pytest.raises(ConfigurationError, match=r"runs on a thread.* Leave placement out"):
        ignite.background(print, placement="process")


def test_a_handler_is_wrapped_once(tmp_path: Path) -> None:
    logger = TensorboardLogger(str(tmp_path))
    for one in (boom, logger):
        behind = ignite.background(one)
        with pytest.raises(ConfigurationError, match="already"):
            ignite.background(behind)
    logger.close()


# ------------------------------------------------------------------------------------------------------------- the ends


def test_an_evaluators_end_waits_for_nothing_and_the_trainers_waits_for_its_lanes() -> None:
    study, hold, done = Study(), Hold(), []

    def look(engine: Engine) -> None:
        hold.wait()
        done.append(engine.state.metrics["mse"])

    study.evaluator.add_event_handler(Events.COMPLETED, ignite.background(look))
    study.trainer.add_event_handler(Events.EPOCH_COMPLETED(once=3), hold.open.set)  # the first two would wait for it
    study.trainer.run(study.data, max_epochs=3)
    assert len(set(done)) == 3
    study.evaluator.run(study.data)  # on its own
    assert len(done) == 4


@pytest.mark.parametrize("skip", [True, False])
def test_a_run_that_is_terminated_waits_for_its_lanes(skip: bool) -> None:
    study, hold, done = Study(), Hold(), []
    look = ignite.background(lambda engine: (hold.wait(), done.append(engine.state.iteration)))
    study.trainer.add_event_handler(Events.ITERATION_COMPLETED, look)
    study.trainer.add_event_handler(Events.ITERATION_COMPLETED(once=4), hold.open.set)
    study.trainer.add_event_handler(Events.ITERATION_COMPLETED(once=4), lambda engine: engine.terminate(skip))
    study.trainer.run(study.data, max_epochs=3)
    assert done == [1, 2, 3, 4]


def test_a_run_that_is_interrupted_waits_and_goes_on() -> None:
    study, done = Study(), []
    look = ignite.background(lambda engine: done.append(engine.state.iteration))
    study.trainer.add_event_handler(Events.ITERATION_COMPLETED, look)
    study.trainer.add_event_handler(Events.ITERATION_COMPLETED(once=4), study.trainer.interrupt)
    study.trainer.run(study.data, max_epochs=1)
    assert done == [1, 2, 3, 4]
    study.trainer.run(study.data, max_epochs=1)
    assert done == [1, 2, 3, 4, 5, 6]


def test_an_exception_is_raised_though_background_handlers_are_told_of_it() -> None:
    study, told, done = Study(), [], []
    study.trainer.add_event_handler(Events.EXCEPTION_RAISED, ignite.background(lambda engine, e: told.append(repr(e))))
    study.trainer.add_event_handler(
        Events.ITERATION_COMPLETED, ignite.background(lambda e: done.append(e.state.iteration))
    )
    study.trainer.add_event_handler(Events.ITERATION_COMPLETED(once=4), boom)
    with pytest.raises(ZeroDivisionError):
        study.trainer.run(study.data, max_epochs=1)
    assert done == [1, 2, 3, 4]
    assert set(told) == {"ZeroDivisionError('a bad batch')"}


def test_an_exception_that_an_inline_handler_has_dealt_with_stays_dealt_with() -> None:
    study, told = Study(), []
    study.trainer.add_event_handler(Events.EXCEPTION_RAISED, lambda engine, e: told.append(e))
    study.trainer.add_event_handler(Events.ITERATION_COMPLETED, ignite.background(lambda: None))
    study.trainer.add_event_handler(Events.ITERATION_COMPLETED(once=4), boom)
    study.trainer.run(study.data, max_epochs=1)
    assert len(told) == 1


def test_a_handler_that_fails_is_logged_and_the_run_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    study = Study()
    study.trainer.add_event_handler(Events.EPOCH_COMPLETED, ignite.background(boom))
    with caplog.at_level(logging.ERROR, "async_trainer"):
        study.trainer.run(study.data, max_epochs=2)
    assert study.trainer.state.epoch == 2
    assert "boom" in caplog.text


def test_a_checkpoint_that_fails_is_raised_at_the_end_of_the_run(tmp_path: Path) -> None:
    study = Study()
    saver = Checkpoint({"model": study.model}, lambda *_: 1 / 0)
    study.trainer.add_event_handler(Events.EPOCH_COMPLETED, ignite.background(saver))
    with pytest.raises(LaneError, match="division by zero"):
        study.trainer.run(study.data, max_epochs=2)
    assert study.trainer.state.epoch == 2


def test_what_is_dropped_ends_its_threads() -> None:
    study = Study()
    behind = ignite.background(lambda engine: engine.state.iteration)
    study.trainer.add_event_handler(Events.ITERATION_COMPLETED, behind)
    study.trainer.run(study.data, max_epochs=1)
    handler = weakref.ref(behind.handler)
    del study, behind
    gc.collect()
    assert handler() is None


def test_optimizers_steps_wait_for_copies_that_are_under_way() -> None:
    torch.manual_seed(0)
    model = torch.nn.Linear(400, 400)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def step(engine: Engine, batch: Any) -> float:
        loss = model(torch.ones(1, 400)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        live.append(model.weight.sum().item())
        return loss.item()

    seen: list[float] = []
    live: list[float] = []
    trainer = Engine(step)

    def look(engine: Engine, kept: dict[str, Any]) -> None:
        seen.append(kept["model"].weight.sum().item())

    behind = ignite.background(look)
    trainer.add_event_handler(Events.ITERATION_COMPLETED, behind, {"model": model, "optimizer": optimizer})
    trainer.run(range(20), max_epochs=1)
    assert seen == live
    assert OptimizerParamsHandler(optimizer).optimizer is optimizer
    assert [fence.guards(optimizer) for fence in behind.handler._store._fences] == [True]


@pytest.mark.slow
def test_the_code_of_the_page_runs_and_prints_what_the_page_says(tmp_path: Path) -> None:
    run_page("adapters-ignite", "ignite", tmp_path)
