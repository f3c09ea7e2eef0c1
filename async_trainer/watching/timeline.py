"""Timeline: what was noted of a run, as events of a Chrome trace. Pure: what comes in goes out in another form."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from async_trainer.events import Event
from async_trainer.runtime.listening import LaneEvent
from async_trainer.watching.tape import Note

_OTHER_ENDS: Mapping[str, str] = {
    Event.RESUME: Event.TRAIN_END,
    Event.FORWARD_STEP_START: Event.BACKWARD_STEP_START,
    Event.EVALUATION_STEP_START: Event.METRICS_COMPUTATION_START,
}


def _phases() -> dict[str, tuple[str, str]]:
    found = {Event.RESUME.value: ("train", Event.TRAIN_END.value)}
    for event in Event:
        stem = event.value.removeprefix("on_").removesuffix("_start")
        end = _OTHER_ENDS.get(event, f"on_{stem}_end")
        if event.endswith("_start") and end in set(Event):
            found[event.value] = (stem.removesuffix("_step").replace("_", " "), str(end))
    return found


PHASES: Mapping[str, tuple[str, str]] = _phases()
"""By the event that begins it: a part of the loop, and the event that ends it."""

LOOPS = frozenset({"train", "epoch", "validation", "validate", "test"})
"""The parts in which others come again and again."""

LOOP_TRACK = 900_000_000
LANE_TRACK = 900_001_000
"""Numbers of the first tracks: as no thread has them, so that a trace of torch's own threads can be merged in."""

Chrome = dict[str, Any]


class Timeline:
    """Turns notes of threads that fire events, and what lanes did, into the events of a Chrome trace; but for ``ts``,
    which is Unix time in ns, and so exact.

    A track for each such thread: the parts of the loop, and within them inline hooks, captures and waits; and one for
    each lane: its hooks, and the barriers that it came to.

    Args:
        pid: the process.
        step: the event that ends a step, in loops that fire no ``on_batch_start``.
        offset: ns, to be added to times of ``perf_counter`` to have Unix time.

    Attributes:
        phases: seconds by part of the loop, in all.
    """

    def __init__(self, *, pid: int, step: str, offset: int) -> None:
        self.phases: dict[str, float] = {}
        self._pid = pid
        self._step = step
        self._offset = offset
        self._tracks: dict[str | int, int] = {}
        self._open: dict[int, list[tuple[str, float, str]]] = {}  # by thread: parts under way: name, began, its end
        self._stepped: dict[int, float] = {}  # by thread: when its last step ended

    def notes(self, notes: Iterable[Note]) -> list[Chrome]:
        """What ``notes`` add to the trace."""
        made: list[Chrome] = []
        for note in notes:
            track = self._track(note.thread, made)
            if note.kind == "event":
                self._event(note, track, made)
            elif note.kind == "barrier":
                made.append({**self._at("barrier", "barrier", track, note.began), "ph": "i", "s": "p"})
            else:
                name = {"inline": f"inline hooks: {note.name}", "capture": f"capture: {note.name}"}.get(note.kind)
                made.append(self._slice(name or f"wait: {note.name}", note.kind, track, note.began, note.ended))
        return made

    def lane_events(self, events: Iterable[LaneEvent]) -> list[Chrome]:
        """What ``events`` add to the trace."""
        made: list[Chrome] = []
        for one in events:
            track = self._track(one.lane, made, one.placement)
            name = one.hook if one.callback in (one.lane, "") else f"{one.callback}.{one.hook}"
            if one.kind == "stalled":
                made.append({**self._at(f"stalled: {name}", "stalled", track, one.ended), "ph": "i", "s": "t"})
                continue
            if one.kind == "passed":
                made.append(self._slice("barrier", "barrier", track, one.began, one.ended))
                continue
            arguments: dict[str, Any] = {"event": one.seq, "waited_ms": round(1e3 * (one.began - one.emitted), 3)}
            if one.error is not None:
                arguments["error"] = said(one.error)
            made.append({**self._slice(name, one.kind, track, one.began, one.ended), "args": arguments})
        return made

    def queues(self, queued: Mapping[str, int], now: float) -> list[Chrome]:
        """How many events wait in each lane."""
        return [
            {**self._at(f"queued: {lane}", "lane", 0, now), "ph": "C", "args": {"events": count}}
            for lane, count in queued.items()
        ]

    def end(self, now: float) -> list[Chrome]:
        """The parts of the loop that are under way end here, as far as it is known."""
        made: list[Chrome] = []
        for thread, stack in self._open.items():
            while stack:
                self._close(stack, self._tracks[thread], now, made)
        return made

    def _event(self, note: Note, track: int, made: list[Chrome]) -> None:
        stack = self._open.setdefault(note.thread, [])
        ends = [place for place, (_, _, end) in enumerate(stack) if end == note.name]
        outermost = 0 if note.name == Event.EXCEPTION else ends[-1] if ends else len(stack)
        while len(stack) > outermost:  # with what an exception has left open in it
            self._close(stack, track, note.began, made)
        if note.name in PHASES:
            name, end = PHASES[note.name]
            unended = self._unended(stack, name)
            while len(stack) > unended:
                self._close(stack, track, note.began, made)
            stack.append((name, note.began, end))
        elif note.name == self._step and not ends:
            if note.thread in self._stepped:
                made.append(self._slice("step", "loop", track, self._stepped[note.thread], note.began))
            self._stepped[note.thread] = note.began
        elif not ends and note.name != Event.EXCEPTION:
            made.append({**self._at(note.name, "event", track, note.began), "ph": "i", "s": "t"})

    def _unended(self, stack: list[tuple[str, float, str]], name: str) -> int:
        """The place in ``stack`` of a part that is over, as it begins anew, and whose end the loop never fires."""
        for place in reversed(range(len(stack))):
            if stack[place][0] == name:
                return place
            if stack[place][0] in LOOPS and name not in LOOPS:  # as the batches of a validation in a batch
                break
        return len(stack)

    def _close(self, stack: list[tuple[str, float, str]], track: int, now: float, made: list[Chrome]) -> None:
        name, began, _ = stack.pop()
        self.phases[name] = self.phases.get(name, 0.0) + now - began
        made.append(self._slice(name, "loop", track, began, now))

    def _slice(self, name: str, category: str, track: int, began: float, ended: float) -> Chrome:
        took = max(0, self._unix(ended) - self._unix(began))
        return {**self._at(name, category, track, began), "ph": "X", "dur": took / 1e3}

    def _at(self, name: str, category: str, track: int, at: float) -> Chrome:
        return {"name": name, "cat": category, "pid": self._pid, "tid": track, "ts": self._unix(at)}

    def _unix(self, at: float) -> int:
        """In whole ns: of two slices that end at the same time, neither sticks out of the other."""
        return round(1e9 * at) + self._offset

    def _track(self, of: str | int, made: list[Chrome], placement: str = "") -> int:
        """The track of a thread or a lane; a new one is named."""
        if of in self._tracks:
            return self._tracks[of]
        base, title = (LOOP_TRACK, "loop") if isinstance(of, int) else (LANE_TRACK, f"lane {of} ({placement})")
        number = sum(isinstance(one, type(of)) for one in self._tracks)
        self._tracks[of] = track = base + number
        title = f"{title} {number + 1}" if isinstance(of, int) and number else title
        for what, argument in (
            ("thread_name", {"name": title}),
            ("thread_sort_index", {"sort_index": track - 2 * base}),
        ):
            made.append({"name": what, "ph": "M", "pid": self._pid, "tid": track, "args": argument})
        return track


def said(error: BaseException) -> str:
    """``"ValueError: no colour"``."""
    try:
        return f"{type(error).__name__}: {error}"
    except Exception:  # its __str__ fails too
        return type(error).__name__
