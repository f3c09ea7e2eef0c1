"""Errors that go from one process to another, as what can be made again there whatever their class does."""

from __future__ import annotations

import pickle
import traceback
from typing import Any

from async_trainer.errors import ElsewhereError, LaneError
from async_trainer.process.frames import PLAIN


def parts_of(error: BaseException, text: str | None = None) -> tuple[Any, ...]:
    """What ``remade`` makes an error from: its traceback becomes text."""
    if text is None:
        text = "".join(traceback.format_exception(error))
    args = tuple(arg if isinstance(arg, PLAIN) else safe_repr(arg) for arg in error.args)
    extra = {name: held for name, held in vars(error).items() if isinstance(held, PLAIN)}
    cause = error.__cause__ if isinstance(error.__cause__, Exception) else None
    return type(error), args, extra, said_by(error), text, cause


def remade(
    cls: Any, args: tuple[Any, ...], extra: dict[str, Any], said: str, text: str, cause: BaseException | None
) -> BaseException:
    """An error from another process, of its class. Its cause is its own, or else tells its traceback there."""
    made: BaseException
    try:
        made = cls.__new__(cls, *args)
        made.args = args
        made.__dict__.update(extra)
        same = said_by(made) == said
    except Exception:
        same = False
    if not same:
        made = LaneError(said)
        made.__dict__["_class_elsewhere"] = f"{cls.__module__}.{cls.__qualname__}"
    made.__cause__ = cause or ElsewhereError(text)
    made.__dict__["_told_elsewhere"] = text
    return made


def said_by(error: BaseException) -> str:
    """``"OSError: disk full"``, whatever its class does."""
    try:
        return f"{type(error).__name__}: {error}"
    except Exception:
        return type(error).__name__


def safe_repr(value: object) -> str:
    """What ``value`` looks like, whatever its class does."""
    try:
        return repr(value)
    except Exception:
        return f"<{type(value).__name__}>"


def unpack_error(said: str, text: str, pickled: bytes | None) -> BaseException:
    """The error of ``pack_error``; if its class isn't known here, one of ours that says the same."""
    if pickled is not None:
        try:
            function, parts = pickle.loads(pickled)
            error: BaseException = function(*parts)
            return error
        except Exception:  # its class can't be imported here
            pass
    unknown = remade(LaneError, (said,), {}, f"LaneError: {said}", text, None)
    unknown.__dict__["_class_elsewhere"] = said.partition(":")[0]
    return unknown
