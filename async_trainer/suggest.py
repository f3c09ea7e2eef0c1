"""A hint for a misspelt name."""

from __future__ import annotations

import difflib
import functools
import inspect
from collections.abc import Callable, Iterable
from typing import ParamSpec

from async_trainer.errors import ConfigurationError

P = ParamSpec("P")


def suggestion(name: str, known: Iterable[str]) -> str:
    """``"; did you mean 'on_batch_end'?"``, or ``""`` where nothing known is near ``name``."""
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f"; did you mean {near[0]!r}?" if near else ""


def refuse_unknown_options(init: Callable[P, None]) -> Callable[P, None]:
    """For an ``__init__``: a keyword that it doesn't have is refused with a hint. Its signature stays as it is."""
    known = list(inspect.signature(init).parameters)[1:]

    @functools.wraps(init)
    def checked(*args: P.args, **kwargs: P.kwargs) -> None:
        for option in kwargs:
            if option not in known:
                name = type(args[0]).__name__
                raise ConfigurationError(f"{name}() has no option {option!r}{suggestion(option, known)}")
        init(*args, **kwargs)

    return checked
