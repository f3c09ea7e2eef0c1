"""Every barrier is an exact cut, whatever the lanes do: each state in it holds just the events that came before it.

Six lanes, one for each policy, one shared by two callbacks, one of tasks: with delays, failures, retries, a lane that
hangs, and callbacks that are added meanwhile. What was dropped is not known beforehand; but the last state tells all
that was delivered, and the books how many: each earlier state must be just that part of it which came before its cut.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import anyio
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from async_trainer import Callback, CallbacksHandler, background
from async_trainer.runtime.barrier import Barrier

WAIT = 60.0  # s: for what must come
EVENTS = ("on_batch_end", "on_epoch_end")


class Records(Callback):
    """Takes its time with some events, fails at others, at each attempt or at the first only."""

    def __init__(self, slow: frozenset[int], failing: frozenset[int], attempts: int = 1) -> None:
        self.slow, self.failing, self.attempts = slow, failing, attempts
        self.seen: list[int] = []

    def on_batch_end(self, *, n: int, event: Any) -> None:
        if n in self.slow:
            time.sleep(0.002)
        self.record(n, event.attempt)

    def on_epoch_end(self, *, n: int, event: Any) -> None:
        self.on_batch_end(n=n, event=event)

    def record(self, n: int, attempt: int) -> None:
        if n in self.failing and attempt <= self.attempts:
            raise ValueError(n)
        self.seen.append(n)

    def state_dict(self) -> dict[str, Any]:
        return {"seen": list(self.seen)}

    def load_state_dict(self, state_dict: Any) -> None:
        self.seen = list(state_dict["seen"])


class RecordsAsTask(Records):
    async def on_batch_end(self, *, n: int, event: Any) -> None:  # type: ignore[override]
        if n in self.slow:
            await anyio.sleep(0.002)
        self.record(n, event.attempt)

    async def on_epoch_end(self, *, n: int, event: Any) -> None:  # type: ignore[override]
        await self.on_batch_end(n=n, event=event)


class Hangs(Records):
    """Where its gate is closed."""

    def __init__(self, slow: frozenset[int], failing: frozenset[int]) -> None:
        super().__init__(slow, failing)
        self.gate = threading.Event()
        self.gate.set()

    def on_batch_end(self, *, n: int, event: Any) -> None:
        assert self.gate.wait(WAIT)
        super().on_batch_end(n=n, event=event)


class Machine:
    """A handler, and what was done with it. ``emitted`` counts the events; each has its count for its argument."""

    def __init__(self, slow: frozenset[int], failing: frozenset[int], sixth: str) -> None:
        self.hangs = Hangs(slow, failing)
        self.slow, self.failing = slow, failing
        self.handler = CallbacksHandler(
            [
                background(Records(slow, failing), name="blocks", queue_size=3),
                background(Records(slow, failing), name="drops_oldest", queue_size=3, overflow="drop_oldest"),
                background(Records(slow, failing), name="drops_newest", queue_size=2, overflow="drop_newest"),
                background(Records(slow, failing), name="latest", queue_size=2, overflow="latest"),
                background(RecordsAsTask(slow, failing), name="task"),
                background(self.hangs, name="hangs", queue_size=4, overflow="latest"),
                background(Records(slow, failing), name="retried", lane="shared", retries=1, backoff=0.0,
                           placement=sixth),
                background(Records(slow, failing, attempts=9), name="beside", lane="shared", placement=sixth),
            ],
            stall_timeout=0.1,
        )  # fmt: skip
        self.emitted = 0
        self.born = dict.fromkeys((one.name for one in self.handler.attached), 0)
        self.cuts: list[tuple[int, set[str], Barrier]] = []

    def act(self, action: Any) -> None:
        match action:
            case ("emit", event, count):
                for _ in range(count):
                    self.emitted += 1
                    self.handler.call_event(event, n=self.emitted)
            case ("barrier",):
                self.cuts.append((self.emitted, set(self.born), self.handler.barrier()))
            case ("wait",) if self.cuts:
                self.cuts[-1][2].wait(WAIT)
            case ("hang",):
                self.hangs.gate.clear()
            case ("go on",):
                self.hangs.gate.set()
            case ("add", overflow) if len(self.born) < 10:
                name = f"added_{len(self.born)}"
                one = background(Records(self.slow, self.failing), name=name, queue_size=3, overflow=overflow)
                self.handler.add_callbacks([one])
                self.born[name] = self.emitted

    def check(self) -> None:
        """Each state is the part of what was delivered in the end that came before its cut; and the books say so."""
        self.hangs.gate.set()
        last = self.handler.barrier()
        until = time.monotonic() + WAIT
        while not last.done:  # those that hung are waited for, too
            last.wait(WAIT)
            assert time.monotonic() < until, last
        delivered = {name: state["seen"] for name, state in last.taken().items()}
        self.check_books(delivered)
        for emitted, names, barrier in self.cuts:
            assert barrier.done
            assert barrier.taken().keys() == names
            for name, state in barrier.taken().items():
                assert state["seen"] == [n for n in delivered[name] if n <= emitted], (name, emitted)

    def check_books(self, delivered: dict[str, list[int]]) -> None:
        lanes = self.handler.stats().lanes
        for name, seen in delivered.items():
            assert seen == sorted(set(seen)), name
            assert set(seen) <= {*range(self.born[name] + 1, self.emitted + 1)}, name
            emitted = range(self.born[name] + 1, self.emitted + 1)
            if name in ("retried", "beside"):
                continue
            lane = lanes[name]
            assert (lane.delivered, lane.lost) == (len(seen), 0), name
            assert lane.delivered + lane.failed + lane.dropped == len(emitted), name
            if not lane.dropped:  # else which is known only from what was delivered
                assert seen == [n for n in emitted if n not in self.failing], name
        shared = lanes["shared"]
        assert shared.delivered == len(delivered["retried"]) + len(delivered["beside"])
        if not shared.dropped:
            assert delivered["retried"] == [*range(1, self.emitted + 1)]
            assert delivered["beside"] == [n for n in range(1, self.emitted + 1) if n not in self.failing]


@contextmanager
def machine(slow: frozenset[int], failing: frozenset[int], sixth: str) -> Iterator[Machine]:
    made = Machine(slow, failing, sixth)
    try:
        yield made
    finally:
        made.hangs.gate.set()
        made.handler.close(WAIT)


NUMBERS = st.frozensets(st.integers(1, 60), max_size=12)
ACTIONS = st.lists(
    st.one_of(
        st.tuples(st.just("emit"), st.sampled_from(EVENTS), st.integers(1, 6)),
        st.just(("barrier",)),
        st.just(("barrier",)),
        st.just(("wait",)),
        st.just(("hang",)),
        st.just(("go on",)),
        st.tuples(st.just("add"), st.sampled_from(["block", "drop_oldest", "drop_newest", "latest"])),
    ),
    min_size=8,
    max_size=20,
)
PATIENT = settings(deadline=None, database=None, suppress_health_check=list(HealthCheck))


@pytest.fixture(autouse=True)
def quiet(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL, "async_trainer")


def run(actions: list[Any], slow: frozenset[int], failing: frozenset[int], sixth: str) -> None:
    with machine(slow, failing, sixth) as made:
        for action in [("emit", EVENTS[0], 3), ("barrier",), *actions]:
            made.act(action)
        made.check()


@settings(PATIENT, max_examples=60)
@given(actions=ACTIONS, slow=NUMBERS, failing=NUMBERS)
def test_every_barrier_is_an_exact_cut(actions: list[Any], slow: frozenset[int], failing: frozenset[int]) -> None:
    run(actions, slow, failing, "thread")


@pytest.mark.slow
@settings(PATIENT, max_examples=4)
@given(actions=ACTIONS, slow=NUMBERS, failing=NUMBERS)
def test_every_barrier_is_an_exact_cut_with_a_process_too(
    actions: list[Any], slow: frozenset[int], failing: frozenset[int]
) -> None:
    run(actions, slow, failing, "process")
