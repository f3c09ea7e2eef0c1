"""The states of a handler's callbacks: read and loaded where each callback's hooks run."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from async_trainer.attach import Attached
from async_trainer.errors import CaptureError, ConfigurationError
from async_trainer.snapshot import Memo, Scope, open_value
from async_trainer.snapshot.faults import LeafError
from async_trainer.snapshot.registry import leaf

logger = logging.getLogger("async_trainer")


@dataclass(frozen=True, slots=True)
class Visit:
    """What a mark has a lane do with the states of its callbacks: read them, or load those of ``states``. Called where
    the hooks run, between two events."""

    how: str
    ones: tuple[Attached, ...]
    states: Mapping[str, Any] | None = None

    def __call__(self) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for one in self.ones:
            if self.states is None:
                found |= read_state(one)
            elif one.name in self.states:
                load_state(one, self.states[one.name])
        return found


def has_state(callback: Any) -> bool:
    """Whether it has a ``state_dict`` of its own."""
    from async_trainer.callback import Callback

    state_dict = getattr(type(callback), "state_dict", None)
    return callable(getattr(callback, "state_dict", None)) and state_dict is not Callback.state_dict


def warn_of_no_resume(attached: Iterable[Attached]) -> None:
    """A run is resumed: tell of callbacks that would have been set up at its start, and aren't. The training thread."""
    for one in attached:
        if "on_train_start" in one.hooks and "on_resume" not in one.hooks and not has_state(one.callback):
            logger.warning(
                "%s has on_train_start, which a resumed run doesn't call, and neither on_resume nor a state: what its "
                "start sets up is missing; give it on_resume", one.name,
            )  # fmt: skip


def read_state(one: Attached) -> dict[str, Any]:
    """``{name: state}``, with a state of its own: what the callback does next doesn't show in it. {}: it keeps none."""
    state_dict = getattr(one.callback, "state_dict", None)
    if state_dict is None:
        return {}
    return {one.name: _copied(state_dict(), f"{one.name}.state_dict()")}


def load_state(one: Attached, state: Any) -> None:
    """Hand ``state`` to the callback: its own copy, to keep."""
    one.callback.load_state_dict(_copied(state, f"the state of {one.name}"))


def _copied(state: Any, what: str) -> Any:
    try:
        return open_value(leaf(state, Memo()), Scope(what))
    except LeafError as error:
        raise CaptureError(f"{what}{''.join(reversed(error.steps))}: {error.reason}") from error.cause


def visits(attached: Iterable[Attached], states: Mapping[str, Any] | None = None) -> dict[str, Visit]:
    """For each lane: read the states of the callbacks in it, or load those of ``states``."""
    how = "read" if states is None else "load"
    lanes: dict[str, list[Attached]] = {}
    for one in attached:
        if one.lane is not None:
            lanes.setdefault(one.lane.name, []).append(one)
    return {name: Visit(how, tuple(ones), states) for name, ones in lanes.items()}


def check_states(attached: Iterable[Attached], states: Mapping[str, Any]) -> None:
    """Refuse states of callbacks that aren't there: they would be forgotten without a word."""
    names = {one.name: one for one in attached}
    unknown = [name for name in states if name not in names]
    if unknown:
        raise ConfigurationError(
            f"load_state_dict: there is no callback {', '.join(map(repr, unknown))}; there are "
            f"{', '.join(map(repr, names)) or 'none'}. A callback's name= is its key; leave out what is not to be "
            "loaded"
        )
    cant = [name for name in states if not callable(getattr(names[name].callback, "load_state_dict", None))]
    if cant:
        raise ConfigurationError(f"load_state_dict: {', '.join(cant)} has a state, but no load_state_dict method")
    missing = [name for name, one in names.items() if name not in states and hasattr(one.callback, "load_state_dict")]
    if missing:
        logger.warning("load_state_dict: no state for %s: it stays as it is", ", ".join(missing))
