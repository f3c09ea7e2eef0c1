"""Charts, drawn as SVG by hand: they need no library, no script, and follow the page's colours."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from html import escape

from async_trainer.watching.units import many

COLOURS = ("--c0", "--c1", "--c2", "--c3", "--c4", "--c5", "--c6", "--c7")
WIDTH, HEIGHT = 560, 220
LEFT, RIGHT, TOP, BOTTOM = 58, 12, 12, 34
POINTS = 500  # of a line: more than its pixels tell nothing

Line = Sequence[tuple[float, float]]
Format = Callable[[float], str]


def plain_number(value: float) -> str:
    """``0.25``, ``12,000``, ``1.5e-07``."""
    if value and not 1e-3 <= abs(value) < 1e6:
        return f"{value:.3g}"
    return many(int(value)) if value == int(value) else f"{value:.4g}"


def line_chart(
    lines: Mapping[str, Line], *, label: str, x_label: str, x_format: Format = plain_number,
    y_format: Format = plain_number, log: bool = False, from_zero: bool = False, marks: Sequence[float] = (),
    faint: Sequence[str] = (),
) -> str:  # fmt: skip
    """Lines over one x axis.

    Args:
        lines: by name: points, in order of x.
        label: what the chart shows, for those who can't see it.
        x_label: below the axis.
        x_format: of the numbers at the x axis.
        y_format: of the numbers at the y axis.
        log: a logarithmic y axis, if all values are positive.
        from_zero: the y axis begins at 0.
        marks: x of upright lines.
        faint: lines in the background.
    """
    lines = {name: thinned(line) for name, line in lines.items() if line}
    points = [point for line in lines.values() for point in line]
    if not points:
        return '<p class="none">nothing was recorded</p>'
    log = log and all(y > 0 for _, y in points)
    low, high = min(y for _, y in points), max(y for _, y in points)
    low = min(low, 0.0) if from_zero else low
    ticks = log_ticks(low, high) if log else nice_ticks(low, high)
    low, high = min(low, ticks[0]), max(high, ticks[-1])
    first, last = min(x for x, _ in points), max(x for x, _ in points)
    if last <= first:
        last = first + 1.0

    def across(x: float) -> float:
        return LEFT + (x - first) / (last - first) * (WIDTH - LEFT - RIGHT)

    def up(y: float) -> float:
        share = math.log(y / low) / math.log(high / low) if log else (y - low) / (high - low)
        return HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM)

    parts = [_head(label)]
    for y in ticks:
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{up(y):.1f}" y2="{up(y):.1f}"/>')
        parts.append(f'<text class="y" x="{LEFT - 6}" y="{up(y) + 3.5:.1f}">{escape(y_format(y))}</text>')
    parts += [
        f'<text class="x" x="{across(x):.1f}" y="{HEIGHT - BOTTOM + 15}">{escape(x_format(x))}</text>'
        for x in nice_ticks(first, last)
        if first <= x <= last
    ]
    parts.append(f'<text class="label" x="{WIDTH - RIGHT}" y="{HEIGHT - 3}">{escape(x_label)}</text>')
    parts += [
        f'<line class="mark" x1="{across(x):.1f}" x2="{across(x):.1f}" y1="{TOP}" y2="{HEIGHT - BOTTOM}"/>'
        for x in marks
        if first <= x <= last
    ]
    for number, (name, line) in enumerate(lines.items()):
        colour = f"var({COLOURS[number % len(COLOURS)]})"
        kind = "faint" if name in faint else "line"
        if len(line) == 1:
            parts.append(
                f'<circle cx="{across(line[0][0]):.1f}" cy="{up(line[0][1]):.1f}" r="3" fill="{colour}">'
                f"<title>{escape(name)}</title></circle>"
            )
            continue
        path = " ".join(f"{across(x):.1f},{up(y):.1f}" for x, y in line)
        parts.append(
            f'<polyline class="{kind}" stroke="{colour}" points="{path}"><title>{escape(name)}</title></polyline>'
        )
    return "".join(parts) + "</svg>" + (legend(list(lines)) if len(lines) > 1 else "")


def histogram(classes: Mapping[int, int], per_decade: int, *, label: str, format: Format) -> str:  # noqa: A002
    """How many values there are in each class, over a logarithmic axis.

    Args:
        classes: class ``n`` has values from ``10 ** (n / per_decade)`` on.
        per_decade: classes in a power of ten.
        label: what the chart shows, for those who can't see it.
        format: of the numbers at the axis.
    """
    if not classes:
        return '<p class="none">nothing was recorded</p>'
    first, last = min(classes) - 1, max(classes) + 2
    if last - first < per_decade // 2:
        first, last = first - per_decade // 4, last + per_decade // 4
    most = max(classes.values())
    width = (WIDTH - LEFT - RIGHT) / (last - first)
    ticks = [y for y in nice_ticks(0, most) if y == int(y)]
    top = max(most, ticks[-1])

    def up(y: float) -> float:
        return HEIGHT - BOTTOM - y / top * (HEIGHT - TOP - BOTTOM)

    parts = [_head(label)]
    for y in ticks:
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{up(y):.1f}" y2="{up(y):.1f}"/>')
        parts.append(f'<text class="y" x="{LEFT - 6}" y="{up(y) + 3.5:.1f}">{escape(plain_number(y))}</text>')
    for place, count in classes.items():
        x, value = LEFT + (place - first) * width, 10.0 ** ((place + 0.5) / per_decade)
        parts.append(
            f'<rect x="{x + 0.5:.1f}" y="{up(count):.1f}" width="{max(1.0, width - 1):.1f}" '
            f'height="{HEIGHT - BOTTOM - up(count):.1f}" fill="var(--c0)"><title>about {escape(format(value))}: '
            f"{many(count)}</title></rect>"
        )
    for x in _log_places(first, last, per_decade):
        at = LEFT + (x * per_decade - first) * width
        parts.append(f'<text class="x" x="{at:.1f}" y="{HEIGHT - BOTTOM + 15}">{escape(format(10.0**x))}</text>')
    return "".join(parts) + "</svg>"


def _log_places(first: int, last: int, per_decade: int) -> list[float]:
    """Powers of ten for the ticks of a histogram's axis, between its ends."""
    decades = range(first // per_decade, last // per_decade + 1)
    steps = (1, 2, 5) if last - first < 3 * per_decade else (1,)
    places = [decade + math.log10(step) for decade in decades for step in steps]
    return [place for place in places if first <= place * per_decade <= last]


def stacked_bar(shares: Mapping[str, float], format: Format) -> str:  # noqa: A002
    """One bar, in parts as long as their shares, with a legend that says what they are."""
    total = sum(shares.values())
    if total <= 0:
        return '<p class="none">nothing was recorded</p>'
    names = list(shares)
    parts = "".join(
        f'<span style="width:{100 * shares[name] / total:.3f}%;background:var({COLOURS[place % len(COLOURS)]})" '
        f'title="{escape(name)}: {escape(format(shares[name]))}"></span>'
        for place, name in enumerate(names)
    )
    notes = [f"{format(shares[name])}, {100 * shares[name] / total:.1f} %" for name in names]
    return f'<div class="bar">{parts}</div>{legend(names, notes)}'


def legend(names: Sequence[str], notes: Sequence[str] = ()) -> str:
    """What each colour stands for."""
    items = "".join(
        f'<li><i style="background:var({COLOURS[place % len(COLOURS)]})"></i>{escape(name)}'
        + (f" <b>{escape(notes[place])}</b>" if notes else "")
        + "</li>"
        for place, name in enumerate(names)
    )
    return f'<ul class="legend">{items}</ul>'


def thinned(line: Line) -> Line:
    """``line`` with at most ``2 * POINTS`` points: of each stretch the lowest and the highest."""
    if len(line) <= 2 * POINTS:
        return line
    size = math.ceil(len(line) / POINTS)
    kept: list[tuple[float, float]] = []
    for start in range(0, len(line), size):
        stretch = line[start : start + size]
        ends = {min(stretch, key=lambda point: point[1]), max(stretch, key=lambda point: point[1])}
        kept += sorted(ends)
    return kept


def nice_ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Round numbers from ``low`` or below to ``high`` or above."""
    if high <= low:
        margin = abs(low) * 0.1 or 1.0
        low, high = low - margin, high + margin
    raw = (high - low) / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= raw * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(step * place, 12) if abs(step) > 1e-9 else step * place for place in range(first, last + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """Powers of ten, or also their double and fivefold where there are few, around ``low`` and ``high``."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    steps = (1, 2, 5) if last - first <= 2 else (1,)
    ticks = [step * 10.0**power for power in range(first, last + 1) for step in steps]
    below = [tick for tick in ticks if tick <= low * 1.001][-1:]
    above = [tick for tick in ticks if tick >= high * 0.999][:1]
    found = sorted({*below, *(tick for tick in ticks if low < tick < high), *above})
    return found if len(found) > 1 else [found[0] / 2, found[0] * 2]


def _head(label: str) -> str:
    return f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(label)}">'
