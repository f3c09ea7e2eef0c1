"""Background callbacks that hold the run's own weights: refused at the first event that shows it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from async_trainer.attach import Attached
from async_trainer.errors import ConfigurationError
from async_trainer.snapshot import held_by


def refuse_holders(attached: Iterable[Attached], arguments: Iterable[Any]) -> None:
    """Refuse a background callback that holds a model or an optimizer (or a part of one) that ``arguments`` show.

    Raises:
        ConfigurationError: names the callback and the attribute.
    """
    live = list(_trained(arguments))
    for one in attached if live else ():
        path = held_by(one.callback, live) if one.lane is not None else None
        if path is not None:
            raise ConfigurationError(
                f"{one.name} runs in the background, and holds the run's own weights or optimizer as {path}: it would "
                "see them while they change. Let its hooks name `model` or `optimizers` and use what they get, or make "
                "it inline(...)"
            )


def _trained(values: Iterable[Any], levels: int = 3) -> Iterator[object]:
    """The modules and optimizers among ``values``, by what they have: this file must not load torch."""
    for value in values:
        if isinstance(value, (Mapping, list, tuple, set)):
            if levels:
                yield from _trained(value.values() if isinstance(value, Mapping) else value, levels - 1)
            continue
        fields = getattr(value, "__dict__", {})
        if {"_modules", "param_groups"} & fields.keys():
            yield value
        elif hasattr(type(value), "param_groups"):  # it wraps an optimizer, as Accelerate's does
            yield value
            yield from _trained([fields.get("optimizer")], 0)
