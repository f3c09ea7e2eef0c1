"""Every order of kernels, copies, optimizer steps, hooks and reused memory: each hook reads the values of its event."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import pytest
import torch
from torch.cuda._sanitizer import EventHandler

from async_trainer.snapshot import buffers
from async_trainer.snapshot.devices import Pinned
from async_trainer.snapshot.offload import Guard, Offload
from tests.devices.fake import FakeStream
from tests.devices.program import Program, explore, on_the_device

# c: capture an event; f: forward, which changes buffers, batch and loss; s: the optimizer's step.
SCRIPTS = ["cfs", "cscs", "cfscfs", pytest.param("fcscfs", marks=pytest.mark.slow)]


@pytest.fixture(autouse=True)
def device() -> Iterator[None]:
    with on_the_device():
        yield


@pytest.mark.parametrize("script", SCRIPTS)
def test_in_every_order_each_hook_reads_the_values_of_its_event(script: str) -> None:
    situations, wrong = explore(script)
    assert situations > 10 * script.count("c")
    assert wrong == []


def without_the_wait_before_the_copy(patch: pytest.MonkeyPatch) -> None:
    wait = FakeStream.wait_event
    patch.setattr(FakeStream, "wait_event", lambda self, event: wait(self, event) if self.name == 0 else None)


def without_the_fence(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Guard, "wait", lambda self: 0.0)


def without_waiting_for_what_no_fence_guards(patch: pytest.MonkeyPatch) -> None:
    wait, capture = FakeStream.wait_event, Program.capture
    capturing = []

    def captured(self: Program) -> None:
        capturing.append(True)
        capture(self)
        capturing.clear()

    patch.setattr(Program, "capture", captured)
    patch.setattr(
        FakeStream, "wait_event", lambda self, event: None if capturing and self.name == 0 else wait(self, event)
    )


def without_holding_what_is_copied(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Offload, "hold", lambda self, sources: None)


def with_memory_used_again_before_it_is_read(patch: pytest.MonkeyPatch) -> None:
    capture = Program.capture

    def captured(self: Program) -> None:
        capture(self)
        self.store.give_back(self.jobs[-1].buffers)

    patch.setattr(Program, "capture", captured)
    patch.setattr(Pinned, "settled", True)
    patch.setattr(buffers, "in_use", lambda tensor: False)


def with_events_opened_before_they_are_ready(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Offload, "done", True)


CONTROLS = [
    without_the_wait_before_the_copy,
    without_the_fence,
    without_waiting_for_what_no_fence_guards,
    without_holding_what_is_copied,
    with_memory_used_again_before_it_is_read,
    with_events_opened_before_they_are_ready,
]


@pytest.mark.parametrize("control", CONTROLS)
def test_wrong_values_are_found(control: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    control(monkeypatch)
    _, wrong = explore("cfscf", until_wrong=True)
    assert wrong


class Oracle(EventHandler):
    """torch's own detector of races between streams (TORCH_CUDA_SANITIZER), told of what would run."""

    def __init__(self) -> None:
        super().__init__()
        self.events: list[Any] = []
        self.races: list[str] = []

    def launch(self, stream: int, reads: Iterable[torch.Tensor], writes: Iterable[torch.Tensor]) -> None:
        written = {tensor.untyped_storage().data_ptr() for tensor in writes}
        read = {tensor.untyped_storage().data_ptr() for tensor in reads} - written
        names = {pointer: [""] for pointer in read | written}
        self.races += map(str, self._handle_kernel_launch(stream, read, written, set(), "", names))


def races(script: str) -> list[str]:
    """What the detector says of ``script``. It needs no orders: it knows what must come before what."""
    oracle = Oracle()
    program = Program(script, oracle)
    for _ in script:
        program.train()
    return oracle.races


@pytest.mark.parametrize("script", SCRIPTS)
def test_the_sanitizer_finds_no_race(script: str) -> None:
    assert races(script) == []


@pytest.mark.parametrize("control", CONTROLS[:3])
def test_the_sanitizer_finds_a_missing_wait(control: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    control(monkeypatch)
    assert races("fcfs")
