"""In transformers' Trainer: the same files as inline, as of the event; uploads and checkpoints don't meet."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("transformers")

import transformers
from transformers import EarlyStoppingCallback, TrainerCallback
from transformers.integrations import TensorBoardCallback
from transformers.trainer_callback import DefaultFlowCallback, ExportableState

from async_trainer.adapters import huggingface
from async_trainer.errors import ConfigurationError
from tests.adapters.huggingface_runs import Breaks, Rows, contents, make_trainer
from tests.same import same

PATIENCE = 60.0  # s
pytestmark = pytest.mark.filterwarnings("ignore")
transformers.logging.set_verbosity_error()


def inline(trainer: Any, *callbacks: Any) -> None:
    """Leaves them where they are."""


BOTH = (("a", inline), ("b", huggingface.offload))


# ------------------------------------------------------------------------------------- the same as inline


def test_a_run_gives_the_same_files_and_checkpoints(tmp_path: Path) -> None:
    for name, move in BOTH:
        trainer = make_trainer(tmp_path / name / "out", [Rows(tmp_path / name / "rows.txt")])
        move(trainer, Rows)
        trainer.train()
    a, b = (contents(tmp_path / name) for name in "ab")
    assert list(a) == list(b)
    assert "out/checkpoint-8/trainer_state.json" in a
    assert a["rows.txt"].count(b"\n") > 30
    assert a["rows.txt"].decode() == b["rows.txt"].decode().replace(str(tmp_path / "b"), str(tmp_path / "a"))
    del a["rows.txt"], b["rows.txt"]
    assert same(a, b)


def test_a_run_that_breaks_and_is_resumed_gives_the_same(tmp_path: Path) -> None:
    for name, move in BOTH:
        folder = tmp_path / name
        trainer = make_trainer(folder / "out", [Rows(folder / "rows.txt"), Breaks(5)])
        handler = move(trainer, Rows)
        with pytest.raises(OSError, match="the machine breaks"):
            trainer.train()
        if handler is not None:
            handler.close()
        trainer = make_trainer(folder / "out", [Rows(folder / "rows.txt", resumed=True)])
        move(trainer, Rows)
        trainer.train(resume_from_checkpoint=True)
        assert trainer.state.global_step == 8
    a, b = (contents(tmp_path / name) for name in "ab")
    assert a["rows.txt"].decode() == b["rows.txt"].decode().replace(str(tmp_path / "b"), str(tmp_path / "a"))
    del a["rows.txt"], b["rows.txt"]
    assert list(a) == list(b)
    assert same(a, b)


def test_evaluating_and_training_again_go_on_with_the_same_callbacks(tmp_path: Path) -> None:
    for name, move in BOTH:
        rows = Rows(tmp_path / name / "rows.txt", resumed=True)
        # All checkpoints stay: of two trainings in one folder, transformers may remove the one it has just saved.
        trainer = make_trainer(tmp_path / name / "out", [rows], save_total_limit=None)
        move(trainer, Rows)
        trainer.train()
        trainer.evaluate()
        evaluated = (tmp_path / name / "rows.txt").read_text()
        assert evaluated.splitlines()[-1].startswith("evaluated")  # there when evaluate() returns
        trainer.train()
    a, b = ((tmp_path / name / "rows.txt").read_text() for name in "ab")
    assert a == b.replace(str(tmp_path / "b"), str(tmp_path / "a"))


def test_transformers_own_tensorboard_callback_writes_the_same(tmp_path: Path, monkeypatch: Any) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    read = []
    for name, move in BOTH:
        monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / name / "board"))
        trainer = make_trainer(tmp_path / name / "out", report_to=["tensorboard"])
        move(trainer, TensorBoardCallback)
        trainer.train()
        board = EventAccumulator(str(tmp_path / name / "board"), size_guidance={"tensors": 0}).Reload()
        found = {tag: [(e.step, e.value) for e in board.Scalars(tag)] for tag in sorted(board.Tags()["scalars"])}
        read.append({tag: rows for tag, rows in found.items() if not tag.endswith(("runtime", "per_second"))})
        assert "model_config/text_summary" in board.Tags()["tensors"]
    assert len(read[0]["train/loss"]) == 8
    assert read[0] == read[1]


# ------------------------------------------------------------------------------------- as of the event


class Late(TrainerCallback):
    """Looks at what it got when it is let go."""

    def __init__(self) -> None:
        self.go = threading.Event()
        self.seen: list[Any] = []

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        assert self.go.wait(PATIENCE)
        weights = {name: value.clone() for name, value in model.state_dict().items()}
        self.seen.append((state.global_step, state.epoch, len(state.log_history), control.should_log, weights))


class Live(TrainerCallback):
    """The same at the event, inline; lets the other one go at the end."""

    def __init__(self, late: Late) -> None:
        self.late = late
        self.seen: list[Any] = []

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        weights = {name: value.clone() for name, value in model.state_dict().items()}
        self.seen.append((state.global_step, state.epoch, len(state.log_history), control.should_log, weights))

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.late.go.set()


def test_a_hook_that_is_late_sees_the_model_and_the_state_as_of_its_event(tmp_path: Path) -> None:
    late = Late()
    live = Live(late)
    trainer = make_trainer(tmp_path, [late, live], save_strategy="no")

    class Opens(TrainerCallback):  # before the last words are logged, which are waited for
        def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if control.should_training_stop:
                late.go.set()

    trainer.add_callback(Opens())
    huggingface.offload(trainer, late)
    trainer.train()
    assert len(late.seen) == 8
    assert same(late.seen, live.seen)
    assert not same(live.seen[0], live.seen[1])


class Uploads(TrainerCallback):
    """Reads a checkpoint late, once the trainer has had the time to remove it."""

    def __init__(self) -> None:
        self.read: dict[int, int] = {}

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        until = time.monotonic() + 0.3
        while folder.exists() and time.monotonic() < until:
            time.sleep(0.01)
        self.read[state.global_step] = sum(path.stat().st_size for path in folder.iterdir())


JUDGED = {"eval_strategy": "steps", "eval_steps": 2, "metric_for_best_model": "loss"}


@pytest.mark.parametrize(
    ("options", "left"),
    [
        ({"save_strategy": "steps"}, 8),
        ({"save_strategy": "best", **JUDGED}, 8),
        ({"save_strategy": "steps", **JUDGED, "greater_is_better": True}, 2),  # the last goes when the training ends
    ],
)
def test_no_checkpoint_is_removed_while_an_upload_reads_it(tmp_path: Path, options: Any, left: int) -> None:
    uploads = Uploads()
    trainer = make_trainer(tmp_path, [uploads], **options)
    handler = huggingface.offload(trainer, uploads)
    trainer.train()
    assert handler.flush().failed == 0
    assert sorted(uploads.read) == [2, 4, 6, 8]
    assert all(size > 10_000 for size in uploads.read.values())
    assert [path.name for path in tmp_path.glob("checkpoint-*")] == [f"checkpoint-{left}"]


class Counts(TrainerCallback, ExportableState):
    """Its state says how many steps it has handled."""

    def __init__(self) -> None:
        self.go = threading.Event()
        self.steps = 0

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        assert self.go.wait(PATIENCE)
        self.steps += 1

    def state(self) -> dict[str, Any]:
        return {"args": {}, "attributes": {"steps": self.steps}}


def test_the_state_in_a_checkpoint_is_behind_a_barrier(tmp_path: Path) -> None:
    counts = Counts()

    class Opens(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if control.should_save:
                counts.go.set()
            elif counts.go.is_set():  # whoever asks for its state gets it behind what was emitted, too
                assert moved.state()["attributes"] == {"steps": state.global_step}

    trainer = make_trainer(tmp_path, [counts, Opens()], save_steps=5, save_total_limit=None)
    huggingface.offload(trainer, Counts)
    moved: Any = next(one for one in trainer.callback_handler.callbacks if isinstance(one, Counts))
    trainer.train()
    state = contents(tmp_path)["checkpoint-5/trainer_state.json"]["stateful_callbacks"]["Counts"]
    assert state == {"args": {}, "attributes": {"steps": 5}}


# ------------------------------------------------------------------------------------- types, and refusals


def test_what_was_moved_is_found_by_its_type_and_may_be_removed(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, [Rows(tmp_path / "rows.txt")])
    huggingface.offload(trainer, Rows)
    moved = next(one for one in trainer.callback_handler.callbacks if isinstance(one, Rows))
    assert isinstance(moved, TrainerCallback)
    assert moved.path == tmp_path / "rows.txt"
    assert trainer.pop_callback(Rows) is moved


class Stops(TrainerCallback):
    def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        control.should_training_stop = True


class StopsBelow(TrainerCallback):
    def on_log(self, args: Any, state: Any, what: Any, **kwargs: Any) -> None:
        self.stop(what)

    def stop(self, what: Any) -> None:
        what.should_save = True


class SetsState(TrainerCallback):
    def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        state.best_metric = 1.0


class Steps(TrainerCallback):
    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        kwargs["lr_scheduler"].step()


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (EarlyStoppingCallback, r"EarlyStoppingCallback sets control.should_training_stop in on_evaluate"),
        (DefaultFlowCallback, "sets control.should_log in on_epoch_end"),
        (Stops, "Stops sets control.should_training_stop in on_log"),
        (StopsBelow, "StopsBelow sets what.should_save"),
        (Steps, r"Steps calls step\(\) of lr_scheduler"),
        (SetsState, "SetsState sets state.best_metric in on_log"),
    ],
)
def test_what_steers_is_refused_and_nothing_is_moved(tmp_path: Path, make: Any, why: str) -> None:
    trainer = make_trainer(tmp_path, [Rows(tmp_path / "x"), make()])
    before = list(trainer.callback_handler.callbacks)
    with pytest.raises(ConfigurationError, match=why) as caught:
        huggingface.offload(trainer, Rows, make)
    assert "Leave it inline" in str(caught.value)
    assert trainer.callback_handler.callbacks == before


def test_a_callback_that_is_not_there_is_an_error_that_names_those_that_are(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, [Rows(tmp_path / "x")])
    with pytest.raises(ConfigurationError, match=r"has no Late; it has DefaultFlowCallback, .*Rows"):
        huggingface.offload(trainer, Late)
    with pytest.raises(ConfigurationError, match="that you name; the trainer has DefaultFlow"):
        huggingface.offload(trainer)
    huggingface.offload(trainer, Rows)
    with pytest.raises(ConfigurationError, match="Rows, in the background> already"):
        huggingface.offload(trainer, Rows)


class Sets(TrainerCallback):
    """By a way that can't be seen before it runs."""

    def __init__(self, do: Any) -> None:
        self.do = do

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
        return self.do(args, state, control, kwargs)


WAYS: dict[str, tuple[Any, str]] = {
    "control": (
        lambda args, state, control, kwargs: setattr(control, "should_save", True),
        "can't change the training",
    ),
    "state": (lambda args, state, control, kwargs: setattr(state, "global_step", 7), "can't change the training"),
    "returned": (lambda args, state, control, kwargs: type(control).__mro__[1](), "returned TrainerControl"),
    "model": (lambda args, state, control, kwargs: kwargs["model"].config, "must name 'model'"),
}


@pytest.mark.parametrize("way", WAYS)
def test_a_hook_that_turns_out_to_steer_fails_and_the_training_goes_on(tmp_path: Path, way: str) -> None:
    do, message = WAYS[way]
    trainer = make_trainer(tmp_path, [Sets(do)], save_strategy="no")
    handler = huggingface.offload(trainer, Sets)
    trainer.train()
    assert trainer.state.global_step == 8
    report = handler.flush()
    assert report.failed == 8
    assert message in str(report.errors[0])


def test_a_model_that_is_not_needed_is_not_captured(tmp_path: Path) -> None:
    seen: list[Any] = []

    class Names(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
            seen.append(model)

    trainer = make_trainer(tmp_path, [Names()], save_strategy="no")
    handler = huggingface.offload(trainer, Names, select={"model": None})
    trainer.train()
    assert seen == [None] * 8
    assert "model: None (select)" in str(handler.explain())


@pytest.mark.slow
def test_in_a_process_too(tmp_path: Path) -> None:
    for name, options in (("a", {}), ("b", {"placement": "process"})):
        trainer = make_trainer(tmp_path / name / "out", [Rows(tmp_path / name / "rows.txt")])
        huggingface.offload(trainer, Rows, **options)  # type: ignore[arg-type]
        trainer.train()
    a, b = ((tmp_path / name / "rows.txt").read_text() for name in "ab")
    assert a == b.replace(str(tmp_path / "b"), str(tmp_path / "a"))
