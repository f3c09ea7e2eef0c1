"""What ``async-trainer watch`` shows of a status, with rich. It fits 80 columns, and shows more where
there are 100."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from async_trainer.watching import since
from async_trainer.watching.status import Status, split_number
from async_trainer.watching.units import brief, duration, many, megabytes, seconds

CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]+")
STYLES = {"running": "bold green", "finished": "bold green", "stale": "bold yellow"}
SHOWN = 5  # kinds of failure
OTHER_LINES = 12  # of the picture of a run, at most, that are neither lanes nor failures
TIE = "\x00"  # a space that no line ends at
WIDE = 100  # columns of the terminal


def picture(shown: Sequence[Status], width: int, height: int | None = None) -> RenderableType:
    """The picture of runs, one below the other, on a terminal of ``width`` columns; where its ``height``, in lines, is
    too little for all lanes, idle ones give way."""
    parts: list[RenderableType] = []
    others = sum(OTHER_LINES + min(len(one.said["errors"]), SHOWN) for one in shown)
    room = max(1, (height - others) // len(shown)) if height is not None and shown else None
    for status in shown:
        parts += [Text(""), *_run(status, width, room)] if parts else _run(status, width, room)
    return Group(*parts)


def _run(status: Status, width: int, room: int | None) -> list[RenderableType]:
    said = status.said
    parts: list[RenderableType] = [_headline(status)]
    if status.state == "killed":
        parts.append(Text("its process is gone, and has said nothing of its end", style="red"))
    elif status.state == "stale":
        parts.append(Text(f"it has said nothing for {duration(status.age)}", style="yellow"))
    parts += [_steps(said), Text(""), _lanes(status, room, wide=width >= WIDE), Text(""), _paid(said, width)]
    if said["errors"]:
        parts += [Text(""), *_errors(said["errors"])]
    return parts


def _headline(status: Status) -> Text:
    folder = status.path.absolute().parent
    split = split_number(status.path) >= 0
    line = Text().append(plain(f"{folder.parent.name}/{folder.name}" if split else folder.name), style="bold")
    line.append("  ")
    line.append(status.state, style=STYLES.get(status.state, "bold red"))
    line.append(f" after {duration(status.seconds)}" if status.over else f" for {duration(status.seconds)}")
    progress = status.said["progress"]
    if progress:
        line.append(f"  epoch {progress['epoch']} of {progress['epochs']}")
        of = f" of {progress['batches']}" if progress["batches"] else ""
        line.append(f", batch {progress['batch']}{of}")
    return line


def _steps(said: Mapping[str, Any]) -> Text:
    steps = said["steps"]
    if not steps["count"]:
        return Text(f"no step yet ({plain(steps['event'])})", style="dim")
    least = "at least " if said.get("forgotten") else ""  # of a loop that is faster than what notes it
    line = Text(f"{least}{many(steps['count'])} steps")
    if steps["median"] is not None:
        line.append(f", the median takes {seconds(steps['median'])}, 99 % at most {seconds(steps['p99'])}", style="dim")
    return line


def _lanes(status: Status, room: int | None, *, wide: bool) -> RenderableType:
    lanes = status.said["lanes"]
    chosen = sorted(lanes, key=lambda name: _is_idle(lanes[name]))[:room]  # in their order, then
    if not lanes:
        return Text("no lanes: all callbacks are inline", style="dim")
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False, expand=False)
    table.add_column("lane", max_width=24 if wide else 16)  # where the room is short it gives way, and what is now
    if wide:
        table.add_column("where", no_wrap=True)
    table.add_column("queued", justify="right", no_wrap=True)
    table.add_column("oldest", justify="right", no_wrap=True)
    if wide:
        table.add_column("in hooks", justify="right", no_wrap=True)
    table.add_column("now")
    for count in ("failed", "dropped", "lost"):
        table.add_column(count, justify="right", no_wrap=True)
    for name, lane in lanes.items():
        if name not in chosen:
            continue
        waits = lane["queued"] or lane["running"]
        full = lane["queued"] >= lane["size"]
        where, took = Text(lane["placement"]), Text(brief(lane["hook_seconds"]) if lane["hook_seconds"] else "")
        table.add_row(
            Text(plain(name), no_wrap=True, overflow="ellipsis"),
            *([where] if wide else []),
            Text(many(lane["queued"]), style="bold yellow" if full else "" if lane["queued"] else "dim"),
            Text(brief(lane["age"]) if waits else ""),
            *([took] if wide else []),
            _now(lane, status),
            *(Text(many(lane[key]), style="bold red" if lane[key] else "dim") for key in ("failed", "dropped", "lost")),
        )
    left = len(lanes) - len(chosen)
    return Group(table, Text(f"and {left} more, for which there is no room", style="dim")) if left else table


def _is_idle(lane: Mapping[str, Any]) -> bool:
    return not (lane["running"] or any(lane[count] for count in ("queued", "failed", "dropped", "lost")))


def _now(lane: Mapping[str, Any], status: Status) -> Text:
    what = f"{brief(lane['seconds'])} in {plain(lane['running'])}" if lane["running"] else "idle"
    style = "" if lane["running"] else "dim"
    if status.state == "killed" and lane["running"]:
        what, style = f"was in {plain(lane['running'])}", "red"
    elif lane["stalled"]:
        what, style = f"stalled {what}", "bold red"
    elif lane["restarts"]:
        what += f", restarted {lane['restarts']}"
    return Text(what, style=style, no_wrap=True, overflow="ellipsis")


def _paid(said: Mapping[str, Any], width: int) -> Text:
    loop, memory = said["loop"], said["memory"]
    paid = {name: took for name, took in loop["paid"].items() if took >= 0.0005}
    total = sum(paid.values())
    share = f" ({100 * total / loop['seconds']:.1f} %)" if loop["seconds"] > 0 else ""
    listed = sorted(paid.items(), key=lambda one: -one[1])
    parts = ", ".join(f"{since.title(name)} {seconds(took)}".replace(" ", TIE) for name, took in listed)
    told = f"the loop paid {seconds(total)}{share}{': ' if parts else ''}{parts}"
    line = Text("\n".join(textwrap.wrap(told, width)).replace(TIE, " "))
    line.stylize("bold", len("the loop paid "), len(f"the loop paid {seconds(total)}{share}"))
    held = f"\nsnapshots hold {megabytes(memory['snapshots'])} of {megabytes(memory['budget'])}"
    kept = f", hooks keep {megabytes(memory['kept'])}" if memory["kept"] else ""
    line.append(held + kept, style="dim")
    return line


def _errors(errors: Sequence[Mapping[str, Any]]) -> list[RenderableType]:
    lines: list[RenderableType] = []
    for error in errors[:SHOWN]:
        line = Text(overflow="ellipsis", no_wrap=True).append(
            plain(f"{error['callback']}.{error['event']}"), style="red"
        )
        times = f" ({error['count']} times)" if error["count"] > 1 else ""
        where = f" at {plain(error['where'])}" if error["where"] else ""
        line.append(f"{times}{where}: {plain(error['what'])}")
        lines.append(line)
    if len(errors) > SHOWN:
        lines.append(Text(f"and {len(errors) - SHOWN} more kinds of failure", style="red"))
    return lines


def plain(text: str) -> str:
    """``text`` without what would drive the terminal."""
    return CONTROL.sub(" ", text)
