"""The page of ``async-trainer report``: self-contained, and everything that a run has said is escaped."""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from async_trainer.watching import since, status
from async_trainer.watching.report.charts import histogram, line_chart, plain_number, stacked_bar
from async_trainer.watching.report.gather import LEAVES, Found
from async_trainer.watching.report.style import STYLE
from async_trainer.watching.steps import PER_DECADE, quantile
from async_trainer.watching.units import duration, many, megabytes, seconds

LANES = 8  # in one chart
CURVES = 24  # of metrics
WIDE = 50.0  # the greatest over the least, from which on a metric is shown on a logarithmic axis


def page(found: Sequence[Found], title: str) -> str:
    """The HTML of a report."""
    body = "".join(_training(one) for one in found)
    made = datetime.datetime.now().astimezone().strftime("%Y-%m-%d %H:%M")
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">"
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head>"
        f"<body><main>{body}<footer>async-trainer report, {escape(made)}</footer></main></body></html>\n"
    )


def _training(found: Found) -> str:
    return "".join(
        [
            _header(found), _tiles(found), _time(found), _step_times(found), _lanes(found), _errors(found),
            _curves(found), _notes(found),
        ]
    )  # fmt: skip


def _header(found: Found) -> str:
    one = found.status
    started = datetime.datetime.fromtimestamp(one.said["started"]).astimezone().strftime("%Y-%m-%d %H:%M:%S")
    kind = "good" if one.good else "doubtful" if one.state == "stale" else "bad"
    facts = [f"started {started}", f"on {one.said['host']}", f"process {one.said['pid']}"]
    if model := found.config.get("model"):
        facts.insert(0, str(model))
    if torch := found.config.get("torch"):
        facts.append(f"torch {torch}")
    told = {
        "killed": "its process is gone, and has said nothing of its end",
        "stale": f"it has said nothing for {duration(one.age)}",
    }.get(one.state, "")
    return (
        f'<header><h1>{escape(found.name)} <span class="badge {kind}">{escape(one.state)}</span></h1>'
        f"<p>{escape(' · '.join(facts))}{escape(f' · {told}') if told else ''}</p></header>"
    )


def _tiles(found: Found) -> str:
    said = found.status.said
    lanes = said["lanes"].values()
    paid = sum(found.paid.values())
    progress = said["progress"]
    tiles = [("time", duration(found.seconds), "")]
    if progress:
        tiles.append(("epoch", f"{progress['epoch']}", f"of {progress['epochs']}"))
    tiles.append(("steps", many(found.steps), ""))
    if said["steps"]["median"] is not None:
        tiles.append(
            ("a step takes", seconds(said["steps"]["median"]), f"median; 99 % at most {seconds(said['steps']['p99'])}")
        )
    share = f"{100 * paid / found.seconds:.1f} % of its time" if found.seconds > 0 else ""
    tiles.append(("the loop paid", seconds(paid), share))
    delivered = sum(lane["delivered"] for lane in lanes)
    not_delivered = {word: sum(lane[word] for lane in lanes) for word in ("failed", "dropped", "lost")}
    wrong = ", ".join(f"{many(count)} {word}" for word, count in not_delivered.items() if count)
    queued = sum(lane["queued"] for lane in lanes)
    if found.status.state == "killed" and queued:
        wrong += f"{', ' if wrong else ''}{many(queued)} never handled"
    tiles.append(("delivered", many(delivered), wrong or "none failed, dropped or lost"))
    items = "".join(
        f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd><small>{escape(note)}</small></div>"
        for name, value, note in tiles
    )
    return f'<dl class="tiles">{items}</dl>'


def _time(found: Found) -> str:
    paid = {since.title(name): took for name, took in found.paid.items() if took > 0}
    rest = max(0.0, found.seconds - sum(paid.values()))
    bar = stacked_bar({"the loop itself": rest, **dict(sorted(paid.items(), key=lambda one: -one[1]))}, seconds)
    phases = found.status.said["loop"]["phases"]
    parts = {name: phases[name] for name in LEAVES if phases.get(name)}
    more = ""
    if parts and (whole := phases.get("train") or phases.get("epoch")):
        parts["all else (data, callbacks)"] = max(0.0, whole - sum(parts.values()))
        more = f"<h3>Its parts</h3>{stacked_bar(parts, seconds)}"
    return _section(
        "Where the loop's time went",
        "What callbacks cost the training thread: those that run inline, capturing for those in the background, and "
        "four waits. The rest is the loop itself: computing, loading data.",
        bar + more,
    )


def _step_times(found: Found) -> str:
    steps = found.status.said["steps"]
    classes = {int(place): count for place, count in steps["classes"].items()}
    if not classes:
        return ""
    lines = {
        "median of about a second": [(at, middle) for at, middle, _ in found.step_times],
        "longest": [(at, longest) for at, _, longest in found.step_times],
    }
    over_time = line_chart(
        lines, label="step times over the run", x_label="running time", x_format=duration, y_format=seconds, log=True,
        marks=found.resumed, faint=["longest"],
    )  # fmt: skip
    spread = histogram(classes, PER_DECADE, label="how often a step took how long", format=seconds)
    quantiles = ", ".join(
        f"{name} {seconds(value)}"
        for name, share in (("median", 0.5), ("90 %", 0.9), ("99 %", 0.99), ("99.9 %", 0.999))
        if (value := quantile(classes, share)) is not None
    )
    return _section(
        "Step times",
        f"From the end of a step to the end of the next ({steps['event']}): {quantiles}.",
        f'<div class="pair"><figure>{over_time}</figure><figure>{spread}</figure></div>',
    )


def _lanes(found: Found) -> str:
    lanes: Mapping[str, Any] = found.status.said["lanes"]
    if not lanes:
        return _section("Lanes", "There are none: all callbacks ran inline.", "")
    head = ("lane", "where", "delivered", "failed", "dropped", "lost", "queued", "in hooks", "at the end")
    rows = "".join(f"<tr>{_lane(name, lane, found)}</tr>" for name, lane in lanes.items())
    table = (
        f'<div class="wide"><table><thead><tr>{"".join(f"<th>{one}</th>" for one in head)}</tr></thead>'
        f"<tbody>{rows}</tbody></table></div>"
    )
    busiest = sorted(found.queued, key=lambda lane: -max((count for _, count in found.queued[lane]), default=0.0))
    shown = [lane for lane in busiest[:LANES] if any(count for _, count in found.queued[lane])]
    charts = ""
    if shown:
        titles = (("Events that wait", found.queued, plain_number), ("Age of the oldest event", found.ages, seconds))
        for title, lines, form in titles:
            chart = line_chart(
                {lane: lines[lane] for lane in shown}, label=title, x_label="running time", x_format=duration,
                y_format=form, from_zero=True, marks=found.resumed,
            )  # fmt: skip
            charts += f"<figure><figcaption>{title}</figcaption>{chart}</figure>"
        charts = f'<div class="pair below">{charts}</div>'
    memory = found.status.said["memory"]
    note = f"Snapshots held {megabytes(memory['snapshots'])} of {megabytes(memory['budget'])} at the end."
    return _section(
        "Lanes", f"A lane handles the events of a background callback, one at a time. {note}", table + charts
    )


def _lane(name: str, lane: Mapping[str, Any], found: Found) -> str:
    now = "idle"
    if lane["running"]:
        now = f"{'stalled in' if lane['stalled'] else 'in'} {lane['running']}, for {seconds(lane['seconds'])}"
    if lane["restarts"]:
        now += f", restarted {lane['restarts']} times"
    cells = [f"<td>{escape(name)}</td><td>{escape(lane['placement'])}</td>"]
    for key in ("delivered", "failed", "dropped", "lost", "queued"):
        wrong = ' class="wrong"' if lane[key] and key in ("failed", "dropped", "lost") else ""
        cells.append(f"<td{wrong}>{many(lane[key])}</td>")
    took = seconds(lane["hook_seconds"]) if lane["hook_seconds"] else "–"
    stuck = ' class="wrong"' if lane["stalled"] else ""
    return "".join(cells) + f"<td>{took}</td><td{stuck}>{escape(now)}</td>"


def _errors(found: Found) -> str:
    errors = found.status.said["errors"]
    if not errors:
        return ""
    items = "".join(map(_error, errors))
    return _section("Failures", "Of background callbacks: the first of each kind.", items)


def _error(one: Mapping[str, Any]) -> str:
    where = f" at {one['where']}" if one["where"] else ""
    times = f" <i>{many(one['count'])} times</i>" if one["count"] > 1 else ""
    return (
        f"<details><summary><b>{escape(one['callback'])}.{escape(one['event'])}</b>{escape(where)}: "
        f"{escape(one['what'])}{times}</summary><pre>{escape(one['traceback'])}</pre></details>"
    )


def _curves(found: Found) -> str:
    if not found.curves:
        return ""
    charts = []
    names = sorted(found.curves, key=lambda name: (not name.startswith("loss"), name.startswith("lr"), name))
    for name in names[:CURVES]:
        lines = {where: sorted(line) for where, line in sorted(found.curves[name].items())}
        chart = line_chart(
            lines, label=name, x_label="epoch" if found.by_epoch else "step", log=_is_wide(lines),
            faint=["training"] if len(lines) > 1 else [],
        )  # fmt: skip
        last = ", ".join(f"{where} {plain_number(line[-1][1])}" for where, line in lines.items())
        charts.append(
            f"<figure><figcaption>{escape(name)} <small>at last: {escape(last)}</small></figcaption>{chart}</figure>"
        )
    more = f" {len(names) - CURVES} more are in its files." if len(names) > CURVES else ""
    return _section("Metrics", f"As the run has written them.{more}", f'<div class="pair">{"".join(charts)}</div>')


def _is_wide(lines: Mapping[str, Sequence[tuple[float, float]]]) -> bool:
    """Whether values range over so much that a linear axis would show the first of them only."""
    values = [y for line in lines.values() for _, y in line]
    return min(values) > 0 and max(values) > WIDE * min(values)


def _notes(found: Found) -> str:
    notes = [f"Not read: {one}" for one in found.unread]
    if forgotten := found.status.said.get("forgotten"):
        notes.append(f"{forgotten} notes of the loop came faster than they could be read: counts and times lack these.")
    if found.status.said["timeline"]:
        full = " It is full, and ends before the run does." if found.status.said["timeline_full"] else ""
        notes.insert(0, f"The run's timeline is in {status.TIMELINE}: open it at ui.perfetto.dev.{full}")
    return f'<ul class="notes">{"".join(f"<li>{escape(one)}</li>" for one in notes)}</ul>' if notes else ""


def _section(title: str, text: str, content: str) -> str:
    return f"<section><h2>{escape(title)}</h2><p>{escape(text)}</p>{content}</section>"
