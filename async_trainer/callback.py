"""Callbacks, and how to say where one runs: ``background(...)``, ``inline(...)``."""

from __future__ import annotations

import inspect
import math
import os
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar, Literal, TypedDict, Unpack, overload

from async_trainer.errors import ConfigurationError
from async_trainer.events import Event, make_hook
from async_trainer.suggest import suggestion

Placement = Literal["thread", "task", "process"]
Overflow = Literal["block", "drop_oldest", "drop_newest", "latest"]
OnError = Literal["log", "raise_at_end", "raise", "disable"]
Places = str | os.PathLike[str] | Iterable[str | os.PathLike[str]] | None

_CHOICES: dict[str, tuple[str, ...]] = {
    "placement": ("thread", "task", "process"),
    "overflow": ("block", "drop_oldest", "drop_newest", "latest"),
    "on_error": ("log", "raise_at_end", "raise", "disable"),
}


class Callback:
    """A base class for callbacks. It is optional: hooks are found by their names.

    Define the hooks that you need, each with the arguments that it needs, as keywords, sync or ``async``::

        class LossCurve(Callback):
            background = {"queue_size": 10_000}

            def on_backward_step_start(self, *, state, loss, **kwargs): ...

    ``Event`` lists the hooks, and its docstring is the loop that fires them. A hook runs inline, on the training
    thread and on the live objects, unless the callback is wrapped in ``background(...)`` or its class has a
    ``background`` attribute: then it runs off the training thread, on a snapshot of what it names.
    """

    background: ClassVar[Mapping[str, Any] | None] = None
    """Options for ``background()``; a class that sets them runs in the background unless wrapped in ``inline()``. May
    be a property, for options that depend on the instance."""

    steers: ClassVar[bool] = False
    """Whether its hooks change the training (a state, a learning rate): such a class is refused in the background."""

    def check_training(self, **arguments: Any) -> Places:
        """Called when a training starts or is resumed, before ``on_train_start`` or ``on_resume``, with the same live
        arguments. The training thread, wherever the hooks run. To refuse, raise a ``ConfigurationError``: the training
        ends with it before it has begun.

        Returns:
            The file that no other callback may write, or a pattern for such files (``folder / "step-*.pt"``), or
            several; None: there is none. A training with two callbacks that return the same is refused.
        """
        return None

    def state_dict(self) -> Mapping[str, Any]:
        """What this callback needs to go on after a resume. Runs where its hooks run."""
        return {}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Go on from ``state_dict``, as :meth:`state_dict` returned it. Runs where its hooks run."""


for _event in Event:
    setattr(Callback, _event.value, make_hook(_event))


class BackgroundOptions(TypedDict, total=False):
    """The options of :func:`background`, which documents them."""

    placement: Placement
    name: str | None
    lane: str | None
    queue_size: int
    overflow: Overflow
    on_error: OnError
    retries: int
    backoff: float
    timeout: float | None
    every: Mapping[str, int] | None
    when: Callable[..., bool] | Mapping[str, Callable[..., bool]] | None
    select: Mapping[str, Callable[[Any], Any] | None] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How a background callback runs; :func:`background` documents each field."""

    placement: Placement | None = None
    name: str | None = None
    lane: str | None = None
    queue_size: int = 1024
    overflow: Overflow = "block"
    on_error: OnError = "log"
    retries: int = 0
    backoff: float = 0.1
    timeout: float | None = None
    every: Mapping[str, int] | None = None
    when: Callable[..., bool] | Mapping[str, Callable[..., bool]] | None = None
    select: Mapping[str, Callable[[Any], Any] | None] | None = None


@dataclass(frozen=True, slots=True)
class Background:
    """A callback that runs in the background, and how. Made by :func:`background`; plain and picklable."""

    callback: Any
    options: Options = Options()


@dataclass(frozen=True, slots=True)
class Inline:
    """A callback that runs on the training thread, on the live objects. Made by :func:`inline`; plain and picklable."""

    callback: Any


@overload
def background(  # type: ignore[overload-overlap]  # a list is an object too
    callback: list[Any] | tuple[Any, ...], **options: Unpack[BackgroundOptions]
) -> list[Background]: ...
@overload
def background(callback: object, **options: Unpack[BackgroundOptions]) -> Background: ...
def background(callback: Any, **options: Unpack[BackgroundOptions]) -> Background | list[Background]:
    """Run a callback off the training thread, in order, on snapshots of what its hooks name.

    Args:
        callback: an object with hooks, or a list of them (each gets its own lane, and the same options).
        placement: where its hooks run: ``"thread"``, a thread of its own (the default), ``"task"``, a task on the
            pool's event loop (the default where a hook is ``async def``), or ``"process"``, a child process of its own:
            for hooks that burn CPU in Python, or may crash.
        name: its key in state dicts, stats and messages. Default: the class name in snake case, with ``_1``, ``_2``
            ... where there are several.
        lane: callbacks that name the same lane share one FIFO (and one thread, or process).
        queue_size: how many events may wait in its lane. Default: 1024.
        overflow: what a full lane does: ``"block"`` the loop until there is room (the default), ``"drop_oldest"``,
            ``"drop_newest"``, or keep the ``"latest"`` of each event. Drops are counted. Events that come once per run
            are never dropped.
        on_error: what a failed hook does. ``"log"`` (the default): it is logged and counted. ``"raise_at_end"``: the
            handler's ``close()`` raises, after draining. ``"raise"``: the next event raises. ``"disable"``: the
            callback is turned off after three failures in a row.
        retries: how often a failed hook is tried again, on the same snapshot. Default: 0.
        backoff: seconds before the first retry; doubled for each next one, with jitter. Default: 0.1.
        timeout: seconds for one attempt. An async hook is cancelled, a process killed and replaced; a thread can't be:
            its lane counts as stalled until the hook returns.
        every: ``{"on_batch_end": 50}``: handle only the 50th, 100th, ... of that event in that stage (training,
            evaluation); counted before ``when``.
        when: called on the training thread with the live arguments of the event, and with those that the start of the
            run brought, as keywords: ``lambda step, **_: step > 100``. Where it returns False the event is not
            captured for this callback. ``{"on_epoch_end": function}`` asks it for that event only.
        select: what to capture in place of an argument: ``{"output": fn}`` captures ``fn(output)``, called on the
            training thread with the live value; ``{"model": None}`` captures nothing, and the hook gets None.

    Options given here replace those of the class's ``background`` attribute, one by one.

    Raises:
        ConfigurationError: an unknown option or a value out of range; names the callback and the option.
    """
    if isinstance(callback, (list, tuple)):
        if options.get("name") is not None and len(callback) > 1:
            raise ConfigurationError(
                f"background([...], name={options['name']!r}): {len(callback)} callbacks can't share one name; "
                "wrap each in background(callback, name=...)"
            )
        return [record for one in callback for record in _listed(background(one, **options))]
    if isinstance(callback, Inline):
        raise ConfigurationError(f"background(inline({label(callback.callback)})): a callback is one or the other")
    if isinstance(callback, Background):
        return Background(callback.callback, merge_options(callback.options, options, label(callback.callback)))
    return Background(callback, merge_options(class_options(callback), options, label(callback)))


@overload
def inline(callback: list[Any] | tuple[Any, ...]) -> list[Inline]: ...  # type: ignore[overload-overlap]  # as above
@overload
def inline(callback: object) -> Inline: ...
def inline(callback: Any) -> Inline | list[Inline]:
    """Run a callback, or each of a list, on the training thread, on the live objects, whatever its class says.

    Raises:
        ConfigurationError: ``callback`` is already wrapped in ``background(...)``.
    """
    if isinstance(callback, (list, tuple)):
        return [record for one in callback for record in _listed(inline(one))]
    if isinstance(callback, Background):
        raise ConfigurationError(f"inline(background({label(callback.callback)})): a callback is one or the other")
    return callback if isinstance(callback, Inline) else Inline(callback)


def _listed(records: Any) -> list[Any]:
    """What a callback, or a list in a list of them, was wrapped into."""
    return records if isinstance(records, list) else [records]


def as_record(callback: Any) -> Background | Inline:
    """What a handler does with ``callback``: as it is wrapped, else as its class says, else inline."""
    if isinstance(callback, (Background, Inline)):
        return callback
    if _given_options(callback) is not None:
        return Background(callback, class_options(callback))
    return Inline(callback)


def class_options(callback: Any) -> Options:
    """The options that the class of ``callback`` asks for, checked."""
    given = _given_options(callback)
    if given is None:
        return Options()
    if not isinstance(given, Mapping):
        raise ConfigurationError(
            f"{label(callback)}.background must be a dict of options for background(), not {type(given).__name__}; "
            "an empty dict takes the defaults"
        )
    return merge_options(Options(), given, f"{label(callback)}.background")


def _given_options(callback: Any) -> Any:
    """Its class's ``background``; of a property, what it says of this instance: ``{"when": self.wanted}``."""
    given = getattr(type(callback), "background", None)
    return given.__get__(callback) if isinstance(given, property) else given


def merge_options(base: Options, given: Mapping[str, Any], where: str) -> Options:
    """``base`` with the options of ``given`` in place, checked. Errors name ``where``."""
    known = [field.name for field in fields(Options)]
    for option, value in given.items():
        if option not in known:
            raise ConfigurationError(f"{where}: background() has no option {option!r}{suggestion(option, known)}")
        _check_option(where, option, value)
    frozen: dict[str, Any] = {key: dict(value) if isinstance(value, Mapping) else value for key, value in given.items()}
    return replace(base, **frozen)


def label(callback: Any) -> str:
    """How messages call ``callback``: its class's name."""
    return type(callback).__name__


def snake_case(name: str) -> str:
    """``LossCurve`` -> ``loss_curve``, ``MLflowLog`` -> ``mlflow_log``, ``CSVLog`` -> ``csv_log``, ``InAProcess`` ->
    ``in_a_process``; a last capital is no word: ``WandB`` -> ``wandb``."""
    word = r"(?<=[a-z0-9])(?=[A-Z](?!$))|(?<=[A-Z][A-Z])(?=[A-Z][a-z])|(?<=[a-z0-9]A)(?=[A-Z][a-z])"
    return re.sub(word, "_", name.strip("_")).lower()


def _check_option(where: str, option: str, value: Any) -> None:
    problem: str | None = None
    if option in _CHOICES:
        if value not in _CHOICES[option] and not (option == "placement" and value is None):
            hint = suggestion(value, _CHOICES[option]) if isinstance(value, str) else ""
            problem = f"must be one of {', '.join(map(repr, _CHOICES[option]))}, not {value!r}{hint}"
    elif option in ("name", "lane"):
        if value is not None and not (isinstance(value, str) and value):
            problem = f"must be a non-empty str, not {value!r}"
    elif option == "queue_size":
        if not _is_int(value) or value < 1:
            problem = f"must be a whole number of events, 1 or more, not {value!r}"
    elif option == "retries":
        if not _is_int(value) or value < 0:
            problem = f"must be a whole number, 0 or more, not {value!r}"
    elif option == "backoff":
        if not _is_number(value) or not 0 <= value < math.inf:
            problem = f"must be a number of seconds, 0 or more, not {value!r}"
    elif option == "timeout":
        if value is not None and (not _is_number(value) or value <= 0):
            problem = f"must be a number of seconds above 0, or None, not {value!r}"
    elif option == "when":
        problem = _when_problem(value)
    elif option == "every" and _is_int(value) and value >= 1:
        problem = f"must say of which event: every={{'on_batch_end': {value!r}}}, not every={value!r}"
    elif option == "every":
        problem = _mapping_problem(value, lambda n: _is_int(n) and n >= 1, "{event: whole number, 1 or more}")
    elif option == "select":
        problem = _mapping_problem(value, lambda f: f is None or callable(f), "{argument: function or None}")
    if problem:
        raise ConfigurationError(f"{where}: {option} {problem}")


def _when_problem(value: Any) -> str | None:
    if value is None:
        return None
    if isinstance(value, Mapping):
        return next((problem for one in value.values() if (problem := _when_problem(one) or _none_problem(one))), None)
    if not callable(value):
        return f"must be callable (it is called with the event's arguments), not {value!r}"
    if inspect.iscoroutinefunction(value):
        return f"must be a plain function, as nothing awaits it, not {value!r}"
    try:
        parameters = inspect.signature(value).parameters.values()
    except (TypeError, ValueError):  # written in C, say: calling it will tell
        return None
    if any(one.kind is one.POSITIONAL_ONLY and one.default is one.empty for one in parameters):
        return f"must take keywords, such as lambda step, **_: step > 100, not {value!r}"
    return None


def _none_problem(value: Any) -> str | None:
    return "must be callable, not None" if value is None else None


def _mapping_problem(value: Any, fits: Callable[[Any], bool], wanted: str) -> str | None:
    if value is None:
        return None
    if not isinstance(value, Mapping) or not all(isinstance(key, str) and fits(item) for key, item in value.items()):
        return f"must be {wanted}, not {value!r}"
    return None


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and value == value


def flatten(callbacks: Iterable[Any] | None) -> list[Background | Inline]:
    """The records of ``callbacks``, in order; lists in the list are flattened.

    Raises:
        ConfigurationError: ``callbacks`` is no list.
    """
    records: list[Background | Inline] = []
    if isinstance(callbacks, str) or not isinstance(callbacks or (), Iterable):
        raise ConfigurationError(f"callbacks must be a list, not {label(callbacks)}: [{label(callbacks)}(...)]")
    for callback in callbacks or ():
        if isinstance(callback, (list, tuple)):
            records += flatten(callback)
        else:
            records.append(as_record(callback))
    return records
