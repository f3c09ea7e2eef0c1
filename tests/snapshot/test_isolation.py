"""Law 2, for every kind of argument: what a hook receives never changes after the event."""

from __future__ import annotations

import gc
import threading
from typing import Any

import pytest

from async_trainer.snapshot import Memo, Scope, open_value, take
from tests.kinds import KINDS, Case

CHANGES = [(case, place) for case in KINDS for place in range(len(case.mutations))]


def name(value: Any) -> str:
    return str(value)


@pytest.mark.parametrize("case", KINDS, ids=name)
def test_what_a_hook_receives_is_what_was_there(case: Case) -> None:
    taken = take(case.make(), Memo(), "value")
    assert case.equal(open_value(taken, Scope()), case.make())


@pytest.mark.parametrize(("case", "place"), CHANGES, ids=name)
def test_a_change_of_the_live_object_is_not_seen(case: Case, place: int) -> None:
    live = case.make()
    taken = take(live, Memo(), "value")
    case.mutations[place](live)
    assert case.equal(open_value(taken, Scope()), case.make())


@pytest.mark.parametrize(("case", "place"), CHANGES, ids=name)
def test_the_same_change_is_seen_without_a_capture(case: Case, place: int) -> None:
    live = case.make()
    case.mutations[place](live)
    assert not case.equal(live, case.make())


@pytest.mark.parametrize("case", KINDS, ids=name)
def test_all_changes_together_are_not_seen_nor_is_what_came_after(case: Case) -> None:
    live = case.make()
    taken = take(live, Memo(), "value")
    opened_before = open_value(taken, Scope())
    case.mutate(live)
    del live
    gc.collect()
    assert case.equal(open_value(taken, Scope()), case.make())
    assert case.equal(opened_before, case.make())


@pytest.mark.parametrize("case", KINDS, ids=name)
def test_threads_that_open_at_once_all_see_the_event(case: Case) -> None:
    taken = take(case.make(), Memo(), "value")
    start = threading.Barrier(4)
    received: list[Any] = []

    def open_one() -> None:
        start.wait()
        received.extend(open_value(taken, Scope()) for _ in range(5))

    threads = [threading.Thread(target=open_one) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(received) == 20
    assert all(case.equal(one, case.make()) for one in received)


@pytest.mark.parametrize("case", KINDS, ids=name)
def test_capture_leaves_the_live_object_as_it_is(case: Case) -> None:
    live = case.make()
    open_value(take(live, Memo(), "value"), Scope())
    assert case.equal(live, case.make())
