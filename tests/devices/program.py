"""A training of a few steps on a fake accelerator, in every order that its parts can run in."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from async_trainer.snapshot import Memo, Scope, Store, open_value, take
from async_trainer.snapshot.devices import Devices
from tests.devices.fake import FakeAccelerator

BIG = 20_000  # floats: more than 64 KiB


class Net(torch.nn.Module):
    """Big and small, what the optimizer changes and what ``forward`` does."""

    running: torch.Tensor
    count: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(BIG))
        self.bias = torch.nn.Parameter(torch.zeros(3))
        self.register_buffer("running", torch.zeros(BIG))
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))


class Lagging(torch.optim.Optimizer):
    """Its kernels run when their stream comes to them. The state: one big tensor."""

    def __init__(self, parameters: Any, stream: Any) -> None:
        super().__init__(parameters, {})
        self.stream = stream
        self.changes = [*self.param_groups[0]["params"]]
        self.state[self.changes[0]]["momentum"] = torch.zeros(BIG)
        self.changes.append(self.state[self.changes[0]]["momentum"])

    def step(self, closure: Any = None) -> None:
        self.stream.put(lambda: add_one(self.changes), reads=self.changes, writes=self.changes)


Lagging.__module__ = "torch.optim.lagging"  # so that its steps are fenced, as torch's own are


def add_one(tensors: list[torch.Tensor]) -> None:
    with torch.no_grad():
        for tensor in tensors:
            tensor += 1


class Job:
    """A captured event: what a hook gets, and what it should be."""

    def __init__(self, taken: Any, memo: Memo, offload: Any, forwards: int, steps: int) -> None:
        self.taken = taken
        self.buffers = memo.buffers
        self.offload = offload
        self.expected = {"forward": forwards, "step": steps}
        self.opened: Any = None

    def read(self) -> dict[str, set[int]]:
        """The values that a hook sees, by what changes them."""
        model, optimizer = self.opened["model"], self.opened["optimizer"]
        momentum = next(iter(optimizer.state.values()))["momentum"]
        seen = {
            "forward": [model.running, model.count, self.opened["batch"], self.opened["loss"]],
            "step": [model.weight, model.bias, momentum],
        }
        return {key: {int(v) for t in tensors for v in t.detach().unique()} for key, tensors in seen.items()}


class Program:
    """A training thread, two streams, and a worker: each goes on when it is told to."""

    def __init__(self, script: str, oracle: Any = None) -> None:
        self.accelerator = FakeAccelerator(oracle=oracle)
        self.store = Store(1 << 30, {"fence": 0.0})
        self.store.devices = Devices(self.accelerator)
        self.model = Net()
        self.optimizer = Lagging(self.model.parameters(), self.accelerator.kernels)
        self.store.watch([self.optimizer])
        self.batch = torch.zeros(BIG)
        self.loss = torch.zeros(())
        self.script = script
        self.forwards = self.steps = 0
        self.place = 0
        self.jobs: list[Job] = []
        self.finished = 0
        self.wrong: list[str] = []

    def moves(self) -> list[Callable[[], None]]:
        """What may happen next."""
        accelerator = self.accelerator
        found: list[Callable[[], None]] = []
        if self.place < len(self.script):
            found.append(self.train)
        found += [stream.advance for stream in (accelerator.kernels, accelerator.copies) if stream.able]
        if self.finished < len(self.jobs):
            job = self.jobs[self.finished]
            if job.opened is not None:
                found.append(self.finish)
            elif job.offload.done:
                found.append(self.open)
        return found

    def train(self) -> None:
        """The training thread's next step: f(orward), s(tep), or c(apture)."""
        move = self.script[self.place]
        self.place += 1
        if move == "f":
            self.forwards += 1
            changes = [self.model.running, self.model.count, self.batch, self.loss]
            self.accelerator.kernels.put(lambda: add_one(changes), reads=changes, writes=changes)
        elif move == "s":
            self.steps += 1
            self.optimizer.step()
        else:
            self.capture()

    def capture(self) -> None:
        memo = Memo(self.store)
        live = {"model": self.model, "optimizer": self.optimizer, "batch": self.batch, "loss": self.loss}
        taken = {name: take(value, memo, name) for name, value in live.items()}
        offload = self.store.launch(memo)
        self.jobs.append(Job(taken, memo, offload, self.forwards, self.steps))

    def open(self) -> None:
        """The worker opens an event: a hook has its arguments."""
        job = self.jobs[self.finished]
        job.offload.check()
        scope = Scope()
        job.opened = {name: open_value(part, scope) for name, part in job.taken.items()}

    def finish(self) -> None:
        """The hook reads them, and the event is over."""
        job = self.jobs[self.finished]
        seen = job.read()
        if seen != {key: {value} for key, value in job.expected.items()}:
            self.wrong.append(f"event {self.finished}: {job.expected} was read as {seen}")
        self.finished += 1
        job.opened = job.taken = job.offload = None
        buffers, job.buffers = job.buffers, []
        self.store.give_back(buffers)

    def fingerprint(self) -> tuple[Any, ...]:
        """Programs of the same one go on in the same way."""
        accelerator, devices = self.accelerator, self.store.devices
        assert devices is not None
        live = [self.model.weight, self.model.running, self.batch, *self.optimizer.changes]
        made = [head(one()) for one in accelerator.made]
        return (
            self.place,
            len(accelerator.kernels.queue),
            len(accelerator.copies.queue),
            self.finished,
            tuple(job.opened is not None for job in self.jobs),
            tuple(float(tensor.detach()[0]) for tensor in live),
            tuple(made),
            tuple(sorted(str(key) + str(len(waiting)) for key, waiting in devices._free.items())),
            len(devices._returned),
        )


def head(storage: Any) -> tuple[int, ...] | None:
    """The first bytes of some memory, if there is any."""
    if storage is None:
        return None
    found: list[int] = torch.empty(0, dtype=torch.uint8).set_(storage, 0, (min(72, storage.nbytes()),)).tolist()
    return tuple(found)


@contextmanager
def on_the_device() -> Iterator[None]:
    """Every tensor says that it isn't the CPU's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.Tensor, "is_cpu", False)
        yield


def explore(script: str, limit: int = 20_000, *, until_wrong: bool = False) -> tuple[int, list[str]]:
    """Run ``script`` in every order; or only until a hook has read something wrong.

    Returns:
        How many different situations there were, and what hooks have read wrong.
    """
    known: set[tuple[Any, ...]] = set()
    wrong: set[str] = set()
    paths: list[tuple[int, ...]] = [()]
    while paths and not (until_wrong and wrong):
        path = paths.pop()
        program = Program(script)
        for choice in path:
            program.moves()[choice]()
        while True:
            wrong.update(program.wrong)
            mark = program.fingerprint()
            if mark in known:
                break
            known.add(mark)
            moves = program.moves()
            if not moves:
                assert program.finished == script.count("c"), "somebody waits for ever"
                break
            paths += [(*path, choice) for choice in range(1, len(moves))]
            path = (*path, 0)
            moves[0]()
        assert len(known) < limit
    return len(known), sorted(wrong)
