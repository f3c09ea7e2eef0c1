"""What a hook in a process receives: what a thread's would, of every kind; big values without a copy."""

from __future__ import annotations

import threading
import types
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from async_trainer import CallbacksHandler, Maps, MetricsHandler, Split, TrainerState, background, capture
from async_trainer.snapshot.gradients import with_gradients
from async_trainer.snapshot.shared import SLAB
from tests.kinds import KINDS as COMMON
from tests.nets import NETS, Tied, seeded
from tests.process import judges
from tests.process.doubles import Verdicts
from tests.process.kinds import KINDS, Kind

Judge = Callable[[Any], Any]


class Court:
    """One child for all tests of this file."""

    def __init__(self) -> None:
        self.verdicts = Verdicts()
        self.handler = CallbacksHandler([background(self.verdicts, placement="process")], events=["on_value"])
        self.count = 0
        self.errors: list[BaseException] = []
        failures = self.handler._pool.failures
        record = failures.record

        def remember(job: Any, attempt: int, error: BaseException) -> None:
            self.errors.append(error)
            record(job, attempt, error)

        failures.record = remember  # type: ignore[method-assign]

    def fire(self, value: Any, judge: Judge) -> str:
        self.count += 1
        self.handler.call_event("on_value", value=value, judge=judge, name=str(self.count))
        return str(self.count)

    def judge(self, value: Any, judge: Judge) -> None:
        """Have ``judge`` look at ``value`` there."""
        name = self.fire(value, judge)
        report = self.handler.flush()
        assert name in self.verdicts.of, str(report)
        assert self.verdicts.of[name] is None, self.verdicts.of[name]

    def refusal(self, value: Any, judge: Judge = bool) -> str:
        """What is said of a value that can't be sent: events before and after it are handled, in order."""
        before = len(self.errors)
        names = [self.fire(1, bool), self.fire(value, judge), self.fire(2, bool)]
        self.handler.flush()
        assert [name in self.verdicts.of for name in names] == [True, False, True]
        assert list(self.verdicts.of)[-2:] == [names[0], names[2]]
        assert len(self.errors) == before + 1
        return str(self.errors[-1])


@pytest.fixture(scope="module")
def court() -> Iterator[Court]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as there: sums come out the same
    court = Court()
    with court.handler:
        yield court
    torch.set_num_threads(threads)


@pytest.mark.parametrize("name", [case.name for case in COMMON])
def test_it_arrives_as_it_was(court: Court, name: str) -> None:
    court.judge(judges.NAMED[name].make(), partial(judges.case, name))


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_it_arrives_as_in_a_thread(court: Court, kind: Kind) -> None:
    court.judge(kind.make(), kind.equal)


@pytest.mark.parametrize("name", NETS)
def test_a_model_arrives_and_computes_the_same(court: Court, name: str) -> None:
    court.judge(seeded(NETS[name][0]), partial(judges.net, name))


def test_another_value_is_not_taken_for_it(court: Court) -> None:
    """The negative control: the judges do look."""
    kind = next(kind for kind in KINDS if kind.name == "tensor: big, transposed")
    name = court.fire(torch.arange(60_000.0).view(200, 300).t().contiguous(), kind.equal)
    other = court.fire(seeded(Tied, 1), partial(judges.net, "tied weights"))
    court.handler.flush()
    assert "says False" in str(court.verdicts.of[name])
    assert "AssertionError" in str(court.verdicts.of[other])


SPECIAL: dict[str, tuple[Callable[[], Any], Judge]] = {
    "a lazy net": (lambda: nn.Sequential(nn.LazyLinear(3)), judges.a_lazy_net),
    "tied weights": (Tied, judges.tied),
    "a frozen state": (lambda: TrainerState(optim_step=3), judges.a_frozen_state),
    "an optimizer refuses to step": (
        lambda: torch.optim.SGD([nn.Parameter(torch.ones(2))], 0.1),
        judges.a_view_refuses_to_change,
    ),
}


@pytest.mark.parametrize("what", SPECIAL)
def test_special(court: Court, what: str) -> None:
    make, judge = SPECIAL[what]
    court.judge(make(), judge)


def test_a_model_has_its_gradients_where_they_were_asked_for(court: Court) -> None:
    model = nn.Linear(3, 2)
    model.weight.grad = torch.full((2, 3), 2.0)
    model.bias.grad = None
    court.judge(with_gradients(model), judges.gradients)


def test_a_model_expires_after_its_hook_unless_it_is_kept(court: Court) -> None:
    model = nn.Linear(3, 2)
    court.judge(model, judges.expires)
    nn.init.constant_(model.weight, 2.0)
    court.judge(model, judges.kept_ones_tell)
    nn.init.constant_(model.weight, 3.0)
    court.judge(model, judges.a_kept_one_works)


def test_the_metrics_of_a_run_arrive_as_a_view(court: Court) -> None:
    metrics = MetricsHandler(loss=lambda preds: preds)
    metrics({"preds": torch.tensor([0.25, 0.75])})
    metrics.aggregate()
    court.judge(metrics, judges.metrics)


def test_metrics_that_came_after_the_event_are_not_sent() -> None:
    metrics = MetricsHandler(loss=lambda preds: preds)
    metrics({"preds": torch.ones(2)})
    taken = capture.kinds.get(MetricsHandler) or capture.kind(MetricsHandler)
    assert taken.quick is not None
    sealed: Any = taken.quick(metrics)
    metrics({"preds": torch.ones(2)})
    assert len(sealed.__getstate__()[1]["details"]) == 1


def test_maps_arrive(court: Court, tmp_path: Any) -> None:
    court.judge(Maps(tmp_path), partial(judges.maps, tmp_path))


# ----------------------------------------------------------------------------------------------------------- exceptions


def test_an_exception_arrives_with_its_arguments_text_and_cause(court: Court) -> None:
    try:
        try:
            raise ValueError("no 3")
        except ValueError as cause:
            raise OSError(28, "disk full") from cause
    except OSError as error:
        court.judge(error, judges.an_exception)


def test_an_exception_that_its_arguments_do_not_make_arrives(court: Court) -> None:
    court.judge(judges.Awkward(3, reason="full"), judges.an_awkward_exception)


# -------------------------------------------------------------------------------------------------------- big values


def test_big_values_are_read_where_the_parent_has_put_them(court: Court) -> None:
    big = {
        "tensor": torch.ones(50_000),
        "channels last": torch.ones(1, 3, 200, 200).to(memory_format=torch.channels_last),
        "transposed": torch.ones(200, 300).t(),
        "step": torch.ones(120_000)[::2],
        "bfloat16": torch.ones(50_000, dtype=torch.bfloat16),
        "parameter": nn.Parameter(torch.ones(50_000)),
        "array": np.ones(50_000),
        "Fortran": np.asfortranarray(np.ones((200, 300))),
        "frame": pd.DataFrame(np.ones((20_000, 4))),
    }
    court.judge(big, judges.everything_big_is_shared)


def test_a_big_model_and_its_optimizer_are_read_there_too(court: Court) -> None:
    model = nn.Linear(300, 300)
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.ones(1, 300)).sum().backward()
    optimizer.step()
    court.judge((model, optimizer), judges.the_net_is_shared)


def test_small_ones_are_the_hooks_own(court: Court) -> None:
    tensor = torch.ones(3)
    court.judge([tensor, tensor], judges.nothing_small_is_shared)
    assert torch.equal(tensor, torch.ones(3))


class Keeps:
    """Keeps every tenth value, and what it has kept."""

    def __init__(self) -> None:
        self.kept: list[torch.Tensor] = []
        self.sums: list[list[float]] = []
        self.where: list[int] = []

    def on_value(self, *, value: torch.Tensor, n: int) -> None:
        self.where.append(judges.address_of(value))
        if n % 10 == 0:
            self.kept.append(value)
        self.sums.append([float(one[0]) + float(one[-1]) for one in self.kept])


class Writes:
    """Writes to what it is given."""

    def __init__(self) -> None:
        self.where: list[int] = []
        self.seen: list[float] = []

    def on_value(self, *, value: torch.Tensor, small: torch.Tensor) -> None:
        self.where.append(judges.address_of(value))
        self.seen.append(float(small[0]))
        small.fill_(-1)


@pytest.mark.parametrize(("size", "count"), [(50_000, 60), (5_000_000, 20)], ids=["of several", "of one event"])
def test_what_a_hook_keeps_is_never_written_again(size: int, count: int) -> None:
    """In memory that several events share, and in memory of their own."""
    keeps, first, second, thread = Keeps(), Writes(), Writes(), Writes()
    there = [background(one, placement="process", lane="there") for one in (keeps, first, second)]
    limit = 20 * size
    handler = CallbacksHandler([*there, background(thread)], events=["on_value"], max_snapshot_bytes=limit)
    with handler:
        for n in range(count):
            handler.call_event("on_value", value=torch.full((size,), float(n)), small=torch.ones(3), n=n)
        assert handler.flush().delivered == 4 * count
        assert keeps.sums == [[20.0 * kept for kept in range(n // 10 + 1)] for n in range(count)]
        assert keeps.where == first.where == second.where  # what the hooks of a lane are given is one copy
        segments = handler._store.segments
        assert segments is not None
        assert segments.nbytes <= max(SLAB, limit) + SLAB
        assert len(set(keeps.where)) < count or size == 50_000  # what nobody keeps is used again
    for writes in (first, second, thread):
        assert writes.seen == [1.0] * count  # what others have written to their small ones is not seen


# ----------------------------------------------------------------------------------------------------- what is not sent


def test_loaders_datasets_and_splits_are_refused_by_name_with_the_remedy(court: Court) -> None:
    data = TensorDataset(torch.ones(4))
    for value, name in (
        (DataLoader(data), "DataLoader"),
        (data, "TensorDataset"),
        (Split(0, DataLoader(data)), "Split"),
        (Split(0, [torch.ones(1)]), "Split"),
        ({"train": [DataLoader(data)]}, "DataLoader"),
        (torch.utils.data.SequentialSampler(data), "SequentialSampler"),
    ):
        said = court.refusal(value)
        assert f"value: a {name} can't be sent to a process: capture what you need of it, with select=" in said
        assert "placement='thread'" in said


class Lock:
    """Captured as it is; holds what can't be pickled."""

    def __init__(self) -> None:
        self.lock = threading.Lock()


class Bomb:
    """Can be pickled, and not be made again."""

    def __reduce__(self) -> Any:
        return _explode, ("no",)


def _explode(why: str) -> None:
    raise ValueError(why)


capture.register(Lock)(lambda live: live)
capture.register(Bomb)(lambda live: live)


def test_a_value_that_can_not_be_pickled_fails_its_event_alone_and_is_named(court: Court) -> None:
    said = court.refusal({"a": Lock()})
    assert "verdicts.on_value: value: can't be sent to a process (cannot pickle '_thread.lock' object)" in said
    assert "select=" in said
    assert "placement='thread'" in said


def test_a_value_that_can_not_be_made_again_fails_its_event_alone(court: Court) -> None:
    said = court.refusal(Bomb())
    assert "value" in said
    assert "can't be made again in its process (ValueError: no)" in said


def test_a_scripted_model_is_refused(court: Court) -> None:
    said = court.refusal(torch.jit.trace(nn.Linear(2, 2), torch.ones(1, 2)))
    assert "value: " in said
    assert "process" in said
    assert "placement='thread'" in said


def test_a_big_value_that_is_refused_leaves_no_memory_in_use(court: Court) -> None:
    court.refusal([torch.ones(50_000), np.ones(50_000), Lock()])
    court.judge(1, bool)
    segments = court.handler._store.segments
    assert segments is not None
    assert not [one for one in segments._all.values() if one.users]


def test_a_python_module_arrives(court: Court) -> None:
    court.judge(types, judges.is_types)
