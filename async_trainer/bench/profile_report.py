"""What ``async-trainer profile`` prints: a row per hook, a row per placement, and the advice."""

from __future__ import annotations

from collections.abc import Sequence
from textwrap import shorten

from async_trainer.bench.profiled import PLAIN, Profile
from async_trainer.bench.watched import Spent
from async_trainer.runtime.stats import megabytes, text_table

WIDTH = 120  # characters of why it can't run somewhere


def text(profile: Profile) -> str:
    """The tables of one callback."""
    parts = [_hooks(profile), _placements(profile)]
    parts.append(f"{profile.name}: run it {_where(profile.advice.placement)}: {profile.advice.why}")
    return "\n\n".join(parts)


def _where(placement: str) -> str:
    return "inline" if placement == "inline" else f"in a {placement}" if placement != "task" else "as a task"


def _hooks(profile: Profile) -> str:
    """What each hook takes, and what its event costs the training thread where the hook runs elsewhere."""
    inline = profile.runs.get("inline")
    elsewhere = [one for one in profile.runs if one not in (PLAIN, "inline")]
    head = ("hook", "calls", "takes", "computes", "waits", *(f"loop pays: {one}" for one in elsewhere), "captured")
    events = list(inline.hooks) if inline is not None and not inline.problem else []
    events = events or sorted({event for one in elsewhere for event in profile.runs[one].captured})
    rows: list[Sequence[str]] = [head]
    for event in events:
        spent = inline.hooks.get(event) if inline is not None else None
        calls = spent.calls if spent else max(profile.runs[one].events.get(event, Spent()).calls for one in elsewhere)
        if not calls:
            continue
        own = (duration(spent.each), f"{spent.busy:.0%}", f"{1 - spent.busy:.0%}") if spent else ("", "", "")
        paid = [_paid(profile, one, event) for one in elsewhere]
        nbytes = max((profile.runs[one].captured.get(event, 0) for one in elsewhere), default=0)
        captured = megabytes(nbytes) if nbytes else "small"
        rows.append((f"{profile.name}.{event}", str(calls), *own, *paid, captured if elsewhere else ""))
    return text_table(rows, right=range(1, len(head)))


def _paid(profile: Profile, placement: str, event: str) -> str:
    run = profile.runs[placement]
    return "" if run.problem or event not in run.events else duration(run.events[event].each)


def _placements(profile: Profile) -> str:
    rows: list[Sequence[str]] = [("where it runs", "step", "x plain", "the loop", "all handled", "")]
    for placement, run in profile.runs.items():
        if run.problem:
            rows.append((placement, "", "", "", "", shorten(run.problem.splitlines()[0], WIDTH, placeholder=" ...")))
            continue
        slower = profile.slowdown(placement)
        waited = f"of it {duration(run.waited)} for a full queue" if run.waited > 1e-3 else ""
        rows.append(
            (placement, duration(run.step), f"{slower:.2f}", duration(run.seconds), duration(run.handled), waited)
        )
    return text_table(rows, right=range(1, 5))


def duration(seconds: float) -> str:
    """``"12.3 µs"``, ``"4.56 ms"``, ``"7.89 s"``."""
    for unit, size in (("s", 1.0), ("ms", 1e-3)):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}" if seconds < 1000 * size else f"{seconds / size:,.0f} {unit}"
    return f"{seconds * 1e6:.3g} µs"
