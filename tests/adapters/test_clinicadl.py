"""The ClinicaDL adapter, inside the real ClinicaDL: see .ci/clinicadl for the environment that it needs."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any, ClassVar

import pytest

pytest.importorskip("clinicadl")

from clinicadl import callbacks as theirs
from clinicadl.callbacks import implemented
from clinicadl.train import Trainer

from async_trainer import background, inline
from async_trainer.adapters import clinicadl
from async_trainer.errors import ConfigurationError, LaneError
from tests.adapters import clinicadl_runs as runs
from tests.adapters.pages import run_page

pytestmark = pytest.mark.filterwarnings("ignore")  # ClinicaDL's and MONAI's own
LIMIT = 60.0  # s

HANDLERS = {
    "inline": lambda *own: theirs.CallbacksHandler([*runs.usual(), *own]),
    "behind": lambda *own: clinicadl.CallbacksHandler([*runs.usual(), *map(behind, own)]),
}


def behind(callback: Any) -> Any:
    return callback if isinstance(callback, runs.Stops) else background(callback)


def test_a_run_gives_the_same_files_inline_and_in_the_background(tmp_path: Path) -> None:
    for name, make in HANDLERS.items():
        trainer = runs.make(tmp_path / name, make(runs.Norms()))
        runs.train(trainer)
        runs.test(trainer)
    inline_files, files = runs.files(tmp_path / "inline"), runs.files(tmp_path / "behind")
    assert len(files) > 25
    assert [name for name, one in inline_files.items() if not runs.same(one, files.get(name))] == []
    assert files.keys() == inline_files.keys()
    assert len(files["norms.txt"].splitlines()) == 16
    stats = trainer.callbacks.lanes.stats()
    assert {name: lane.delivered for name, lane in stats.lanes.items()} == {"clinicadl": 32, "norms": 17}


class SlowNorms(runs.Norms):
    """As if its disk were slow: its state is behind when the training checkpoint comes."""

    def on_optimization_step_end(self, *, model: Any, **kwargs: Any) -> None:
        time.sleep(0.01)
        super().on_optimization_step_end(model=model)

    def on_epoch_end(self, **kwargs: Any) -> None:  # right before the training checkpoint reads the state
        time.sleep(0.2)
        self.norms.append(0.0)


def test_a_run_that_was_broken_off_is_resumed_from_the_same_files(tmp_path: Path) -> None:
    for name, make in HANDLERS.items():
        trainer = runs.make(tmp_path / name, make(SlowNorms(), runs.Stops(epoch=3)))
        with pytest.raises(ZeroDivisionError):
            runs.train(trainer)
    broken, expected = (runs.files(tmp_path / name) for name in ("behind", "inline"))
    states = [name for name in broken if "/tmp/" in name]
    assert any(name.endswith("callbacks/model_checkpoint_callback.pt") for name in states)
    (norms,) = (broken[name] for name in states if name.endswith("callbacks/slow_norms.pt"))
    assert len(norms["norms"]) == 8 + 2
    assert runs.same({name: broken[name] for name in states}, {name: expected[name] for name in states})
    for name, make in HANDLERS.items():
        callbacks = make(SlowNorms(), runs.Stops(epoch=100))  # ClinicaDL wants the same callbacks
        trainer = Trainer.from_maps(tmp_path / name, model=runs.linear(), callbacks=callbacks)
        trainer.resume(0, split=runs.split())
    files, expected = (runs.files(tmp_path / name) for name in ("behind", "inline"))
    assert [name for name, one in expected.items() if not runs.same(one, files.get(name))] == []
    assert files.keys() == expected.keys()
    assert len(files["norms.txt"].splitlines()) == 16 + 4


def test_the_loop_goes_on_and_hooks_see_what_was(tmp_path: Path) -> None:
    class Held(theirs.Callback):
        def __init__(self) -> None:
            self.open = threading.Event()
            self.seen: list[Any] = []

        def on_backward_step_start(self, *, state: Any, loss: Any, model: Any, **kwargs: Any) -> None:
            assert self.open.wait(LIMIT)
            weight = model.network.layer.weight.sum().item()
            self.seen.append((state.current_epoch, state.current_train_batch, loss.item(), weight))

    class Opens(theirs.Callback):
        def __init__(self) -> None:
            self.live: list[Any] = []

        def on_backward_step_start(self, *, state: Any, loss: Any, model: Any, **kwargs: Any) -> None:
            weight = model.network.layer.weight.sum().item()
            self.live.append((state.current_epoch, state.current_train_batch, loss.item(), weight))
            if len(self.live) == 7:
                held.open.set()

    held, opens = Held(), Opens()
    callbacks = clinicadl.CallbacksHandler([background(held), opens])
    runs.train(runs.make(tmp_path / "maps", callbacks, epochs=2))
    assert held.seen == opens.live
    assert len({one[3] for one in held.seen}) == 8


def test_setting_the_state_is_refused_and_the_training_goes_on(tmp_path: Path) -> None:
    class Steers(theirs.Callback):
        def on_epoch_end(self, *, state: Any, **kwargs: Any) -> None:
            setattr(state, "should_stop", True)  # noqa: B010  # by a way that can't be seen before it runs

    callbacks = clinicadl.CallbacksHandler([background(Steers())])
    trainer = runs.make(tmp_path / "maps", callbacks, epochs=2)
    runs.train(trainer)
    assert trainer.state.current_epoch == 2
    assert callbacks.lanes.stats().lanes["steers"].failed == 2
    assert "state.should_stop can't be set in the background" in str(callbacks.lanes.stats().errors[0])


def test_types_ranks_and_json_are_clinicadls(tmp_path: Path) -> None:
    own, stop = runs.Norms(), theirs.EarlyStoppingCallback(metric="loss")
    callbacks = clinicadl.CallbacksHandler([stop, background(own), theirs.ModelCheckpointCallback(metric="mae")])
    plain = theirs.CallbacksHandler([stop, own, theirs.ModelCheckpointCallback(metric="mae")])
    assert isinstance(callbacks, theirs.CallbacksHandler)
    for one in ("callbacks", "all_callbacks", "_ordered", "_first_and_last"):
        assert list(map(type, getattr(callbacks, one))) == list(map(type, getattr(plain, one)))
    assert own in callbacks.callbacks
    for name, one in (("behind", callbacks), ("plain", plain)):
        one.config.callbacks.remove(own)  # ClinicaDL writes an address for it
        one.to_json(tmp_path / f"{name}.json")
    assert (tmp_path / "behind.json").read_text() == (tmp_path / "plain.json").read_text()
    read = clinicadl.CallbacksHandler.from_json(tmp_path / "behind.json")
    assert [type(one) for one in read.config.callbacks] == [type(stop), theirs.ModelCheckpointCallback]


def test_which_callbacks_run_where() -> None:
    def lanes(*callbacks: Any) -> list[str]:
        return [type(one.callback).__name__ for one in clinicadl.CallbacksHandler(callbacks).lanes.attached]

    class Asks(theirs.Callback):
        background: ClassVar[Any] = {"queue_size": 10}

        def on_epoch_end(self, **kwargs: Any) -> None: ...

    usual = ["ModelCheckpointCallback", "TrainingLossCallback", "MetricsSaverCallback"]
    assert lanes() == usual
    assert lanes(runs.Norms()) == usual
    assert lanes(Asks()) == ["Asks", *usual]
    assert lanes(inline(theirs.ModelCheckpointCallback())) == usual[1:]
    late = clinicadl.CallbacksHandler()
    late.add_callbacks([background(runs.Norms())])
    assert [type(one.callback).__name__ for one in late.lanes.attached] == ["Norms", *usual]


@pytest.mark.parametrize(
    "make",
    [
        lambda: theirs.EarlyStoppingCallback(metric="loss"),
        theirs.TrainingCheckpointCallback,
        theirs.LoggerCallback,
        theirs.MonitorCallback,
    ],
)
def test_callbacks_that_steer_are_refused(make: Any) -> None:
    with pytest.raises(ConfigurationError, match="pass it as it is"):
        clinicadl.CallbacksHandler([background(make())])


class SetsState(theirs.Callback):
    def on_epoch_end(self, *, state: Any, **kwargs: Any) -> None:
        state.should_stop = True


class Asks(SetsState):
    background: ClassVar[Any] = {}


class StepsOptimizer(theirs.Callback):
    def on_optimization_step_end(self, *, optimizers: Any, **kwargs: Any) -> None:
        for optimizer in optimizers.values():
            optimizer.step()


@pytest.mark.parametrize(
    ("callback", "what"),
    [
        (background(SetsState()), r"SetsState steers the training \(it sets state.should_stop\)"),
        (Asks(), r"Asks steers the training \(it sets state.should_stop\)"),
        (background(StepsOptimizer()), r"StepsOptimizer steers the training \(it calls step\(\) of optimizer\)"),
    ],
)
def test_callbacks_of_yours_that_steer_are_refused_by_their_code(callback: Any, what: str) -> None:
    with pytest.raises(ConfigurationError, match=what):
        clinicadl.CallbacksHandler([callback])


def test_a_process_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="leave it out; the hook runs on a thread"):
        clinicadl.CallbacksHandler([background(runs.Norms(), placement="process")])


def test_a_save_that_fails_is_raised_at_the_end_and_what_resumes_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = runs.make(tmp_path / "maps", HANDLERS["behind"](), epochs=2)
    monkeypatch.setattr(implemented.model_checkpoint.ModelCheckpointCallback, "_save_files", boom)
    with pytest.raises(LaneError, match="no room"):
        runs.train(trainer)
    assert trainer.state.current_epoch == 2
    assert any("/tmp/" in name for name in runs.files(tmp_path / "maps"))


def boom(*args: Any) -> None:
    raise OSError("no room")


def test_after_an_exception_what_was_fired_is_handled(tmp_path: Path) -> None:
    norms = SlowNorms()
    trainer = runs.make(tmp_path / "maps", HANDLERS["behind"](norms, runs.Stops(epoch=2)))
    with pytest.raises(ZeroDivisionError):
        runs.train(trainer)
    assert len(norms.norms) == 4 + 1


def test_synchronous_gives_the_same_files(tmp_path: Path) -> None:
    for name, synchronous in (("one", True), ("other", False)):
        callbacks = clinicadl.CallbacksHandler([*runs.usual(), background(runs.Norms())], synchronous=synchronous)
        runs.train(runs.make(tmp_path / name, callbacks, epochs=2))
    assert runs.same(runs.files(tmp_path / "one"), runs.files(tmp_path / "other"))


def test_the_code_of_the_page_runs_and_prints_what_the_page_says(tmp_path: Path) -> None:
    run_page("adapters-clinicadl", "ClinicaDL", tmp_path)
