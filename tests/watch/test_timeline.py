"""The timeline of a run: a Chrome trace in which slices nest, with a track for each lane."""

from __future__ import annotations

import gzip
import json
import threading
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from async_trainer import CallbacksHandler, Event, background, cli
from async_trainer.errors import ConfigurationError
from async_trainer.testing import play
from async_trainer.watching import publisher, status, tape, trace_file
from async_trainer.watching.recording import Recording
from async_trainer.watching.status import TIMELINE
from async_trainer.watching.tape import Note
from async_trainer.watching.timeline import LANE_TRACK, LOOP_TRACK, Timeline
from async_trainer.watching.trace_file import TraceFile, merge_traces, read_trace
from tests.watch.doubles import Async, Fails, Inline, Log
from tests.watch.kit import LOOP, running, until

ROUNDING = 0.002  # µs


def events_of(path: Path) -> list[dict[str, Any]]:
    """As viewers read it: gunzip and JSON, no more."""
    trace = json.loads(gzip.decompress(path.read_bytes()))
    assert 0 <= time.time_ns() - trace["baseTimeNanoseconds"] < 100 * 86_400 * 10**9
    events: list[dict[str, Any]] = trace["traceEvents"]
    return events


def tracks(events: Iterable[dict[str, Any]]) -> dict[str, int]:
    return {one["args"]["name"]: one["tid"] for one in events if one["name"] == "thread_name"}


def check_nesting(events: Iterable[dict[str, Any]]) -> None:
    """Two slices of a track are one in the other, or apart."""
    by_track: dict[int, list[dict[str, Any]]] = {}
    for one in events:
        if one["ph"] == "X":
            by_track.setdefault(one["tid"], []).append(one)
    assert by_track
    for slices in by_track.values():
        stack: list[float] = []
        for one in sorted(slices, key=lambda one: (one["ts"], -one["dur"])):
            end = one["ts"] + one["dur"]
            while stack and stack[-1] <= one["ts"] + ROUNDING:
                stack.pop()
            assert not stack or end <= stack[-1] + ROUNDING, f"{one['name']} sticks out"
            stack.append(end)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("run")
    callbacks = [
        Inline(),
        background(Log()),
        background(Async()),
        background(Fails()),
        background(Log(), placement="process", name="far"),
    ]
    handler = CallbacksHandler(callbacks, timeline=True)
    handler.publish(folder)
    with handler:
        play(handler, epochs=2)
        handler.barrier()
    return events_of(folder / TIMELINE)


def test_slices_nest(trained: list[dict[str, Any]]) -> None:
    check_nesting(trained)


def test_the_check_of_nesting_finds_what_sticks_out() -> None:
    with pytest.raises(AssertionError, match="b sticks out"):
        check_nesting(
            {"ph": "X", "tid": 1, "name": name, "ts": ts, "dur": 10.0} for name, ts in (("a", 0.0), ("b", 5.0))
        )


def test_every_lane_has_a_track_with_its_hooks_and_the_barriers(trained: list[dict[str, Any]]) -> None:
    named = tracks(trained)
    assert set(named) == {"loop", "lane log (thread)", "lane async (task)", "lane fails (thread)", "lane far (process)"}
    hooks = {
        name: [one["name"] for one in trained if one["ph"] == "X" and one.get("tid") == track]
        for name, track in named.items()
    }
    batches = hooks["loop"].count("batch")
    assert batches > 2
    for lane in ("lane log (thread)", "lane async (task)", "lane far (process)"):
        assert hooks[lane].count("on_batch_end") == batches
        assert hooks[lane].count("barrier") >= 2, "the one that was asked for, and that of the end"
    assert sum(one["name"] == "barrier" and one["ph"] == "i" for one in trained) >= 2
    failed = [one for one in trained if one.get("tid") == named["lane fails (thread)"] and one.get("cat") == "failed"]
    assert failed[0]["args"]["error"] == "ValueError: no <colour>"


def test_the_loop_has_its_parts_its_inline_hooks_and_its_captures(trained: list[dict[str, Any]]) -> None:
    loop = [one for one in trained if one["ph"] == "X" and one.get("tid") == tracks(trained)["loop"]]
    names = [one["name"] for one in loop]
    for part in ("train", "epoch", "batch", "forward", "backward", "optimization", "validation", "metrics computation"):
        assert part in names
    assert names.count("epoch") == 2
    assert names.count("inline hooks: on_batch_end") == names.count("capture: on_batch_end") == names.count("batch")
    assert "wait: flush" in names
    epochs = [one for one in loop if one["name"] == "epoch"]
    for one in loop:
        if one["name"] in ("forward", "backward"):
            assert any(e["ts"] <= one["ts"] and one["ts"] + one["dur"] <= e["ts"] + e["dur"] + ROUNDING for e in epochs)


def test_hooks_begin_after_their_events_were_captured(trained: list[dict[str, Any]]) -> None:
    captures = sorted(one["ts"] for one in trained if one["name"] == "capture: on_batch_end")
    for lane in ("lane log (thread)", "lane far (process)"):
        track = tracks(trained)[lane]
        hooks = sorted(one["ts"] for one in trained if one.get("tid") == track and one["name"] == "on_batch_end")
        assert all(capture < hook for capture, hook in zip(captures, hooks, strict=True))


def test_a_loop_of_ones_own_has_steps_and_a_full_queue_shows(tmp_path: Path) -> None:
    class Slow:
        def on_step(self) -> None:
            time.sleep(0.002)

    handler = CallbacksHandler([background(Slow(), queue_size=1)], events=["on_step"], timeline=True)
    handler.publish(tmp_path, step="on_step")
    with handler:
        for _ in range(10):
            handler.call_event("on_step")
    events = events_of(tmp_path / TIMELINE)
    check_nesting(one for one in events if one["name"] != "step")
    names = [one["name"] for one in events]
    assert names.count("step") == 9
    assert "wait: queue" in names


def test_an_exception_ends_the_parts_that_are_open(tmp_path: Path) -> None:
    handler = CallbacksHandler(timeline=True)
    handler.publish(tmp_path)
    for event in (Event.TRAIN_START, Event.EPOCH_START, Event.BATCH_START, Event.FORWARD_STEP_START):
        handler.call_event(event)
    handler.call_event(Event.EXCEPTION, exception=ValueError())
    handler.call_event(Event.TRAIN_START)
    handler.close()
    events = events_of(tmp_path / TIMELINE)
    check_nesting(events)
    parts = [one["name"] for one in events if one["ph"] == "X" and one["cat"] == "loop"]
    assert parts == ["forward", "batch", "epoch", "train", "train"]


def test_parts_whose_end_a_loop_never_fires_end_where_they_begin_anew() -> None:
    """Else each would be within the one before, and each event would look through all of them."""
    timeline = Timeline(pid=1, step="on_batch_end", offset=0)
    batch = [Event.BATCH_START, Event.BACKWARD_STEP_START, Event.OPTIMIZATION_STEP_START, Event.OPTIMIZATION_STEP_END]
    epoch = [Event.EPOCH_START, *3 * batch, Event.VALIDATION_START, *2 * [Event.BATCH_START]]
    fired = [Event.TRAIN_START, *2 * epoch, Event.VALIDATION_START, Event.TRAIN_END]
    events = timeline.notes(Note("event", str(event), float(at), float(at), 1) for at, event in enumerate(fired))
    check_nesting(events)
    parts = [(one["name"], one["ts"] / 1e9, one["dur"] / 1e6) for one in events if one["ph"] == "X"]
    assert [part for part in parts if part[0] in ("epoch", "validation", "train")] == [
        ("validation", 14, 3),  # the next epoch ends it
        ("epoch", 1, 16),
        ("validation", 30, 3),  # the next validation
        ("validation", 33, 1),
        ("epoch", 17, 17),
        ("train", 0, 34),
    ]
    assert [part for part in parts if part[0] == "batch"][:5] == [
        ("batch", 2, 4), ("batch", 6, 4), ("batch", 15, 1), ("batch", 16, 1), ("batch", 10, 7),
    ]  # fmt: skip
    assert timeline._open == {1: []}


def test_without_timeline_there_is_none_and_nobody_listens(tmp_path: Path) -> None:
    handler = CallbacksHandler([background(Log())])
    handler.publish(tmp_path)
    with handler:
        assert handler._pool.listeners == ()
        handler.call_event(Event.BATCH_END)
    assert not (tmp_path / TIMELINE).exists()


def test_a_name_or_error_that_is_no_text_ends_no_timeline(tmp_path: Path) -> None:
    file = TraceFile(tmp_path / "t.json.gz", append=False)
    file.write([{"name": "file-\udc80", "ph": "i", "ts": 1.0}])
    file.write([{"name": "next", "ph": "i", "ts": 2.0}])
    file.close()
    names = [one["name"] for one in read_trace(tmp_path / "t.json.gz")["traceEvents"]]
    assert names[:2] == ["file-\udc80", "next"]
    assert merge_traces([tmp_path / "t.json.gz"], tmp_path / "merged.json") >= 2


def test_what_is_forgotten_for_want_of_room_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tape, "LENGTH", 3)
    noted = tape.Tape({"on_batch_end"}, captures=False)
    for _ in range(5):
        noted.event("on_batch_end")
    assert noted.forgotten == 2
    assert len(noted.take()) == 3


def test_that_a_run_has_finished_is_written_before_what_its_timeline_is_behind_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a process that ends meanwhile would count as killed."""
    waits, goes_on = threading.Event(), threading.Event()
    add = Recording.add

    def slow(recording: Recording, *arguments: Any, ends: bool, **options: Any) -> None:
        if ends:
            waits.set()
            goes_on.wait(60)
        add(recording, *arguments, ends=ends, **options)

    monkeypatch.setattr(Recording, "add", slow)
    monkeypatch.setattr(publisher, "LAST_WORDS", 0.05)
    handler = CallbacksHandler([background(Log())], timeline=True)
    try:
        with handler:
            handler.publish(tmp_path)
            handler.call_event(Event.BATCH_END, loss=0.5)
        assert waits.wait(60)
        assert status.read(tmp_path / status.NAME).state == "finished"
    finally:
        goes_on.set()


def test_what_is_not_published_costs_the_loop_nothing() -> None:
    handler = CallbacksHandler([background(Log())])
    with handler:
        assert handler._tapes == handler._pool.listeners == handler._pool.waited.notebooks == ()
        handler.call_event(Event.FORWARD_STEP_START)
        assert handler._routes[Event.FORWARD_STEP_START] is None
        route = handler._routes[Event.BATCH_END]
        assert route is not None
        assert not route.boundary


def test_the_file_of_a_run_that_was_killed_is_whole(tmp_path: Path) -> None:
    code = (
        LOOP
        + """
handler = CallbacksHandler([background(Log())], timeline=True)
handler.publish("run")
for step in range(10**9):
    handler.call_event("on_batch_start")
    time.sleep(0.002)
    handler.call_event("on_batch_end", step=step)
"""
    )
    path = tmp_path / "run" / TIMELINE

    def count() -> int:
        return sum(one["name"] == "on_batch_end" for one in events_of(path)) if path.exists() else 0

    with running(code, tmp_path) as process:
        until(lambda: count() > 5)
        process.kill()
        process.wait()
    check_nesting(events_of(path))
    assert count() > 5


def test_the_file_is_whole_after_each_write_and_goes_on_after_a_resume(tmp_path: Path) -> None:
    path = tmp_path / TIMELINE
    file = TraceFile(path)
    assert [one["name"] for one in events_of(path)] == ["end"]
    for name in "ab":
        file.write([{"name": name, "ph": "i"}])
        assert events_of(path)[-2]["name"] == name
    file.close()
    TraceFile(path, append=True).write([{"name": "c", "ph": "i"}])
    assert [one["name"] for one in events_of(path)] == ["a", "b", "c", "end"]
    TraceFile(path).write([{"name": "d", "ph": "i"}])
    assert [one["name"] for one in events_of(path)] == ["d", "end"]


def test_a_file_takes_no_more_events_than_a_viewer_can_show(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trace_file, "EVENTS", 3)
    file = TraceFile(tmp_path / TIMELINE)
    file.write([{"name": "a"}] * 2)
    assert not file.full
    file.write([{"name": "b"}] * 2)
    assert file.full
    assert [one["name"] for one in events_of(tmp_path / TIMELINE)] == ["a", "a", "b", "end"]


def test_nor_does_it_after_resumes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trace_file, "EVENTS", 5)
    monkeypatch.setattr(trace_file, "_BLOCK", 7)
    for name, full in (("a", False), ("b", False), ("c", True), ("d", True)):
        file = TraceFile(tmp_path / TIMELINE, append=True)
        file.write([{"name": name}])
        file.write([{"name": name}])
        assert file.full == full
        file.close()
    assert [one["name"] for one in events_of(tmp_path / TIMELINE)] == ["a", "a", "b", "b", "c", "end"]


def test_what_cannot_be_written_now_is_written_later(tmp_path: Path) -> None:
    recording = Recording(tmp_path / "away" / TIMELINE, append=False, step="on_step")
    recording.add([Note("wait", "queue", 1.0, 2.0, 1)], {}, 2.0, ends=False)
    with pytest.raises(FileNotFoundError):
        recording.write()
    (tmp_path / "away").mkdir()
    recording.add([Note("wait", "fence", 3.0, 4.0, 1)], {}, 4.0, ends=False)
    recording.write()
    recording.add([Note("wait", "flush", 5.0, 6.0, 1)], {}, 6.0, ends=True)
    recording.write()
    waits = [one["name"] for one in events_of(tmp_path / "away" / TIMELINE) if one["ph"] == "X"]
    assert waits == ["wait: queue", "wait: fence", "wait: flush"]


def test_threads_that_fire_events_have_a_track_each(tmp_path: Path) -> None:
    notes = [Note("event", name, at, at, thread) for at, thread, name in [
        (1.0, 7, Event.BATCH_START), (1.5, 8, Event.BATCH_START), (2.0, 7, Event.BATCH_END), (3.0, 8, Event.BATCH_END),
    ]]  # fmt: skip
    made = Timeline(pid=1, step=Event.BATCH_END, offset=0).notes(notes)
    assert set(tracks(made)) == {"loop", "loop 2"}
    assert [(one["tid"] - LOOP_TRACK, one["dur"]) for one in made if one["ph"] == "X"] == [(0, 1e6), (1, 1.5e6)]


def test_torchs_profile_of_the_same_run_has_the_same_clock(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import torch

    handler = CallbacksHandler(timeline=True)
    handler.publish(tmp_path)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile, handler:
        torch.ones(2).sum()  # it is slow at first
        handler.call_event(Event.BATCH_START)
        with torch.profiler.record_function("mine"):
            time.sleep(0.2)
        handler.call_event(Event.BATCH_END)
    profile.export_chrome_trace(str(tmp_path / "torch.json"))
    merged = tmp_path / "merged.json.gz"
    assert (
        cli.main(["merge-traces", str(tmp_path / TIMELINE), str(tmp_path / "torch.json"), "--output", str(merged)]) == 0
    )
    assert "of 2 traces" in capsys.readouterr().out
    events = events_of(merged)
    batch = next(one for one in events if one["name"] == "batch")
    mine = next(one for one in events if one["name"] == "mine" and one["ph"] == "X")
    slack = 0.15e6  # µs; a wrong base would be days off, a wrong unit minutes
    assert abs(mine["ts"] - batch["ts"]) < slack
    assert mine["tid"] not in range(LOOP_TRACK, LANE_TRACK + 1000)


def test_what_is_no_trace_cannot_be_merged(tmp_path: Path) -> None:
    (tmp_path / "page.html").write_text("<p>")
    (tmp_path / "other.json").write_text('[{"name": "a", "ts": 1},')
    with pytest.raises(ConfigurationError, match=r"page\.html is no Chrome trace"):
        merge_traces([tmp_path / "page.html"], tmp_path / "out.json")
    with pytest.raises(ConfigurationError, match="what its times count from"):
        merge_traces([tmp_path / "other.json"], tmp_path / "out.json")
    assert read_trace(tmp_path / "other.json")["traceEvents"] == [{"name": "a", "ts": 1}]
    assert not (tmp_path / "out.json").exists()
