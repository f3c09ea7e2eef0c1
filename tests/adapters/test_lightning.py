"""In Lightning's Trainer: the same files and states as inline, as of the event; what steers is refused."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("lightning")

import lightning as L
import torch
from lightning.pytorch import callbacks as theirs
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger
from lightning.pytorch.plugins.io import AsyncCheckpointIO, CheckpointIO, TorchCheckpointIO

from async_trainer.adapters import lightning
from async_trainer.errors import ConfigurationError, LaneError, StandInError
from tests.adapters.lightning_runs import Net, Rows, contents, data, make_trainer, train
from tests.same import same

PATIENCE = 60.0  # s
pytestmark = pytest.mark.filterwarnings("ignore")  # Lightning's own, of small loaders and the like


def inline(one: Any) -> Any:
    return one


def without_paths(found: dict[str, Any], folder: Path) -> dict[str, Any]:
    """With the folder's own path out of what ModelCheckpoint remembers."""

    def cleaned(value: Any) -> Any:
        if isinstance(value, dict):
            return {cleaned(key): cleaned(part) for key, part in value.items()}
        return value.replace(str(folder), "") if isinstance(value, str) else value

    return {name: cleaned(value) for name, value in found.items()}


# ------------------------------------------------------------------------------------- the same as inline


def test_a_run_gives_the_same_files_states_and_checkpoints(tmp_path: Path) -> None:
    train(tmp_path / "a", inline, io=[TorchCheckpointIO()])
    train(tmp_path / "b", lightning.background, io=[TorchCheckpointIO()])
    a = without_paths(contents(tmp_path / "a"), tmp_path / "a")
    b = without_paths(contents(tmp_path / "b"), tmp_path / "b")
    assert list(a) == list(b)
    assert "checkpoints/last.ckpt" in a
    assert a["logs/version_0/metrics.csv"].count("\n") > 8
    assert len(a["rows.txt"].splitlines()) > 25
    assert same(a, b)


def test_a_run_that_breaks_and_is_resumed_gives_the_same(tmp_path: Path) -> None:
    found = []
    for name, wrap in (("a", inline), ("b", lightning.background)):
        folder = tmp_path / name
        with pytest.raises(OSError, match="the machine breaks"):
            train(folder, wrap, breaks_at=6)
        broken = (folder / "rows.txt").read_text()
        assert broken.splitlines()[-1] == "exception the machine breaks"
        trainer = train(folder, wrap, ckpt_path=folder / "checkpoints" / "last.ckpt")
        assert trainer.global_step == 8
        found.append((broken, without_paths(contents(folder), folder)))
    assert same(found[0], found[1])


def test_a_checkpoint_of_an_inline_run_resumes_in_the_background(tmp_path: Path) -> None:
    train(tmp_path, inline, max_epochs=1)
    before = (tmp_path / "rows.txt").read_text().splitlines()
    train(tmp_path, lightning.background, ckpt_path=tmp_path / "checkpoints" / "last.ckpt")
    after = (tmp_path / "rows.txt").read_text().splitlines()
    assert after[: len(before) - 1] == before[:-1]  # all but the teardown, which came after the checkpoint
    assert any(row.startswith("1 8 3 ") for row in after)


def test_a_trainer_goes_on_with_the_same_callbacks_and_logger(tmp_path: Path) -> None:
    for name, wrap in (("a", inline), ("b", lightning.background)):
        trainer = train(tmp_path / name, wrap, max_epochs=1)
        trainer.test(Net(), data(), verbose=False)
        trainer.validate(Net(), data(), verbose=False)
    rows = [(tmp_path / name / "rows.txt").read_text() for name in "ab"]
    assert "teardown TrainerFn.TESTING" in rows[0]
    assert rows[0] == rows[1]
    a, b = ((tmp_path / name / "logs" / "version_0" / "metrics.csv").read_text() for name in "ab")
    assert a == b


# ------------------------------------------------------------------------------------- as of the event


class Late(L.Callback):
    """Looks at what it got when the training is over, not before."""

    def __init__(self) -> None:
        self.go = threading.Event()
        self.seen: list[Any] = []

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        assert self.go.wait(PATIENCE)
        weights = {name: value.clone() for name, value in pl_module.state_dict().items()}
        self.seen.append((trainer.global_step, weights, pl_module.global_step, float(trainer.callback_metrics["loss"])))


class Live(L.Callback):
    """The same, inline, at the event; lets the other one go when the last batch is done."""

    def __init__(self, late: Late) -> None:
        self.late = late
        self.seen: list[Any] = []

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        weights = {name: value.clone() for name, value in pl_module.state_dict().items()}
        self.seen.append((trainer.global_step, weights, pl_module.global_step, float(trainer.callback_metrics["loss"])))

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        self.late.go.set()


def test_a_hook_that_is_late_sees_the_module_and_the_trainer_as_of_its_event(tmp_path: Path) -> None:
    late = Late()
    live = Live(late)
    trainer = make_trainer(tmp_path, [lightning.background(late), live], enable_checkpointing=False)
    trainer.fit(Net(), data())
    assert len(late.seen) == 8
    assert same(late.seen, live.seen)
    assert not same(live.seen[0][1], live.seen[1][1])


def test_a_hook_that_hangs_does_not_keep_a_broken_run_from_ending(tmp_path: Path) -> None:
    handler = lightning.make_handler(shutdown_timeout=0.1)
    late = Late()
    callback = lightning.background(late, handler=handler)
    try:
        with pytest.raises(OSError, match="the machine breaks"):
            make_trainer(tmp_path, [callback], enable_checkpointing=False).fit(Net(breaks_at=2), data())
        assert late.seen == []
    finally:
        late.go.set()
    handler.flush()
    assert len(late.seen) == 2


class Opens(L.Callback):
    """Lets a late callback go when Lightning asks for states: it is asked first."""

    def __init__(self, late: Late) -> None:
        self.late = late

    def state_dict(self) -> dict[str, Any]:
        self.late.go.set()
        return {}


class Counts(Late):
    def state_dict(self) -> dict[str, Any]:
        return {"seen": len(self.seen)}


def test_lightning_saves_behind_a_barrier(tmp_path: Path) -> None:
    counts = Counts()
    trainer = make_trainer(tmp_path, [Opens(counts), lightning.background(counts)], max_epochs=1)
    trainer.fit(Net(), data())
    (path,) = tmp_path.rglob("*.ckpt")
    saved = torch.load(path, weights_only=True)
    assert saved["callbacks"] == saved["callbacks"] | {"Counts": {"seen": 4}}


class Adds(L.Callback):
    """Writes into the checkpoint itself."""

    steps = 0

    def on_train_batch_end(self, *live: Any) -> None:
        self.steps += 1

    def on_save_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        checkpoint["steps"] = self.steps, trainer.global_step

    def on_load_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        self.steps = checkpoint["steps"][0]


def test_what_a_callback_adds_to_a_checkpoint_is_behind_what_it_has_handled(tmp_path: Path) -> None:
    make_trainer(tmp_path, [lightning.background(Adds())], max_epochs=1).fit(Net(), data())
    (path,) = tmp_path.rglob("*.ckpt")
    assert torch.load(path, weights_only=True)["steps"] == (4, 4)
    adds = Adds()
    trainer = make_trainer(tmp_path, [lightning.background(adds)])
    trainer.fit(Net(), data(), ckpt_path=path, weights_only=True)
    assert adds.steps == 8
    with pytest.raises(ConfigurationError, match=r"Adds\.on_save_checkpoint needs the live trainer"):
        lightning.background(Adds(), placement="process")


def test_a_lambda_callback_works(tmp_path: Path) -> None:
    epochs: list[int] = []
    callback = theirs.LambdaCallback(on_train_epoch_end=lambda trainer, module: epochs.append(trainer.current_epoch))
    make_trainer(tmp_path, [lightning.background(callback)], enable_checkpointing=False).fit(Net(), data())
    assert epochs == [0, 1]


class Writes(L.Callback):
    """By a way that can't be seen before it runs."""

    def __init__(self, write: Any) -> None:
        self.write = write

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.write(trainer, self)


WRITES = {
    "steps are counted": (lambda trainer, _: setattr(trainer.fit_loop, "x", 1), "fit_loop is not part of what"),
    "stops": (lambda trainer, _: setattr(trainer, "should_stop", True), "can't change the training"),
    "metrics": (lambda trainer, _: trainer.callback_metrics.update(x=1), "can't change the training"),
    "logs": (lambda _, callback: callback.log("x", 1), "a background hook can't"),
    "saves": (lambda trainer, _: trainer.save_checkpoint("x"), "save_checkpoint is not part of what"),
}


@pytest.mark.parametrize("how", WRITES)
def test_a_hook_that_turns_out_to_steer_fails_and_the_training_goes_on(tmp_path: Path, how: str) -> None:
    write, message = WRITES[how]
    callback: Any = lightning.background(Writes(write))
    trainer = make_trainer(tmp_path, [callback], max_epochs=1, enable_checkpointing=False)
    trainer.fit(Net(), data())
    assert trainer.global_step == 4
    report = callback.handler.flush()
    assert report.failed == 4
    assert message in str(report.errors[0])


def test_what_no_hook_reads_is_not_captured(tmp_path: Path) -> None:
    class Reads(L.Callback):
        def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
            print(trainer.global_step)

    callback: Any = lightning.background(Reads())
    make_trainer(tmp_path, [callback], max_epochs=1, enable_checkpointing=False).fit(Net(), data())
    explained = str(callback.handler.explain())
    assert "trainer: view of the trainer" in explained
    assert "pl_module" not in explained
    assert "batch:" not in explained


# ------------------------------------------------------------------------------------- types, and refusals


@pytest.mark.parametrize(
    ("make", "types"),
    [
        (lambda folder: Rows(folder / "x"), (L.Callback, Rows)),
        (CSVLogger, (Logger, CSVLogger)),
        (TensorBoardLogger, (Logger, TensorBoardLogger)),
        (lambda _: TorchCheckpointIO(), (CheckpointIO, TorchCheckpointIO)),
    ],
)
def test_what_comes_back_is_of_lightnings_type(tmp_path: Path, make: Any, types: tuple[type, ...]) -> None:
    made = lightning.background(make(tmp_path))
    assert isinstance(made, types)
    assert all(isinstance(made, one) for one in types)
    assert issubclass(type(made), types[0])


class Stops(L.Callback):
    def on_train_batch_end(self, trainer: Any, *rest: Any) -> None:
        trainer.should_stop = True


class StopsBelow(L.Callback):
    def on_train_end(self, t: Any, m: Any) -> None:
        self.stop(t)

    def stop(self, t: Any) -> None:
        t.should_stop = True


class SetsModule(L.Callback):
    def on_train_start(self, trainer: Any, module: Any) -> None:
        module.temperature = 0.5


class Logs(L.Callback):
    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        self.log("x", 1)


class LogsByModule(L.Callback):
    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        pl_module.log_dict({"x": 1})


class Steps(L.Callback):
    def on_train_batch_end(self, trainer: Any, *rest: Any) -> None:
        for one in trainer.optimizers:
            one.step()


class Own(theirs.EarlyStopping):
    pass


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (lambda: theirs.EarlyStopping("val"), "EarlyStopping writes to the live trainer"),
        (lambda: Own("val"), "Own derives from EarlyStopping"),
        (theirs.ModelCheckpoint, "derives from Checkpoint"),
        (theirs.LearningRateMonitor, "steers"),
        (lambda: theirs.StochasticWeightAveraging(0.1), "steers"),
        (theirs.TQDMProgressBar, "looks into the live trainer"),
        (Stops, "Stops sets trainer.should_stop in on_train_batch_end"),
        (StopsBelow, "StopsBelow sets t.should_stop"),
        (SetsModule, "SetsModule sets module.temperature in on_train_start"),
        (Logs, r"Logs calls self.log\(\)"),
        (Steps, r"Steps calls step\(\) of one"),
        (LogsByModule, r"LogsByModule calls pl_module.log_dict\(\)"),
    ],
)
def test_what_steers_is_refused_and_the_message_says_what_to_do(make: Any, why: str) -> None:
    with pytest.raises(ConfigurationError, match=why) as caught:
        lightning.background(make())
    assert "without lightning.background(...)" in str(caught.value)


def test_what_is_not_lightnings_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="not list_iterator"):
        lightning.background(iter([]))
    with pytest.raises(ConfigurationError, match=r"pass an instance, Logs\(\)"):
        lightning.background(Logs)
    with pytest.raises(ConfigurationError, match=r"pass lightning.background\(TorchCheckpointIO\(\)\) in its place"):
        lightning.background(AsyncCheckpointIO())
    once = lightning.background(Late())
    with pytest.raises(ConfigurationError, match="in the background already"):
        lightning.background(once)


def test_two_stateless_callbacks_of_a_class_go_side_by_side(tmp_path: Path) -> None:
    first, second = Late(), Late()
    first.go.set()
    second.go.set()
    wrapped: Any = lightning.background([first, second])
    assert wrapped[0].handler is wrapped[1].handler
    make_trainer(tmp_path, wrapped, max_epochs=1, enable_checkpointing=False).fit(Net(), data())
    assert same(first.seen, second.seen)
    assert len(first.seen) == 4
    assert wrapped[0].handler.stats().captures == 4


# ------------------------------------------------------------------------------------- loggers and checkpoints


def test_calls_of_the_experiment_join_the_loggers_lane(tmp_path: Path) -> None:
    logger: Any = lightning.background(CSVLogger(tmp_path, name=None, version=0))
    logger.log_metrics({"a": 1.0}, step=0)
    value = torch.tensor(2.0)
    logger.experiment.log_metrics({"a": value}, 1)
    value.zero_()
    logger.finalize("success")
    assert (tmp_path / "version_0" / "metrics.csv").read_text().split() == ["a,step", "1.0,0", "2.0,1"]


def test_a_hook_logs_with_a_background_logger_only(tmp_path: Path) -> None:
    class Tells(L.Callback):
        def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
            trainer.logger.log_metrics({"told": 1.0}, step=trainer.global_step)

    for wrap, ok in ((lightning.background, True), (inline, False)):
        callback: Any = lightning.background(Tells())
        folder = tmp_path / str(ok)
        logger = wrap(CSVLogger(folder, name=None, version=0))
        make_trainer(folder, [callback], logger, max_epochs=1, enable_checkpointing=False).fit(Net(), data())
        report = callback.handler.flush()
        assert (report.failed == 0) is ok
        if ok:
            logger.handler.flush()
            logger.save()
            logger.handler.flush()
            assert "told" in (folder / "version_0" / "metrics.csv").read_text()
        else:
            assert "wrap it too" in str(report.errors[0])


def test_a_checkpoint_is_kept_until_the_next_one_is_on_disk(tmp_path: Path) -> None:
    io: Any = lightning.background(TorchCheckpointIO())
    io.save_checkpoint({"step": 1}, tmp_path / "1.ckpt")
    (tmp_path / "2.ckpt").mkdir()  # no file can take its place
    io.save_checkpoint({"step": 2}, tmp_path / "2.ckpt")
    io.remove_checkpoint(tmp_path / "1.ckpt")
    assert io.load_checkpoint(tmp_path / "1.ckpt", weights_only=True) == {"step": 1}
    io.save_checkpoint({"step": 3}, tmp_path / "3.ckpt")
    io.remove_checkpoint(tmp_path / "1.ckpt")
    with pytest.raises(LaneError, match=r"2\.ckpt"):
        io.teardown()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["2.ckpt", "3.ckpt"]


def test_a_checkpoint_is_captured_when_it_is_asked_for(tmp_path: Path) -> None:
    io: Any = lightning.background(TorchCheckpointIO())
    model = torch.nn.Linear(300, 300)
    wanted = model.weight.detach().clone()
    io.save_checkpoint({"state_dict": model.state_dict(), "rows": [1]}, tmp_path / "1.ckpt")
    with torch.no_grad():
        model.weight.zero_()
    saved = io.load_checkpoint(tmp_path / "1.ckpt", weights_only=True)
    assert torch.equal(saved["state_dict"]["weight"], wanted)


class Saves(L.Callback):
    """Calls ``trainer.save_checkpoint`` by hand, and reads the file at once."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.read: list[int] = []

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        trainer.save_checkpoint(self.path)
        self.read.append(torch.load(self.path, weights_only=True)["global_step"])


def test_a_checkpoint_that_is_saved_by_hand_is_there_when_the_call_returns(tmp_path: Path) -> None:
    class Slow(TorchCheckpointIO):
        def save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
            time.sleep(0.2)  # whoever doesn't wait reads too early
            super().save_checkpoint(*args, **kwargs)

    io: Any = lightning.background(Slow())
    saves = Saves(tmp_path / "mine.ckpt")
    trainer = make_trainer(tmp_path, [saves], plugins=[io])
    trainer.fit(Net(), data())
    assert saves.read == [4, 8]
    trainer.save_checkpoint(tmp_path / "end.ckpt", weights_only=True)
    assert (tmp_path / "end.ckpt").stat().st_size > 1000
    with pytest.raises(OSError, match=r"end\.ckpt"):
        trainer.save_checkpoint(tmp_path / "end.ckpt" / "in a file.ckpt")
    with pytest.raises(LaneError, match=r"end\.ckpt"):  # once more: whoever has caught it may not have told of it
        io.handler.close()


def test_lightnings_own_saves_wait_for_nothing(tmp_path: Path) -> None:
    go = threading.Event()

    class Held(TorchCheckpointIO):
        def save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
            assert go.wait(PATIENCE)
            super().save_checkpoint(*args, **kwargs)

    class Opens(L.Callback):
        def on_train_end(self, trainer: Any, pl_module: Any) -> None:
            assert not list(tmp_path.rglob("*.ckpt"))  # two were asked for
            go.set()

    checkpoints = theirs.ModelCheckpoint(tmp_path, every_n_epochs=1, save_top_k=-1, save_on_train_epoch_end=True)
    trainer = make_trainer(tmp_path, [Opens(), checkpoints], plugins=[lightning.background(Held())])
    trainer.fit(Net(), data())
    assert len(list(tmp_path.rglob("*.ckpt"))) == 2


@pytest.mark.parametrize("what", [lambda folder: Rows(folder / "x"), CSVLogger, lambda _: TorchCheckpointIO()])
def test_what_would_pickle_it_is_told_which_strategy_works(tmp_path: Path, what: Any) -> None:
    with pytest.raises(ConfigurationError, match=r"can't be pickled or copied: use strategy='ddp'.*ddp_spawn"):
        pickle.dumps(lightning.background(what(tmp_path)))


FORKS = """
from pathlib import Path
from async_trainer.adapters import lightning
from tests.adapters.lightning_runs import Net, Rows, data, make_trainer

rows = lightning.background(Rows(Path("rows.txt")))
make_trainer(Path("."), [rows], enable_checkpointing=False, max_epochs=1).fit(Net(), data())
make_trainer(Path("."), [rows], enable_checkpointing=False, devices=2, strategy="ddp_fork").fit(Net(), data())
"""


@pytest.mark.slow
def test_a_strategy_that_would_lose_events_ends_and_names_the_one_that_works(tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text(FORKS)
    ended = subprocess.run(
        [sys.executable, "-W", "ignore", "train.py"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=2 * PATIENCE,
    )
    assert ended.returncode != 0
    assert "Rows is in the background of " in ended.stdout
    assert "use strategy='ddp', which starts the script once per rank" in ended.stdout


def test_a_stand_in_of_the_trainer_says_what_to_do_instead(tmp_path: Path) -> None:
    seen: list[str] = []

    class Asks(L.Callback):
        def on_train_end(self, trainer: Any, pl_module: Any) -> None:
            try:
                print(trainer.lightning_module)
            except StandInError as error:
                seen.append(str(error))

    make_trainer(tmp_path, [lightning.background(Asks())], max_epochs=1, enable_checkpointing=False).fit(Net(), data())
    assert "Trainer.lightning_module is not part of what background hooks see" in seen[0]
    assert "pl_module" in seen[0]


def test_the_package_pytorch_lightning_and_fabrics_loggers_work_too(tmp_path: Path) -> None:
    other = pytest.importorskip("pytorch_lightning")
    from lightning.fabric.loggers import CSVLogger as OfFabric

    seen: list[Any] = []

    class Sees(other.Callback):  # type: ignore[misc, name-defined]
        def on_train_batch_end(self, trainer: Any, pl_module: Any, *rest: Any) -> None:
            seen.append((trainer.global_step, isinstance(trainer, other.Trainer), pl_module.weight.shape, len(rest)))

    class Line(other.LightningModule):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.ones(8))

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return (batch[0] * self.weight).square().mean()

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=0.1)

    callback = lightning.background(Sees())
    assert issubclass(type(callback), other.Callback)
    options: dict[str, Any] = {"accelerator": "cpu", "logger": False, "enable_checkpointing": False, "max_epochs": 1}
    trainer = other.Trainer(default_root_dir=tmp_path, callbacks=[callback], enable_progress_bar=False, **options)
    trainer.fit(Line(), data())
    assert seen == [(step, True, (8,), 3) for step in range(1, 5)]

    logger: Any = lightning.background(OfFabric(tmp_path, name="fabric", version=0))
    logger.log_metrics({"a": torch.tensor(1.0)}, step=0)
    logger.finalize("success")
    assert (tmp_path / "fabric" / "version_0" / "metrics.csv").read_text().split() == ["a,step", "1.0,0"]


@pytest.mark.slow
def test_in_a_process_too(tmp_path: Path) -> None:
    train(tmp_path / "a", inline)
    rows: Any = lightning.background(Rows(tmp_path / "b" / "rows.txt"), placement="process")
    torch.manual_seed(0)
    logger = CSVLogger(tmp_path / "b", name="logs", version=0)
    make_trainer(tmp_path / "b", [rows], logger, enable_checkpointing=False).fit(Net(), data(), data())
    assert (tmp_path / "b" / "rows.txt").read_text() == (tmp_path / "a" / "rows.txt").read_text()
    assert rows.rows[-1].startswith("teardown")
