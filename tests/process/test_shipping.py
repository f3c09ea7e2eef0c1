"""How callbacks get into a process, and what comes back: attributes, states, log records, output."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from async_trainer import CallbacksHandler, background
from async_trainer.errors import ConfigurationError
from tests.process.doubles import Appends, Opens, Slotted, Speaks, Stateful, Unloadable


def process(callback: Any, **options: Any) -> Any:
    return background(callback, placement="process", **options)


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What came of ``script.py``, run as scripts are."""
    script = Path(__file__).with_name("script.py")
    folder = tmp_path_factory.mktemp("elsewhere")
    (folder / "json.py").write_text("raise AssertionError('not this one')")  # in the working directory alone
    ran = subprocess.run(
        [sys.executable, str(script), "--lr", "3"], cwd=folder, capture_output=True, text=True, timeout=60, check=False
    )
    assert ran.stdout.count("the script runs") == 1, ran.stdout + ran.stderr
    told: dict[str, Any] = json.loads(ran.stdout.partition("THE END ")[2])
    return told


def test_a_script_without_a_main_guard_works_with_classes_of_its_own(story: dict[str, Any]) -> None:
    assert story["first"] == [[True, True, n + 10, n + 1] for n in range(3)]
    assert story["second"] == [[n + 1, 2] for n in range(3)]
    assert (story["delivered"], story["failed"]) == (14, 1)


def test_an_exception_of_the_scripts_comes_back_as_itself(story: dict[str, Any]) -> None:
    assert story["errors"] == [[True, 5]]


def test_classes_of_a_notebook_and_of_modules_that_are_in_no_file_work(story: dict[str, Any]) -> None:
    assert story["cell"] == 2.0
    assert story["hand"] == 2


def test_the_child_is_where_the_script_is(story: dict[str, Any]) -> None:
    around = story["around"]
    assert around["child"]
    assert Path(around["cwd"]).name.startswith("elsewhere")
    assert around["argv"][1:] == ["--lr", "3"]
    assert around["path"] == story["path"]
    assert around["SAID"] == "after the start"


def test_what_a_hook_starts_does_not_get_the_search_path_of_the_child(story: dict[str, Any]) -> None:
    assert story["around"]["PYTHONPATH"] == os.environ.get("PYTHONPATH")


# ------------------------------------------------------------------------------------------------------ one long-lived


@pytest.fixture(scope="module")
def running() -> Iterator[tuple[CallbacksHandler, list[Any]]]:
    """A handler with one child, and its callbacks; one event was handled."""
    shared: list[Any] = []
    factor = 3

    class Local:
        def __init__(self) -> None:
            self.rows: list[Any] = []
            self.times = lambda x: x * factor

        def on_value(self, *, value: Any) -> None:
            self.rows.append(self.times(value))

    callbacks = [Appends(shared, "a"), Appends(shared, "b"), Local(), Slotted(), Opens()]
    handler = CallbacksHandler([process(one, lane="one") for one in callbacks], events=["on_value"])
    with handler:
        handler.call_event("on_value", value=2)
        assert handler.flush().ok
        yield handler, callbacks


def test_lambdas_closures_and_local_classes_work(running: Any) -> None:
    assert running[1][2].rows[0] == 6


def test_what_the_callbacks_of_a_lane_share_they_share_there(running: Any) -> None:
    assert running[1][0].rows[:2] == running[1][1].rows[:2] == [("a", 2), ("b", 2)]


def test_attributes_are_copied_back_and_those_that_can_not_be_stay_as_they_are(running: Any) -> None:
    slotted, opens = running[1][3:5]
    assert slotted.count >= 1
    assert opens.count >= 1
    assert opens.lock is None
    assert opens.untouched == "here"


def test_callbacks_that_are_added_while_it_runs_get_events_from_then_on(running: Any) -> None:
    handler, callbacks = running
    before = callbacks[4].count
    late, own = Opens(), Opens()
    handler.add_callbacks([process(late, lane="one"), process(own, lane="another")])
    handler.call_event("on_value", value=5)
    assert handler.flush().ok
    assert (late.count, own.count, callbacks[4].count) == (1, 1, before + 1)


def test_one_that_can_not_be_made_again_there_fails_its_events_and_says_so(
    running: Any, caplog: pytest.LogCaptureFixture
) -> None:
    handler, callbacks = running
    before = callbacks[4].count
    handler.add_callbacks([process(Unloadable(), lane="one")])
    handler.call_event("on_value", value=5)
    report = handler.flush()
    assert callbacks[4].count == before + 1
    assert handler._pool.lanes["one"].restarts == 0
    assert "unloadable.on_value: its callback can't be made again in its process (RuntimeError: not here)" in str(
        report
    )
    assert "placement='thread'" in str(report)


def test_states_are_read_and_loaded_in_the_child() -> None:
    stateful = Stateful()
    with CallbacksHandler([process(stateful)], events=["on_value"]) as handler:
        handler.call_event("on_value", value=2)
        handler.call_event("on_value", value=3)
        barrier = handler.barrier()
        handler.call_event("on_value", value=100)
        assert barrier.wait() == {"stateful": {"total": 5}}
        assert handler.state_dict() == {"stateful": {"total": 105}}
        handler.load_state_dict({"stateful": {"total": 7}})
        handler.call_event("on_value", value=1)
        assert handler.state_dict() == {"stateful": {"total": 8}}
    assert stateful.total == 8
    assert stateful.pids
    assert os.getpid() not in stateful.pids


# ----------------------------------------------------------------------------------------------------- what is refused


class Holds:
    def __init__(self, held: Any) -> None:
        self.held = held

    def on_value(self, *, value: Any) -> None:
        return None


def refusal(callback: Any) -> str:
    with pytest.raises(ConfigurationError) as caught:
        CallbacksHandler([process(callback)], events=["on_value"])
    return str(caught.value)


def test_a_writer_is_refused_by_the_path_to_its_lock(tmp_path: Path) -> None:
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(tmp_path) as writer:
        said = refusal(Holds({"writers": [writer]}))
    assert "Holds.held['writers'][0]." in said
    assert "lock" in said
    assert "on_train_start" in said
    assert "placement='thread'" in said


def test_locks_files_and_closures_are_refused_by_their_path(tmp_path: Path) -> None:
    lock = threading.Lock()
    assert "Holds.held._x can't be sent" in refusal(Holds(Deep()))
    assert "Holds.held (its lock) can't be sent" in refusal(Holds(lambda: lock))
    with (tmp_path / "rows").open("w") as file:
        assert "Holds.held['file'] can't be sent to a process (TextIOWrapper: " in refusal(Holds({"file": file}))
    assert "Holds.held can't be sent to a process (generator: " in refusal(Holds(_ for _ in ()))


class Deep:
    __slots__ = ("_x",)

    def __init__(self) -> None:
        self._x = threading.Lock()


def test_a_callback_that_holds_a_handler_or_a_proxy_is_refused() -> None:
    with CallbacksHandler() as handler:
        said = refusal(Holds(handler))
        assert "Holds.held can't be sent" in said
        assert "fires events in the process that it belongs to" in said
        assert "Holds.held can't be sent" in refusal(Holds(handler.proxy([].append)))


def test_a_handler_that_was_refused_a_callback_goes_on_without_it() -> None:
    opens = Opens()
    with CallbacksHandler([background(opens)], events=["on_value"]) as handler:
        with pytest.raises(ConfigurationError):
            handler.add_callbacks([process(Holds(threading.Lock()))])
        handler.call_event("on_value", value=1)
    assert opens.count == 1


# ------------------------------------------------------------------------------------- what it says: logs, out and err


def test_log_records_come_through_the_handlers_and_levels_of_the_parent(
    caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    logging.getLogger("tests.speaks").setLevel(logging.INFO)
    logging.getLogger("tests.speaks.loud").setLevel(logging.ERROR)
    with warnings.catch_warnings(), CallbacksHandler([process(Speaks(), lane="talk")], events=["on_value"]) as handler:
        warnings.simplefilter("ignore")
        handler.call_event("on_value", value=7)
        handler.flush()
        records = [record for record in caplog.records if record.name.startswith("tests.speaks")]
        assert [record.getMessage() for record in records] == ["info 7", "it failed, 7"]
        last: Any = records[1]
        assert (last.levelno, last.step, last.lane) == (logging.ERROR, 7, "talk")
        assert last.processName == "async_trainer-talk"
        assert 'raise ValueError("inside")' in logging.Formatter("%(message)s").format(last)
        out, err = capfd.readouterr()
        assert "printed 7\nbegun 7" in out
        assert "told 7" in err
        assert "a warning" not in err
        logging.getLogger("tests.speaks").setLevel(logging.ERROR)  # those of the parent, now
        handler.call_event("on_value", value=8)
        handler.flush()
        said = [record.getMessage() for record in caplog.records if record.name == "tests.speaks"]
        assert "info 8" not in said


def test_what_it_printed_before_it_was_killed_is_there(capfd: pytest.CaptureFixture[str]) -> None:
    with CallbacksHandler([process(Speaks())], events=["on_value"]) as handler:
        handler.call_event("on_value", value="dies")
        handler.flush()
    out, err = capfd.readouterr()
    assert out.count("printed dies\nbegun dies") == 3
    assert "told dies" in err
