"""Working out what to capture for an event, from the hooks and the arguments that it comes with."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from async_trainer.errors import ConfigurationError
from async_trainer.events import brought_by
from async_trainer.routes import Arrangement, HookTask, Plan, Slot
from async_trainer.suggest import suggestion

ALWAYS_BROUGHT = ("state", "maps")
"""What ``**kwargs`` brings captured, besides plain values."""


def check_names(event: str, arguments: Collection[str]) -> None:
    """Refuse an argument that has a name that hooks get something else by."""
    if "event" in arguments:
        raise ConfigurationError(
            f"{event}: an argument can't be called 'event': hooks get the event's name and number by that name"
        )


def make_plan(tasks: Sequence[HookTask], event: str, arguments: Collection[str], run: Collection[str]) -> Plan:
    """The plan for ``event`` when it comes with ``arguments`` in a run that was started with ``run``.

    Raises:
        ConfigurationError: an argument has a name that hooks get something else by.
    """
    check_names(event, arguments)
    slots: dict[tuple[str, int, bool], Slot] = {}
    places: dict[tuple[str, int, bool], int] = {}

    def place(task: HookTask | None, name: str, *, plain_only: bool) -> int:
        select = task.select.get(name) if task is not None else None
        key = (name, id(select), plain_only)
        if key not in slots:
            places[key] = len(slots)
            slots[key] = Slot(name, name not in arguments, select, plain_only)
        return places[key]

    arrangements = {}
    for task in tasks:
        hook = task.hook
        taken, nones, missing = [], [], []
        for name in hook.names:
            if name == "event":
                continue
            if name in task.select and task.select[name] is None:
                nones.append(name)
            elif name in arguments or name in run:
                taken.append((name, place(task, name, plain_only=False)))
            elif name in hook.required:
                missing.append(name)
        if hook.catches_all:
            for name in arguments:
                if name in hook.names:
                    continue
                if name in task.select and task.select[name] is None:
                    nones.append(name)
                    continue
                plain_only = name not in ALWAYS_BROUGHT and name not in task.select
                taken.append((name, place(task, name, plain_only=plain_only)))
        arrangements[task] = Arrangement(
            tuple(taken),
            tuple(nones),
            "event" in hook.names or hook.catches_all,
            _missing(task, missing, arguments, run) if missing else None,
        )
    state_place = place(None, "state", plain_only=False) if "state" in arguments else None
    return Plan(
        tuple(slots.values()),
        arrangements,
        tuple((task.lane, task) for task in tasks),
        state_place,
    )


def _missing(
    task: HookTask, missing: Sequence[str], arguments: Collection[str], run: Collection[str]
) -> ConfigurationError:
    provided = [*arguments, *(name for name in run if name not in arguments)]
    names = ", ".join(map(repr, missing))
    hint = brought_by(missing[0]) or suggestion(missing[0], provided) if len(missing) == 1 else ""
    return ConfigurationError(
        f"{task.where_called} names {names}, which neither this event nor the start of the run brings{hint or '.'} "
        f"There are: {', '.join(provided) or 'no arguments'}. Give the parameter a default to make it optional"
    )
