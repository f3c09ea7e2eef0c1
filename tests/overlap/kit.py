"""A copier that goes on only when the test says so, models whose tensors are big, and what an eager copy would be."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from async_trainer import Callback, CallbacksHandler, background
from async_trainer.snapshot import big, transfer
from async_trainer.snapshot.transfer import Transfer

assert big  # it must have the copier's own function before that is replaced
WIDTH = 132  # a square of it is 69,696 bytes of float32: above 64 KiB, so that it is big
Values = dict[str, Any]
Make = Callable[[Any], torch.optim.Optimizer]

OPTIMIZERS: dict[str, Make] = {
    "sgd": lambda weights: torch.optim.SGD(weights, 0.1, momentum=0.9, foreach=False),
    "sgd foreach": lambda weights: torch.optim.SGD(weights, 0.1, momentum=0.9, foreach=True),
    "sgd fused": lambda weights: torch.optim.SGD(weights, 0.1, momentum=0.9, fused=True),
    "adam": lambda weights: torch.optim.Adam(weights, 0.1, amsgrad=True, foreach=False),
    "adam foreach": lambda weights: torch.optim.Adam(weights, 0.1, foreach=True),
    "adam fused": lambda weights: torch.optim.Adam(weights, 0.1, fused=True),
    "adamw": lambda weights: torch.optim.AdamW(weights, 0.1, foreach=False),
    "adamw foreach": lambda weights: torch.optim.AdamW(weights, 0.1, foreach=True),
    "adamw fused": lambda weights: torch.optim.AdamW(weights, 0.1, fused=True),
}


class PacedCopier:
    """Tensor by tensor, the copier waits for ``allow``; and goes on by itself while the training waits for it, or once
    it is open.

    Attributes:
        late: tensors that were copied while the training went on.
        waits: how often the training has waited.
    """

    def __init__(self) -> None:
        self.late = 0
        self.waits = 0
        self.broken: BaseException | None = None
        self._copy = transfer.copy_all
        self._wait = Transfer.wait
        self._changed = threading.Condition()
        self._permits = 0
        self._waiting = 0
        self._open = False

    def allow(self, tensors: int) -> None:
        """Let it copy so many more tensors, in its own time."""
        with self._changed:
            self._permits += tensors
            self._changed.notify_all()

    def open(self) -> None:
        """Let it copy all."""
        with self._changed:
            self._open = True
            self._changed.notify_all()

    def pause(self) -> None:
        """From now on, it waits again."""
        with self._changed:
            self._open = False
            self._permits = 0

    def copy_all(self, pairs: Any) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._open or self._waiting or self._permits)
            if not (self._open or self._waiting):
                self._permits -= 1
        if self.broken is not None:
            raise self.broken
        self._copy(pairs)
        self.late += len(pairs)

    def wait(self, transfer: Transfer) -> float:
        if threading.get_ident() != threading.main_thread().ident or transfer.done:
            return self._wait(transfer)
        with self._changed:
            self.waits += 1
            self._waiting += 1
            self._changed.notify_all()
        try:
            return self._wait(transfer)
        finally:
            with self._changed:
                self._waiting -= 1


@contextmanager
def paced(monkeypatch: pytest.MonkeyPatch) -> Iterator[PacedCopier]:
    pace = PacedCopier()
    with monkeypatch.context() as patch:
        patch.setattr(transfer, "CHUNK", 1)
        patch.setattr(transfer, "copy_all", pace.copy_all)
        patch.setattr(Transfer, "wait", lambda transfer: pace.wait(transfer))
        try:
            yield pace
        finally:
            pace.open()


class Net(nn.Module):
    """Big weights, a big and a small batch norm, tied weights, a frozen layer, an average of the weights."""

    def __init__(self, *, norm: bool = True) -> None:
        super().__init__()
        self.first = nn.Linear(WIDTH, WIDTH)
        self.norm = nn.BatchNorm1d(WIDTH) if norm else nn.Identity()
        self.second = nn.Linear(WIDTH, WIDTH, bias=False)
        self.tied = nn.Linear(WIDTH, WIDTH, bias=False)
        self.tied.weight = self.second.weight
        self.frozen = nn.Linear(WIDTH, WIDTH).requires_grad_(False)

    def forward(self, x: Tensor) -> Any:
        return self.tied(self.frozen(self.second(self.norm(self.first(x)).relu())))


class BigNorm(nn.Module):
    """Batch norm over so many channels that its buffers are big."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(20_000)

    def forward(self, x: Tensor) -> Any:
        return self.norm(x)


def values(model: nn.Module | None, optimizers: Any = ()) -> Values:
    """All values of both, by name: copied here and now."""
    found: Values = {}
    if model is not None:
        _put(found, "model", model.state_dict())
    several = optimizers if isinstance(optimizers, (list, tuple)) else [optimizers]
    for place, optimizer in enumerate(several):
        _put(found, f"optimizer {place}", optimizer.state_dict())
    return found


def _put(found: Values, name: str, value: Any) -> None:
    if isinstance(value, Tensor):
        found[name] = value.detach().clone()
    elif isinstance(value, Mapping):
        for key, part in value.items():
            _put(found, f"{name}.{key}", part)
    elif isinstance(value, (list, tuple)):
        for place, part in enumerate(value):
            _put(found, f"{name}.{place}", part)
    else:
        found[name] = value


def differences(seen: Values, reference: Values) -> list[str]:
    """The names of what isn't the same, bit for bit."""
    wrong = sorted(seen.keys() ^ reference.keys())
    for name in seen.keys() & reference.keys():
        a, b = seen[name], reference[name]
        same = torch.equal(a, b) if isinstance(a, Tensor) and isinstance(b, Tensor) else a == b
        if not same:
            wrong.append(name)
    return wrong


class Sees(Callback):
    """Keeps copies of what it is given, by step; at its own pace, if ``gate`` is one."""

    def __init__(self, gate: threading.Semaphore | None = None) -> None:
        self.seen: dict[int, Values] = {}
        self._gate = gate

    def on_batch_end(self, *, step: int, model: nn.Module, optimizers: Any) -> None:
        if self._gate is not None:
            self._gate.acquire()
        self.seen[step] = values(model, optimizers)


class SeesModel(Sees):
    """The same, of the model alone."""

    def on_batch_end(self, *, step: int, model: nn.Module) -> None:  # type: ignore[override]
        self.seen[step] = values(model)


class Run:
    """A training whose events are compared with eager copies.

    Args:
        model: the model.
        optimizers: one, or a list.
        sees: the callback; it names the model and the optimizers, or the model alone.
        each: the optimizers come with each event, not at the start of the run.
    """

    def __init__(
        self, model: nn.Module, optimizers: Any, sees: Sees | None = None, *, each: bool = False, **settings: Any
    ) -> None:
        self.model = model
        self.optimizers = optimizers
        self.sees = sees or Sees()
        self.each = each
        self.references: dict[int, Values] = {}
        self.handler = CallbacksHandler([background(self.sees, name="sees")], **settings)
        if each:
            self.handler.call_event("on_train_start", model=model)
        else:
            self.handler.call_event("on_train_start", model=model, optimizers=optimizers)

    def event(self) -> None:
        step = len(self.references)
        alone = isinstance(self.sees, SeesModel)
        self.references[step] = values(self.model, () if alone else self.optimizers)
        more = {"optimizers": self.optimizers} if self.each else {}
        self.handler.call_event("on_batch_end", step=step, **more)

    def torn(self) -> list[str]:
        """What is torn, among the events that were delivered. Waits for all."""
        report = self.handler.flush(30)
        assert not report.stalled
        return [
            f"{step}: {name}"
            for step, seen in self.sees.seen.items()
            for name in differences(seen, self.references[step])
        ]

    def check(self) -> None:
        """Nothing is torn, nothing has failed, nothing is missing."""
        torn = self.torn()
        assert not torn, torn[:10]
        stats = self.handler.stats()
        assert not stats.errors, stats.errors
        assert len(self.sees.seen) == len(self.references) > 0


def forward(run: Run, seed: int) -> Any:
    generator = torch.Generator().manual_seed(seed)
    return run.model(torch.randn(4, WIDTH, generator=generator)).square().mean()


def train(run: Run, steps: int) -> None:
    """An event after each forward, backward and step."""
    for step in range(steps):
        several = run.optimizers if isinstance(run.optimizers, list) else [run.optimizers]
        for optimizer in several:
            optimizer.zero_grad()
        loss = forward(run, step)
        run.event()
        loss.backward()
        run.event()
        for optimizer in several:
            optimizer.step()
        run.event()
