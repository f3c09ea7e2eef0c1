"""Who gets what, captured how, and what it costs."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass

from async_trainer.attach import Attached
from async_trainer.proxy import Proxied
from async_trainer.routes import Route
from async_trainer.runtime.stats import html_table, megabytes, text_table

logger = logging.getLogger("async_trainer")
DEAR = 1e-3  # s: a capture that takes longer is worth a word, once such have taken a second in all


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


def tell_costs(route: Route) -> None:
    """Say once what capturing an event costs the loop, if that is much for each, and what can be done. The training
    thread."""
    route.tell_at = float("inf")
    each = _later(route) if route.captures > 1 else 0.0
    if each < DEAR:
        return
    big = sorted(((nbytes, name) for name, (_, nbytes) in route.observed.items() if nbytes), reverse=True)
    hooks = ", ".join(task.where_called for task in route.tasks)
    logger.warning(
        "capturing %s has cost the loop %.1f s so far, %.1f ms each time, for %s%s. Capture it less often (every=, "
        "when=), or only what is needed (select=); handler.explain() shows who gets what",
        route.event, route.seconds, each * 1e3, hooks,
        f" ({', '.join(f'{name}: {megabytes(nbytes)}' for nbytes, name in big)})" if big else "",
    )  # fmt: skip


def _later(seen: Route | Proxied) -> float:
    """Seconds of a capture; the first one, which imports what copies its types, left out."""
    return (seen.seconds - seen.skipped - seen.first) / (seen.captures - 1)


def _cost(seen: Route | Proxied) -> str:
    if not seen.captures:
        return "not captured yet"
    if seen.captures == 1:
        return f"{seen.first * 1e6:.0f} µs to capture, the first time"
    overlap = ", the rest while the training goes on" if getattr(seen, "overlaps", False) else ""
    return f"{_later(seen) * 1e6:.0f} µs to capture{overlap}"


def _gets(name: str, route: Route, select: object) -> str:
    if isinstance(select, dict) and name in select:
        return f"{name}: " + ("None (select)" if select[name] is None else "what select returns")
    if name not in route.observed:
        return name
    how, nbytes = route.observed[name]
    return f"{name}: {how}" + (f", {megabytes(nbytes)}" if nbytes else "")
