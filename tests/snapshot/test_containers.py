"""Containers: rebuilt with their class and their sharing, each hook its own, leaves shared."""

from __future__ import annotations

import math
from collections import OrderedDict, defaultdict, deque
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from async_trainer.snapshot import Memo, Scope, Sealed, capture, open_value, take
from tests.same import same


class Attributed(dict[str, Any]):
    def __setitem__(self, key: str, value: Any) -> None:
        raise AssertionError("a class's own code must not run")


class AttrDict(dict[str, Any]):
    def __init__(self, **items: Any) -> None:
        super().__init__(**items)
        self.__dict__ = self


class Pair(NamedTuple):
    left: Any
    right: Any


class Tagged(list[Any]):
    __slots__ = ("tag",)


leaves = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=3),
    st.binary(max_size=3),
    st.builds(lambda n: torch.full((2,), float(n)), st.integers(0, 9)),
)
keys = st.one_of(st.integers(), st.text(max_size=3), st.tuples(st.integers()))


def grown(children: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    many = st.lists(children, max_size=3)
    named = st.dictionaries(keys, children, max_size=3)
    return st.one_of(
        many,
        many.map(tuple),
        many.map(deque),
        many.map(Tagged),
        named,
        named.map(OrderedDict),
        named.map(lambda items: defaultdict(list, items)),
        st.builds(Pair, children, children),
        st.sets(keys, max_size=3),
        st.frozensets(keys, max_size=3),
    )


nested = st.recursive(leaves, grown, max_leaves=12)


def scramble(value: Any) -> None:
    """Change all that can be changed in place, at any depth."""
    if isinstance(value, torch.Tensor):
        value.fill_(-1)
    elif isinstance(value, dict):
        for held in list(value.values()):
            scramble(held)
        value.clear()
    elif isinstance(value, list | tuple | deque):
        for held in list(value):
            scramble(held)
        if not isinstance(value, tuple):
            value.clear()
    elif isinstance(value, set):
        value.clear()


@given(nested)
def test_any_nesting_is_captured_whole_and_isolated(value: Any) -> None:
    expected = capture(value)
    assert same(expected, value)
    taken = take(value, Memo(), "value")
    first = open_value(taken, Scope())
    scramble(value)
    assert same(open_value(taken, Scope()), expected)
    scramble(first)
    assert same(open_value(taken, Scope()), expected)


def test_a_container_met_twice_stays_one() -> None:
    inner = [1]
    memo = Memo()
    scope = Scope()
    first = open_value(take({"a": inner, "b": inner}, memo, "first"), scope)
    second = open_value(take((inner,), memo, "second"), scope)
    assert first["a"] is first["b"] is second[0]
    assert first["a"] is not inner


def test_each_hook_has_containers_of_its_own() -> None:
    taken = take({"losses": [1.0], "more": {"k": 2}}, Memo(), "state")
    first, second = open_value(taken, Scope()), open_value(taken, Scope())
    first["more"].pop("k")
    first["losses"].append(3.0)
    assert second == {"losses": [1.0], "more": {"k": 2}}


@pytest.mark.parametrize("make", [list, deque, OrderedDict, dict], ids=lambda make: make.__name__)
def test_a_cycle_is_rebuilt(make: Any) -> None:
    value = make()
    knot = (value, frozenset({1}))
    if isinstance(value, dict):
        value["me"] = knot
    else:
        value.append(knot)
    got = capture(value)
    held = got["me"] if isinstance(got, dict) else got[0]
    assert held[0] is got
    assert got is not value


def test_what_shares_a_part_with_a_cycle_outlives_it() -> None:
    shared = [1, [2]]
    cycle: list[Any] = [shared]
    cycle.append(cycle)
    memo = Memo()
    first, second, third = (take(value, memo, "x") for value in ({"s": shared}, cycle, (shared, cycle)))
    del memo, second
    got = open_value(third, Scope())
    assert got[1][0] is got[0]
    assert got[1][1] is got[1]
    del third
    assert open_value(first, Scope()) == {"s": [1, [2]]}


def test_a_tuple_that_contains_itself_through_a_list_is_rebuilt() -> None:
    inner: list[Any] = []
    value = (inner, 1)
    inner.append(value)
    got = capture(value)
    assert got[0][0] is got


@pytest.mark.parametrize(
    "value",
    [(1, "a", (2.0, None)), frozenset({1, 2}), Pair(1, (2,)), (), torch.Size([1, 2]), ((),)],
    ids=repr,
)
def test_what_cannot_change_comes_back_as_it_is(value: Any) -> None:
    assert take(value, Memo()) is value


def test_a_tuple_is_sealed_only_for_what_is_sealed_in_it() -> None:
    assert isinstance(take(([1],), Memo()), Sealed)
    assert not isinstance(take((1, (2, "x")), Memo()), Sealed)


def test_code_of_a_subclass_does_not_run() -> None:
    value = Attributed()
    dict.__setitem__(value, "a", [1])
    value.note = ["n"]
    got = capture(value)
    assert type(got) is Attributed
    assert dict(got) == {"a": [1]}
    assert got.note == ["n"]
    assert got.note is not value.note


def test_a_dict_that_is_its_own_attributes_stays_so() -> None:
    value = AttrDict(a=1, b=[2])
    got = capture(value)
    assert type(got) is AttrDict
    assert got.__dict__ is got
    got.a = 5
    assert got["a"] == 5
    assert value.a == 1


def test_slots_of_a_list_subclass_are_kept() -> None:
    value = Tagged([1, 2])
    value.tag = ["t"]
    got = capture(value)
    assert (list(got), got.tag) == ([1, 2], ["t"])
    assert got.tag is not value.tag


def test_a_defaultdict_keeps_its_factory_and_a_deque_its_bound() -> None:
    assert capture(defaultdict(list, a=1))["new"] == []
    assert capture(deque([1, 2], maxlen=2)).maxlen == 2


def test_tensors_as_keys_are_captured_with_their_identity() -> None:
    key = torch.ones(2)
    got = capture({"by": {key: 1}, "key": key})
    assert got["by"][got["key"]] == 1
    assert got["key"] is not key


def test_results_of_torch_max_keep_their_class() -> None:
    value = torch.max(torch.arange(6.0).view(2, 3), dim=1)
    got = capture(value)
    assert type(got) is type(value)
    assert torch.equal(got.values, value.values)


def test_packed_sequences_keep_their_class() -> None:
    value = torch.nn.utils.rnn.pack_sequence([torch.ones(2), torch.ones(1)])
    got = capture(value)
    assert type(got) is type(value)
    assert torch.equal(got.data, value.data)
    assert got.data.data_ptr() != value.data.data_ptr()


def test_nan_is_no_obstacle() -> None:
    assert math.isnan(capture([math.nan])[0])
