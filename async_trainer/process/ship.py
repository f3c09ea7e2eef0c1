"""Sending a callback to a child process: once, with its state; where that can't be, saying what stands in the way."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from async_trainer.callback import label
from async_trainer.errors import ConfigurationError
from async_trainer.process import pickling
from async_trainer.process.pickling import ByValue
from async_trainer.proxy.unanswered import Unanswered
from async_trainer.runtime.placement.child import supported
from async_trainer.snapshot.attributes import fields_of, filled_slots

DEPTH = 8  # attributes of attributes of ...


def ship(subject: Any, what: str, remedy: str) -> bytes:
    """The pickle of ``subject``.

    Args:
        subject: a callback, a proxied object or a factory.
        what: what messages call it.
        remedy: what to do about an attribute that can't be sent.

    Raises:
        ConfigurationError: names the attribute that can't be sent, by its path.
    """
    if Shipper.inside:
        raise ConfigurationError(
            f"{what}: this is the process of a lane: it imports the module that defines what was sent to it, which "
            'starts another there: put what starts a training under `if __name__ == "__main__":`'
        )
    if not supported():
        raise ConfigurationError(f"{what}: placement='process' needs a system with Unix sockets; use 'thread'")
    problem: Exception
    try:
        return dumps(subject)
    except Exception as error:
        problem = error
    path, culprit, reason = _find(subject, problem)
    where = f"{what}{path}" if path else what
    raise ConfigurationError(
        f"{where} can't be sent to a process ({type(culprit).__name__}: {reason}); {remedy}, or use placement='thread'"
    ) from problem


def _find(subject: Any, problem: Exception) -> tuple[str, Any, Exception]:
    """The deepest part of ``subject`` that can't be pickled: its path, itself, and the error that says so."""
    path, seen = "", {id(subject)}
    for _ in range(DEPTH):
        for step, part in _parts(subject):
            if id(part) in seen:
                continue
            seen.add(id(part))
            try:
                dumps(part)
            except Exception as error:
                path, subject, problem = path + step, part, error
                break
        else:
            break
    return path, subject, problem


def _parts(subject: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(subject, dict):
        yield from ((f"[{key!r:.40}]", part) for key, part in list(subject.items()))
    elif isinstance(subject, list | tuple | set | frozenset):
        yield from ((f"[{place}]", part) for place, part in enumerate(subject))
    elif closure := getattr(subject, "__closure__", None):
        names = subject.__code__.co_freevars
        for name, cell in zip(names, closure, strict=True):
            try:
                yield f" (its {name})", cell.cell_contents
            except ValueError:
                continue
    elif not isinstance(subject, type) and not fires_events(subject):
        yield from ((f".{name}", part) for name, part in list((fields_of(subject) or {}).items()))
        yield from ((f".{slot.__name__}", part) for slot, part in filled_slots(subject))


def fires_events(subject: Any) -> bool:
    """Whether it is a handler, or a proxy or handle that one has made."""
    return getattr(type(subject), "_fires_events", False) or issubclass(type(subject), Unanswered)


def ship_callback(callback: Any) -> bytes:
    """The pickle of a callback.

    Raises:
        ConfigurationError: it can't be sent; names the attribute, and the remedy.
    """
    return ship(callback, label(callback), "make it in on_train_start, which runs in the process")


def ship_callbacks(callbacks: list[Any]) -> bytes:
    """The pickle of several callbacks of one lane: what they share, they share there, too.

    Raises:
        ConfigurationError: one of them can't be sent.
    """
    try:
        return dumps(callbacks)
    except Exception:
        for callback in callbacks:
            ship_callback(callback)
        raise


def dumps(subject: Any) -> bytes:
    """The pickle of a callback or an object, or of a part of it."""
    return pickling.dumps(subject, Shipper)


class Shipper(ByValue):
    """Refuses what is of no use in another process."""

    inside = False  # whether this is the process of a lane

    def reducer_override(self, obj: Any) -> Any:
        if fires_events(obj):
            raise TypeError("a handler, or a proxy that it made, fires events in the process that it belongs to")
        if getattr(type(obj), "stays_here", False):
            raise TypeError("it needs what is in the process of the training")
        return super().reducer_override(obj)
