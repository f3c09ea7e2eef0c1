"""Who gets what, captured how, and what it costs."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from async_trainer.attach import Attached
from async_trainer.proxy import Proxied
from async_trainer.routes import Route
from async_trainer.runtime.stats import html_table, megabytes, text_table


@dataclass(frozen=True, slots=True)
class Explanation:
    """A table, a row per hook. Prints as text, shows as HTML in a notebook."""

    rows: tuple[tuple[str, ...], ...]

    def __str__(self) -> str:
        return text_table(self.rows)

    def _repr_html_(self) -> str:
        return html_table(self.rows)


def explain(attached: Iterable[Attached], routes: Iterable[Route], proxied: Iterable[Proxied] = ()) -> Explanation:
    """The table for ``attached`` and ``proxied``; what is captured how is known once an event has come."""
    by_event = {route.event: route for route in routes}
    rows: list[tuple[str, ...]] = [("callback", "event", "where", "gets", "loop time per event")]
    for one in attached:
        for event, hook in one.hooks.items():
            route = by_event[event]
            rest = ["plain values"] if hook.catches_all else []
            if one.lane is None:
                rows.append((one.name, event, one.why, ", ".join([*hook.names, *rest]) + " (live)", "all of the hook"))
                continue
            select = (one.options.select if one.options else None) or {}
            gets = [_gets(name, route, select) for name in hook.names if name != "event"]
            rows.append((one.name, event, one.why, "; ".join([*gets, *rest]) or "nothing", _cost(route)))
    rows += [(home.name, "calls", home.why, "their arguments", _cost(home)) for home in proxied]
    return Explanation(tuple(rows))


def _cost(seen: Route | Proxied) -> str:
    if not seen.captures:
        return "not captured yet"
    if seen.captures == 1:
        return f"{seen.first * 1e6:.0f} µs to capture, the first time"
    later = (seen.seconds - seen.skipped - seen.first) / (seen.captures - 1)  # the first imports what copies its types
    return f"{later * 1e6:.0f} µs to capture"


def _gets(name: str, route: Route, select: object) -> str:
    if isinstance(select, dict) and name in select:
        return f"{name}: " + ("None (select)" if select[name] is None else "what select returns")
    if name not in route.observed:
        return name
    how, nbytes = route.observed[name]
    return f"{name}: {how}" + (f", {megabytes(nbytes)}" if nbytes else "")
