"""``async-trainer watch``: of runs in processes of their own, and of what is left of them."""

from __future__ import annotations

import io
import json
import logging
import os
import re
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from async_trainer import CallbacksHandler, background, cli
from async_trainer.errors import ConfigurationError
from async_trainer.watching import status
from async_trainer.watching.screen import picture
from tests.watch.kit import LOOP, Terminal, ended, running, said, shown, status_of, until

HANGS = (
    LOOP
    + """
far = background(Plots(), placement="process", name="far")
handler = CallbacksHandler([background(Plots()), background(Log()), far], shutdown_timeout=1)
handler.publish("run")
for step in range(8):
    handler.call_event("on_batch_end", step=step)
    time.sleep(0.01)
sys.stdin.read()
"""
)


def test_it_shows_what_hangs_what_waits_behind_it_and_what_fails_and_then_that_the_run_was_killed(
    tmp_path: Path,
) -> None:
    run = tmp_path / "run"
    with running(HANGS, tmp_path) as process:
        one = said(
            run,
            lambda one: (
                all(one.said["lanes"][lane]["queued"] == 4 for lane in ("plots", "far"))
                and one.said["lanes"]["log"]["failed"] == 1
                and one.said["steps"]["count"] == 8
            ),
        )
        assert one.state == "running"
        assert one.said["lanes"]["far"]["running"] == one.said["lanes"]["plots"]["running"] == "on_batch_end"
        seen = shown(run)
        assert seen.returncode == 0, seen.stderr
        assert re.search(r"^run +running for \d+ s$", seen.stdout, re.MULTILINE)
        assert re.search(r"^plots +4 +[\d.]+ m?s +[\d.]+ m?s in on_batch_end +0 +0 +0$", seen.stdout, re.MULTILINE)
        assert re.search(r"^far +4 +[\d.]+ m?s +[\d.]+ m?s in on_batch_end +0 +0 +0$", seen.stdout, re.MULTILINE)
        assert re.search(r"^log +0 +idle +1 +0 +0$", seen.stdout, re.MULTILINE)
        assert re.search(r"^8 steps", seen.stdout, re.MULTILINE)
        assert "log.on_batch_end: OSError: no <room> left" in seen.stdout
        assert max(map(len, seen.stdout.splitlines())) <= 80
        written = one.said["written"]
        said(run, lambda one: one.said["written"] > written)  # it goes on to tell
        process.kill()
        process.wait()
        gone = status.read(run / status.NAME)
        assert (gone.state, gone.over, gone.good) == ("killed", True, False)
        seen = shown(run)
        assert seen.returncode == 1
        assert re.search(r"^run +killed after \d+ s\nits process is gone", seen.stdout, re.MULTILINE)
        assert re.search(r"^plots +4 .* was in on_batch_end", seen.stdout, re.MULTILINE)


STEPS = (
    LOOP
    + """
handler = CallbacksHandler([background(Log())])
handler.publish("run")
with handler:
    for line in sys.stdin:
        handler.call_event("on_batch_end", step=int(line))
"""
)


def test_on_a_terminal_it_goes_on_to_show_how_the_run_is_until_that_is_over(tmp_path: Path) -> None:
    with running(STEPS, tmp_path) as process:
        said(tmp_path / "run", lambda one: one.state == "running")
        assert process.stdin is not None
        with Terminal(tmp_path / "run") as terminal, Terminal(tmp_path / "run") as other:
            terminal.wait_for("running for")
            process.stdin.write("1\n2\n")
            process.stdin.flush()
            terminal.wait_for("2 steps")
            terminal.wait_for("OSError: no <room> left")
            process.stdin.write("3\n")
            process.stdin.flush()
            terminal.wait_for("3 steps")
            other.wait_for("3 steps")
            other.process.send_signal(signal.SIGINT)  # Ctrl-C: of the watcher, which the run doesn't mind
            assert other.end() == 130
            assert "Traceback" not in other.shown
            process.stdin.close()
            process.stdin = None
            terminal.wait_for("finished")
            assert terminal.end() == 0


def test_two_that_publish_in_one_folder_are_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with CallbacksHandler() as first:
        first.publish(tmp_path)
        said(tmp_path, lambda one: one.state == "running")
        assert "another run" not in caplog.text
        with CallbacksHandler() as second:
            second.publish(tmp_path)
            assert f"another run tells in {tmp_path} how it is doing" in caplog.text
    caplog.clear()
    with CallbacksHandler() as third:  # those have ended
        third.publish(tmp_path)
    assert not caplog.text


ENDS = {
    "finished": "with handler: step()",
    "ended by ValueError": "with handler:\n    step()\n    raise ValueError",
    "ended by KeyboardInterrupt": "with handler:\n    step()\n    raise KeyboardInterrupt",
    "ended by SystemExit (status 3)": "with handler:\n    step()\n    sys.exit(3)",
    "ended by SIGTERM (status 143)": "with handler:\n    step()\n    sys.exit(143)",
}


@pytest.mark.parametrize("how", ENDS)
def test_a_run_says_how_it_has_ended(how: str, tmp_path: Path) -> None:
    code = (
        LOOP
        + f"""
handler = CallbacksHandler([background(Log())])
handler.publish("run")
def step(): handler.call_event("on_batch_end", step=1)
{ENDS[how]}
"""
    )
    ended(code, tmp_path)
    one = status.read(tmp_path / "run" / status.NAME)
    assert one.state == how
    assert one.good == (how == "finished")
    assert one.said["lanes"]["log"]["delivered"] == 1


@pytest.mark.parametrize(("last", "how"), [("", "finished"), ("raise ValueError", "ended by ValueError")])
def test_a_run_whose_handler_nobody_closes_says_so_when_the_process_ends(last: str, how: str, tmp_path: Path) -> None:
    code = (
        LOOP
        + f"""
handler = CallbacksHandler([background(Log())])
handler.publish("run")
handler.call_event("on_batch_end", step=1)
{last}
"""
    )
    assert ended(code, tmp_path) == int(bool(last))
    one = status.read(tmp_path / "run" / status.NAME)
    assert one.state == how
    assert one.said["lanes"]["log"]["delivered"] == 1


def test_a_handler_that_is_dropped_drains_and_its_run_is_finished(tmp_path: Path) -> None:
    code = (
        LOOP
        + """
handler = CallbacksHandler([background(Log())])
handler.publish("run")
handler.call_event("on_batch_end", step=1)
del handler
sys.stdin.read()
"""
    )
    with running(code, tmp_path):
        one = said(tmp_path / "run", lambda one: one.state == "finished")
        assert one.said["lanes"]["log"]["delivered"] == 1


def test_a_forked_child_says_nothing_and_does_not_end_the_run(tmp_path: Path) -> None:
    code = (
        LOOP
        + """
import os
handler = CallbacksHandler([background(Log())])
handler.publish("run")
handler.call_event("on_batch_end", step=1)
child = os.fork()
if child == 0:
    handler.call_event("on_batch_end", step=1)
    print(f"said its last words: {handler._publishers[0].over}", flush=True)
    handler.close()
    sys.exit(0)
os.waitpid(child, 0)
print("forked", flush=True)
sys.stdin.read()
"""
    )
    with running(code, tmp_path) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "said its last words: True\n", "there is no thread to wait for"
        until(lambda: process.stdout.readline() == "forked\n")
        after = time.time()
        one = said(tmp_path / "run", lambda one: one.said["written"] > after)
        assert (one.state, one.said["pid"]) == ("running", process.pid)


def test_a_status_that_is_old_is_stale_where_its_process_cannot_be_asked_for(tmp_path: Path) -> None:
    now = time.time()
    fresh = status.read(status_of(tmp_path / "fresh", written=now))
    old = status.read(status_of(tmp_path / "old", written=now - 60))
    assert (fresh.state, old.state) == ("running", "stale")
    assert not old.over  # it may yet go on
    assert cli.main(["watch", str(tmp_path / "old"), "--once"]) == 1


def test_another_process_of_the_same_number_is_not_taken_for_the_run(tmp_path: Path) -> None:
    import os
    import socket

    here = {"host": socket.gethostname(), "pid": os.getpid()}
    ours = status.read(status_of(tmp_path / "ours", process_began=status.process_began(os.getpid()), **here))
    earlier = status.read(status_of(tmp_path / "earlier", process_began="an earlier one", **here))
    assert (ours.state, earlier.state) == ("running", "killed")
    container = {"process_began": "of another", "pid_namespace": "pid:[1]"}  # that shares the host's name
    elsewhere = status.read(status_of(tmp_path / "elsewhere", **here, **container))
    late = status.read(status_of(tmp_path / "late", **here, **container, written=time.time() - 60))
    assert (elsewhere.state, late.state) == ("running", "stale")


def test_a_run_says_where_its_process_is(tmp_path: Path) -> None:
    handler = CallbacksHandler()
    handler.publish(tmp_path)
    handler.call_event("on_batch_end")
    handler.close()
    assert status.read(tmp_path / status.NAME).said["pid_namespace"] == status.pid_namespace() is not None


def test_what_the_terminal_cannot_show_is_escaped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    status_of(tmp_path / "größe")
    screen = io.TextIOWrapper(io.BytesIO(), "ascii")
    monkeypatch.setattr("sys.stdout", screen)
    assert cli.main(["watch", str(tmp_path / "größe"), "--once"]) == 0
    assert cli.main(["report", str(tmp_path / "größe")]) == 0
    screen.flush()
    assert b"gr\\xf6\\xdfe" in screen.buffer.getvalue()  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("content", "words"),
    [(None, "handler.publish"), ("{", "is damaged"), ('{"format": 1}', "no status file"), ("[]", "no status file")],
)
def test_what_is_no_run_is_told_in_one_line(
    content: str | None, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if content is not None:
        (tmp_path / status.NAME).write_text(content)
    assert cli.main(["watch", str(tmp_path), "--once"]) == 1
    told = capsys.readouterr().err
    assert words in told
    assert told.count("\n") == 1


@pytest.mark.parametrize("changes", [{"steps": None}, {"lanes": []}, {"written": "now"}])
@pytest.mark.parametrize("command", [["watch", "--once"], ["report"]])
def test_a_field_that_is_damaged_is_told_in_one_line(
    command: list[str], changes: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status_of(tmp_path, **changes)
    assert cli.main([command[0], str(tmp_path), *command[1:]]) == 1
    told = capsys.readouterr().err
    assert f"is damaged: its {next(iter(changes))!r}" in told
    assert told.count("\n") == 1


def test_a_run_that_was_faster_than_its_notes_says_at_least(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    steps = json.loads(status_of(tmp_path).read_text())["steps"]
    status_of(tmp_path, forgotten=7, steps={**steps, "count": 5})
    assert cli.main(["watch", str(tmp_path), "--once"]) == 0
    assert "at least " in capsys.readouterr().out


def test_what_drives_a_terminal_is_not_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    error = {
        "callback": "a\x1b[2J",
        "event": "b",
        "where": "",
        "what": "[bold]c\r\n\x1b]0;d\x07",
        "count": 1,
        "traceback": "",
    }
    status_of(tmp_path, errors=[error], state="finished")
    assert cli.main(["watch", str(tmp_path), "--once"]) == 0
    shown = capsys.readouterr().out
    assert "\x1b" not in shown
    assert "\x07" not in shown
    assert "[bold]c" in shown


def test_the_widest_row_fits_80_columns(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = status_of(tmp_path)
    said = json.loads(path.read_text())
    said["lanes"] = {
        "model_checkpoint_for_the_archive": {
            **said["lanes"]["log"], "queued": 123_456, "failed": 99_999, "dropped": 999_999, "lost": 9_999,
            "age": 86_399.0, "running": "on_metrics_computation_start", "seconds": 7_139.0, "stalled": True,
        }
    }  # fmt: skip
    path.write_text(json.dumps(said))
    assert cli.main(["watch", str(tmp_path), "--once"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    assert [line.split() for line in lines if line.startswith("lane")] == [
        ["lane", "queued", "oldest", "now", "failed", "dropped", "lost"]
    ]
    (row,) = [line for line in lines if line.startswith("model_check")]
    assert row.split()[1:5] == ["123,456", "1440", "min", "stalled"]
    assert row.split()[-3:] == ["99,999", "999,999", "9,999"]


@pytest.mark.parametrize("width", [100, 140])
def test_a_wide_terminal_shows_where_lanes_are_and_the_seconds_in_their_hooks(width: int, tmp_path: Path) -> None:
    path = status_of(tmp_path)
    said = json.loads(path.read_text())
    lane = {**said["lanes"]["log"], "running": "on_metrics_computation_start", "seconds": 1.5, "age": 2.5}
    said["lanes"] = {
        "plots": {**lane, "placement": "process", "hook_seconds": 83.2},
        "news": {**lane, "placement": "task", "hook_seconds": 0.0},
        "model_checkpoint_for_the_archive": lane,
    }
    said["loop"]["paid"] = {"capturing": 12.0, "waiting: queue": 20.0, "waiting: fence": 0.0}
    path.write_text(json.dumps(said))
    console = Console(width=width, file=io.StringIO())
    with console.capture() as captured:
        console.print(picture([status.read(path)], width))
    lines = captured.get().splitlines()
    assert max(map(len, lines)) <= width
    assert "the loop paid 32 s (53.3 %): full queues 20 s, capturing 12 s" in lines
    plots, news, archive = (
        next(line.split() for line in lines if line.startswith(name)) for name in ("pl", "ne", "mo")
    )
    assert plots[:10] == ["plots", "process", "0", "2.5", "s", "83", "s", "1.5", "s", "in"]
    assert plots[10].rstrip("…") in ("on_metrics", "on_metrics_computation_start")[width > 100 :]
    assert news[:6] == ["news", "task", "0", "2.5", "s", "1.5"]
    assert archive[1:7] == ["thread", "0", "2.5", "s", "500", "ms"]


def test_where_there_is_no_room_idle_lanes_give_way(tmp_path: Path) -> None:
    path = status_of(tmp_path)
    idle = json.loads(path.read_text())["lanes"]["log"]
    lanes = {f"idle_{number}": idle for number in range(20)}
    lanes |= {
        "fails": {**idle, "failed": 3},
        "hangs": {**idle, "running": "on_batch_end"},
        "full": {**idle, "queued": 9},
    }
    error = {"callback": "fails", "event": "on_batch_end", "count": 3, "where": "", "what": "OSError: no room"}
    one = status.read(status_of(tmp_path, lanes=lanes, errors=[error]))
    for height, hidden in ((24, 12), (15, 21), (5, 22), (None, 0)):
        console = Console(file=io.StringIO(), width=80, height=height)
        console.print(picture([one], 80, height))
        shown = console.file.getvalue()  # type: ignore[attr-defined]
        assert shown.count("idle_") == max(0, 20 - hidden)
        assert ("fails" in shown, "OSError: no room" in shown) == (True, True)
        assert (f"and {hidden} more" in shown) == (hidden > 0)
        assert height is None or height < 15 or len(shown.splitlines()) <= height


def test_of_several_splits_those_under_way_are_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number, state in enumerate(["finished", "running", "running"]):
        status_of(tmp_path / f"split-{number}", state=state)
    assert cli.main(["watch", str(tmp_path), "--once"]) == 0
    shown = capsys.readouterr().out
    assert [number for number in range(3) if f"split-{number}" in shown] == [1, 2]


def test_a_folder_that_goes_away_is_told_once_and_the_loop_goes_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    import shutil

    from async_trainer import CallbacksHandler

    handler = CallbacksHandler()
    handler.publish(tmp_path / "run")
    said(tmp_path / "run", lambda one: True)
    shutil.rmtree(tmp_path / "run")
    until(lambda: "can't be written" in caplog.text)
    handler.call_event("on_batch_end")
    handler.close()
    assert caplog.text.count("can't be written") == 1


def test_a_timeline_that_cannot_be_written_costs_neither_the_run_nor_its_status(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from async_trainer import CallbacksHandler

    (tmp_path / status.TIMELINE).mkdir()
    handler = CallbacksHandler(timeline=True)
    handler.publish(tmp_path)
    said(tmp_path, lambda one: one.state == "running")
    until(lambda: "can't be written" in caplog.text)
    handler.call_event("on_batch_end")
    handler.close()
    assert said(tmp_path, lambda one: True).state == "finished"


def test_an_event_that_there_is_not_can_be_no_step(tmp_path: Path) -> None:
    from async_trainer import CallbacksHandler

    handler = CallbacksHandler()
    with pytest.raises(ConfigurationError, match="there is no event 'on_bach_end'; did you mean 'on_batch_end'"):
        handler.publish(tmp_path, step="on_bach_end")
    handler.close()
    with pytest.raises(ConfigurationError, match="closed"):
        handler.publish(tmp_path)
    assert not list(tmp_path.iterdir())


def test_an_error_whose_text_no_file_takes_is_told_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("async_trainer"), "disabled", True)  # pytest-xdist doesn't take it either

    class Fails:
        def on_batch_end(self, *, step: int) -> None:
            raise OSError("no file " + os.fsdecode(b"\xff.pt"))

    with CallbacksHandler([background(Fails())]) as handler:
        handler.publish(tmp_path)
        handler.call_event("on_batch_end", step=1)
    one = status.read(tmp_path / status.NAME)
    assert one.state == "finished"
    assert "no file" in json.dumps(one.said)
