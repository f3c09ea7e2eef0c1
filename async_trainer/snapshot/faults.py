"""Errors of a capture that know the path of the leaf that caused them."""

from __future__ import annotations

from async_trainer.errors import CaptureError

_SHOWN = 12


class LeafError(CaptureError):
    """A leaf that can't be captured. Containers add their step of the path as it travels up; ``take`` words it.

    Attributes:
        reason: what is wrong with the leaf.
        cause: the error that showed it, if any.
        steps: the path, innermost step first: ``[".lock", ".config"]``.
    """

    def __init__(self, reason: str, cause: BaseException | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.cause = cause
        self.steps: list[str] = []


def type_name(cls: type) -> str:
    """The name of a type, as a user knows it, with its article: "a _thread.lock"."""
    name = cls.__qualname__ if cls.__module__ == "builtins" else f"{cls.__module__}.{cls.__qualname__}"
    return f"{'an' if name[:1] in 'aeiouAEIOU' else 'a'} {name}"


def located(error: Exception, step: str) -> LeafError:
    """``error``, one step further up; to be raised ``from None`` by the container that has met it."""
    found = error if isinstance(error, LeafError) else LeafError(worded(error), error)
    found.steps.append(step)
    return found


def worded(error: Exception) -> str:
    """One line for an error that isn't ours."""
    if isinstance(error, RecursionError):
        return "nested too deeply"
    return f"{type(error).__name__}: {error}"


def final(error: Exception, path: str) -> CaptureError:
    """What ``take`` raises: the path of the leaf, what is wrong with it, and the two ways out; the cause is chained."""
    leaf = error if isinstance(error, LeafError) else LeafError(worded(error), error)
    steps = leaf.steps[::-1]
    if len(steps) > _SHOWN:
        steps = [*steps[: _SHOWN // 2], " ... ", *steps[-_SHOWN // 2 :]]
    argument = path or "value"
    select = f": select={{{argument!r}: ...}}" if argument.isidentifier() else ""  # "argument 1", of a proxied call
    complete = CaptureError(
        f"{argument}{''.join(steps)}: {leaf.reason}. Give a function for its type to capture.register, or leave it "
        f"out{select}"
    )
    complete.__cause__ = leaf.cause
    return complete
