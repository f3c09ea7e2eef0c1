"""Where a callback should run: decided from what was measured."""

from __future__ import annotations

from dataclasses import dataclass

from async_trainer.runtime.burden import BUSY, OF_RUN

LITTLE = 0.01
"""Of the loop's time: what takes less is not worth a lane."""

SLOWER = 1.1
"""A step beside it, over a plain one: so much slower is more than noise."""


@dataclass(frozen=True, slots=True)
class Figures:
    """What is known of one callback; times in seconds, of one run of the loop.

    Attributes:
        hooks: in its hooks: inline, or where it can't run there, elsewhere.
        cpu: of that, on a core.
        loop: the same loop without callbacks.
        handing: what its events cost the training thread where it runs in a thread: captures and waits.
        beside_thread: a step where it runs in a thread, over a plain one, in the round in which it was slowest; None
            where it could not be run.
        inline: whether it can run inline.
        thread: whether it can run in a thread.
        process: whether it can run in a process.
        steers: its class says that it changes the training.
        asynchronous: its hooks are ``async def``.
    """

    hooks: float
    cpu: float
    loop: float
    handing: float
    beside_thread: float | None = None
    inline: bool = True
    thread: bool = True
    process: bool = True
    steers: bool = False
    asynchronous: bool = False


@dataclass(frozen=True, slots=True)
class Advice:
    """A placement, and why."""

    placement: str
    why: str


def advise(seen: Figures) -> Advice:
    """The placement to choose."""
    if seen.steers:
        return Advice("inline", "it changes the training")
    if seen.asynchronous:
        return Advice("task", "its hooks are async")
    slower = seen.hooks > seen.loop
    late = "; slower than the loop: it will fall behind (every=, overflow=)" if slower else ""
    if seen.inline and seen.hooks < LITTLE * seen.loop:
        return Advice("inline", f"its hooks take {seen.hooks / seen.loop:.1%} of the loop's time")
    if not seen.thread:
        return (
            Advice("process", f"it fails in a thread{late}") if seen.process else Advice("inline", "it fails elsewhere")
        )
    if seen.inline and seen.hooks <= seen.handing:
        return Advice("inline", "handing its events over takes the loop longer than its hooks do")
    busy = seen.cpu / seen.hooks if seen.hooks else 0.0
    if busy < BUSY:
        return Advice("thread", f"its hooks wait for {1 - busy:.0%} of their time{late}")
    if seen.cpu < OF_RUN * seen.loop:
        return Advice("thread", f"it computes for {seen.cpu / seen.loop:.0%} of the loop's time, which is little{late}")
    if not seen.process:
        return Advice("thread", f"it computes ({busy:.0%} of its time), but can't run in a process{late}")
    if seen.beside_thread is not None and seen.beside_thread < SLOWER:
        return Advice("thread", f"it computes ({busy:.0%} of its time), but gives the interpreter up{late}")
    return Advice("process", f"it computes for {busy:.0%} of its time: a thread would take the interpreter{late}")
