"""With Accelerate: trackers log the same in the background; a plain loop's callbacks see what Accelerate prepares."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("accelerate")

import torch
from accelerate import Accelerator
from accelerate.tracking import GeneralTracker, TensorBoardTracker
from torch.utils.data import DataLoader, TensorDataset

from async_trainer import CallbacksHandler
from async_trainer import background as in_background
from async_trainer.adapters import accelerate
from async_trainer.errors import ConfigurationError, LaneError
from tests.adapters.sinks import mlflow_database, of_mlflow
from tests.same import same

__all__ = ["mlflow_database"]  # a fixture

PATIENCE = 60.0  # s
WIDTH = 200  # a weight of more than 64 KiB


class Lines(GeneralTracker):
    """Writes a line for each call."""

    name = "lines"
    requires_logging_directory = False

    def __init__(self, path: Path, go: threading.Event | None = None) -> None:
        super().__init__()
        self.path = path
        self.go = go
        self.note = 7

    def start(self) -> None:
        self.file = self.path.open("a")

    @property
    def tracker(self) -> Any:
        return self.file

    def store_init_configuration(self, values: dict[str, Any]) -> None:
        self._line(config=values)

    def log(self, values: dict[str, Any], step: int | None = None, **kwargs: Any) -> None:
        assert self.go is None or self.go.wait(PATIENCE)
        self._line(step=step, **{name: float(value) for name, value in values.items()}, **kwargs)

    def log_text(self, text: str) -> None:
        self._line(text=text)

    def finish(self) -> None:
        self._line(finished=True)
        self.file.close()

    def _line(self, **values: Any) -> None:
        print(json.dumps(values), file=self.file)


class Fails(Lines):
    def log(self, values: dict[str, Any], step: int | None = None, **kwargs: Any) -> None:
        raise OSError("no network")


class Loop:
    """A loop as Accelerate's users write it."""

    def __init__(self, log_with: Any = (), folder: Path | None = None) -> None:
        self.accelerator = Accelerator(cpu=True, log_with=list(log_with) or None, project_dir=folder)
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Linear(WIDTH, WIDTH), torch.nn.BatchNorm1d(WIDTH))
        optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
        scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 2)
        data = DataLoader(TensorDataset(torch.randn(64, WIDTH)), batch_size=8)
        self.model, self.optimizer, self.scheduler, self.data = self.accelerator.prepare(
            model, optimizer, scheduler, data
        )
        self.loss = torch.zeros(())

    def run(self, handler: CallbacksHandler | None = None, steps: range = range(8), *, bare: bool = False) -> None:
        """``bare``: the events bring torch's own optimizer."""
        handler = handler or CallbacksHandler()
        optimizer = self.optimizer.optimizer if bare else self.optimizer
        handler.call_event("on_train_start", model=self.model, optimizers=optimizer, schedulers=self.scheduler)
        batches = list(self.data)
        for step in steps:
            loss = self.model(batches[step][0]).square().mean()
            self.accelerator.backward(loss)
            self.optimizer.step()
            self.scheduler.step()
            self.optimizer.zero_grad()
            self.loss = loss.detach().clone()
            self.accelerator.log({"loss": self.loss}, step=step)
            self.loss.zero_()  # the tracker has its own
            handler.call_event("on_batch_end", step=step, model=self.model)


# ------------------------------------------------------------------------------------------------------- trackers


def test_a_run_gives_the_same_lines(tmp_path: Path) -> None:
    for name in "ab":
        tracker: Any = Lines(tmp_path / name)
        loop = Loop([accelerate.background(tracker) if name == "b" else tracker])
        loop.accelerator.init_trackers("run", config={"lr": 0.1})
        loop.run()
        loop.accelerator.get_tracker("lines").log_text("done")
        loop.accelerator.get_tracker("lines", unwrap=True).write("by hand\n")
        loop.accelerator.end_training()
    a, b = ((tmp_path / name).read_text() for name in "ab")
    assert a == b
    assert len(a.splitlines()) == 12
    assert a.splitlines()[-3:] == ['{"text": "done"}', "by hand", '{"finished": true}']


class Breaks:
    """Saves after the fourth step, and fails in the sixth, with all that was logged still to be written."""

    def __init__(self, loop: Loop, folder: Path, go: threading.Event) -> None:
        self.loop, self.folder, self.go = loop, folder, go

    def on_batch_end(self, *, step: int) -> None:
        if step == 3:
            self.loop.accelerator.save_state(str(self.folder))
        if step == 5:
            self.go.set()
            raise ZeroDivisionError


def test_a_run_that_breaks_and_is_resumed_gives_the_same_lines(tmp_path: Path) -> None:
    weights = []
    for name in "ab":
        path, state = tmp_path / name, tmp_path / f"{name}-state"
        go = threading.Event()
        trackers = [Lines(path, go if name == "b" else None), Lines(path)]
        wrapped: list[Any] = [accelerate.background(one) if name == "b" else one for one in trackers]
        broken, again = Loop(wrapped[:1]), Loop(wrapped[1:])
        broken.accelerator.init_trackers("run", config={"lr": 0.1})
        try:
            with pytest.raises(ZeroDivisionError):
                broken.run(CallbacksHandler([Breaks(broken, state, go)]))
        finally:
            broken.accelerator.end_training()
        again.accelerator.init_trackers("run")
        again.accelerator.load_state(str(state))
        again.run(steps=range(4, 8))
        again.accelerator.end_training()
        weights.append(again.model.state_dict())
    a, b = ((tmp_path / name).read_text() for name in "ab")
    assert a == b
    assert [json.loads(line).get("step") for line in a.splitlines()] == [None, 0, 1, 2, 3, 4, 5, None, 4, 5, 6, 7, None]
    assert a.splitlines()[5:7] == a.splitlines()[8:10]  # the steps that were done once more
    assert same(weights[0], weights[1])


def test_accelerates_own_tensorboard_tracker_writes_the_same(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    read = []
    for name in "ab":
        loop = Loop(["tensorboard"], tmp_path / name)
        loop.accelerator.init_trackers("run")
        if name == "b":
            accelerate.offload(loop.accelerator)
        assert isinstance(loop.accelerator.get_tracker("tensorboard"), TensorBoardTracker)
        for step in range(20):
            loop.accelerator.log({"loss": 1 / (step + 1), "text": "x"}, step=step)
        loop.accelerator.get_tracker("tensorboard", unwrap=True).add_scalar("own", torch.tensor(2.0), 3)
        loop.accelerator.end_training()
        board = EventAccumulator(str(tmp_path / name / "run")).Reload()
        read.append({tag: [(e.step, e.value) for e in board.Scalars(tag)] for tag in ("loss", "own")})
    assert read[0] == read[1]
    assert (len(read[0]["loss"]), read[0]["own"]) == (20, [(3, 2.0)])


@pytest.mark.slow
def test_accelerates_own_mlflow_tracker_logs_to_the_run_that_it_has_started(
    tmp_path: Path, mlflow_database: str
) -> None:
    import mlflow

    mlflow.set_tracking_uri(mlflow_database)
    for name in "ab":
        loop = Loop(["mlflow"], tmp_path / name)
        loop.accelerator.init_trackers(name, config={"lr": 0.1})
        if name == "b":
            accelerate.offload(loop.accelerator)
        for step in range(5):
            loop.accelerator.log({"loss": 1 / (step + 1)}, step=step)
        loop.accelerator.end_training()
        assert mlflow.active_run() is None  # here too, not on the lane alone
    a, b = of_mlflow(mlflow_database, "a"), of_mlflow(mlflow_database, "b")
    ((status, params, history, _),) = a  # one run
    assert (status, params, len(history["loss"])) == ("FINISHED", {"lr": "0.1"}, 5)
    assert a == b


def test_an_mlflow_tracker_is_refused_in_a_process() -> None:
    pytest.importorskip("mlflow")
    from accelerate.tracking import MLflowTracker

    with pytest.raises(ConfigurationError, match="use placement='thread'"):
        accelerate.background(MLflowTracker("x"), placement="process")


def test_a_trackers_own_values_are_read_behind_what_it_has_logged(tmp_path: Path) -> None:
    tracker: Any = Lines(tmp_path / "lines")
    moved: Any = accelerate.background(tracker)
    moved.start()
    tracker.count = 0

    def count(text: str) -> None:
        tracker.count += 1

    tracker.log_text = count
    for _ in range(100):
        moved.log_text("x")
    assert moved.count == 100
    moved.finish()


def test_what_is_logged_is_captured_when_it_is_logged(tmp_path: Path) -> None:
    go = threading.Event()
    loop = Loop([accelerate.background(Lines(tmp_path / "lines", go))])
    loop.accelerator.init_trackers("run")
    losses = []
    for step in range(5):
        loss = torch.rand(())
        losses.append(loss.item())
        loop.accelerator.log({"loss": loss}, step=step)
        loss.zero_()
    go.set()
    loop.accelerator.end_training()
    lines = [json.loads(line) for line in (tmp_path / "lines").read_text().splitlines()]
    assert [line["loss"] for line in lines[:-1]] == losses


def test_a_tracker_is_taken_for_what_it_was(tmp_path: Path) -> None:
    tracker = accelerate.background(Lines(tmp_path / "lines"))
    assert isinstance(tracker, Lines)
    assert issubclass(type(tracker), GeneralTracker)
    assert (tracker.name, tracker.main_process_only, tracker.note) == ("lines", True, 7)
    assert repr(tracker) == "<Lines, in the background>"


def test_a_tracker_that_fails_does_not_stop_the_loop(tmp_path: Path) -> None:
    fails = Fails(tmp_path / "x")
    loop = Loop([fails])
    loop.accelerator.init_trackers("run")
    handler = accelerate.offload(loop.accelerator, "lines", on_error="raise_at_end")
    loop.run()
    with pytest.raises(LaneError, match="no network"):
        loop.accelerator.end_training()
    assert (tmp_path / "x").read_text() == '{"finished": true}\n'
    assert handler.flush().failed == 8


def test_mistakes_are_told(tmp_path: Path) -> None:
    loop = Loop([tracker := Lines(tmp_path / "x")])
    with pytest.raises(ConfigurationError, match=r"call accelerator.init_trackers\(...\) first"):
        accelerate.offload(loop.accelerator)
    loop.accelerator.init_trackers("run")
    with pytest.raises(ConfigurationError, match="no tracker line; did you mean 'lines'"):
        accelerate.offload(loop.accelerator, "line")
    with pytest.raises(ConfigurationError, match="takes Accelerate's trackers, not Event"):
        accelerate.background(threading.Event())
    with pytest.raises(ConfigurationError, match=r"pass an instance, Lines\(...\)"):
        accelerate.background(Lines)
    accelerate.offload(loop.accelerator)
    with pytest.raises(ConfigurationError, match="in the background already"):
        accelerate.offload(loop.accelerator)
    assert loop.accelerator.trackers[0] is not tracker
    loop.accelerator.end_training()


# ------------------------------------------------------------------------------------------------------- plain loops


class Late:
    """Looks at what it got when the loop is over."""

    def __init__(self, go: threading.Event) -> None:
        self.go = go
        self.seen: list[Any] = []

    def on_batch_end(self, *, step: int, model: Any, optimizers: Any, schedulers: Any) -> None:
        assert self.go.wait(PATIENCE)
        self.seen.append((step, *looked_at(model, optimizers, schedulers)))

    def state_dict(self) -> dict[str, Any]:
        return {"steps": [one[0] for one in self.seen]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.seen = [(step,) for step in state["steps"]]


class Live(Late):
    pass


def looked_at(model: Any, optimizer: Any, scheduler: Any) -> list[Any]:
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    moments = [state["exp_avg"].clone() for state in optimizer.state_dict()["state"].values()]
    return [weights, moments, optimizer.param_groups[0]["lr"], scheduler.get_last_lr()]


@pytest.mark.parametrize("bare", [False, True])
def test_a_hook_that_is_late_sees_what_accelerate_prepares_as_of_its_event(bare: bool) -> None:
    go, at_once = threading.Event(), threading.Event()
    at_once.set()
    late, live = Late(go), Live(at_once)
    with CallbacksHandler([live, in_background(late)]) as handler:
        Loop().run(handler, bare=bare)
        assert late.seen == []
        assert any(route is not None and route.overlaps for route in handler._routes.values())
        go.set()
    assert len(late.seen) == 8
    assert same(late.seen, live.seen)
    assert not same(live.seen[0][1:], live.seen[1][1:])


@pytest.mark.parametrize("wrapped", [False, True])
def test_a_callback_that_holds_what_accelerate_prepares_is_refused(wrapped: bool) -> None:
    class Holds:
        def on_batch_end(self, *, step: int) -> None: ...

    loop, holds = Loop(), Holds()
    vars(holds)["kept"] = loop.optimizer if wrapped else loop.optimizer.optimizer
    handler = CallbacksHandler([in_background(holds)])
    with pytest.raises(ConfigurationError, match=r"holds the run's own weights or optimizer as self\.kept"):
        handler.call_event("on_train_start", optimizers=loop.optimizer)
    handler.close()


def test_a_loop_that_breaks_and_is_restored_goes_on_the_same(tmp_path: Path) -> None:
    whole = Loop()
    whole.run()
    go = threading.Event()
    go.set()
    broken = Loop()
    with CallbacksHandler([in_background(Late(go))]) as handler:
        broken.run(handler, range(5))
        objects = {"model": broken.model, "optimizer": broken.optimizer, "scheduler": broken.scheduler}
        handler.checkpoint(tmp_path, step=5, **objects).wait(PATIENCE)
    again = Loop()
    late = Late(go)
    with CallbacksHandler([in_background(late)]) as handler:
        objects = {"model": again.model, "optimizer": again.optimizer, "scheduler": again.scheduler}
        assert handler.restore(tmp_path, **objects) == {"step": 5}
        again.run(handler, range(5, 8))
    assert [one[0] for one in late.seen] == list(range(8))
    assert same(looked_at(*objects.values()), looked_at(whole.model, whole.optimizer, whole.scheduler))
