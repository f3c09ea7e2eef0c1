"""What is asked of an accelerator: its streams, pinned memory, and copies from the one to the other."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import cache
from typing import Any, Protocol

import torch

logger = logging.getLogger("async_trainer")

Pairs = Sequence[tuple[torch.Tensor, torch.Tensor]]


class Event(Protocol):
    """A place in a stream."""

    def query(self) -> bool:
        """Whether the stream has come to it. Never waits."""


class Stream(Protocol):
    """Work that a device does in order. Nothing here waits for it."""

    def record_event(self) -> Event:
        """Its place now: after all that was put into it."""

    def wait_event(self, event: Event) -> None:
        """What is put into it from now on comes after ``event``."""


class Accelerator(Protocol):
    """The devices of one type. Nothing here waits for them."""

    def holds(self, tensor: torch.Tensor) -> bool:
        """Whether ``tensor`` is on one of them."""

    def current(self, device: torch.device) -> Stream:
        """The stream that this thread's kernels go to."""

    def side(self, device: torch.device) -> Stream:
        """The stream that copies go to."""

    def pinned(self, like: torch.Tensor) -> torch.Tensor:
        """Host memory that a device can write to by itself; of the form of ``like``."""

    def pack(self, parts: Sequence[torch.Tensor]) -> torch.Tensor:
        """The bytes of ``parts``, one after the other, in new memory of their device; on the current stream."""

    def copy(self, stream: Stream, pairs: Pairs) -> None:
        """Copy, on ``stream``, into each first tensor the second; both flat, of the same bytes."""


class TorchAccelerator:
    """The accelerator of this build of torch.

    Each of its streams is for one handler: one aside for each device.
    """

    def __init__(self, kind: str) -> None:
        self._kind = kind
        self._sides: dict[torch.device, torch.Stream] = {}

    def __repr__(self) -> str:
        return f"<TorchAccelerator: {self._kind}>"

    def holds(self, tensor: torch.Tensor) -> bool:
        return tensor.device.type == self._kind

    def current(self, device: torch.device) -> Any:
        return torch.accelerator.current_stream(device)

    def side(self, device: torch.device) -> Any:
        if device not in self._sides:
            self._sides[device] = torch.Stream(device=device)
        return self._sides[device]

    def pinned(self, like: torch.Tensor) -> torch.Tensor:
        # The device by name: torch.set_default_device() may have set another.
        form = like.shape, like.stride()
        return torch.empty_strided(*form, dtype=like.dtype, device="cpu", pin_memory=True)

    def pack(self, parts: Sequence[torch.Tensor]) -> torch.Tensor:
        return torch.cat(list(parts))

    def copy(self, stream: Any, pairs: Pairs) -> None:
        index = torch.accelerator.current_device_index()
        before = torch.accelerator.current_stream(stream.device)
        try:
            torch.accelerator.set_stream(stream)  # and its device
            for host, source in pairs:
                host.copy_(source, non_blocking=True)
        finally:
            torch.accelerator.set_stream(before)
            torch.accelerator.set_device_index(index)


@cache
def accelerator_kind() -> str | None:
    """The type of device whose tensors can be copied aside on this machine, if there is one.

    Asked for when the first tensor comes that isn't on the CPU: before, looking could make a fork unsafe. "mps" has a
    single stream, and its memory is the host's: its tensors are cloned.
    """
    if not torch.accelerator.is_available():
        return None
    found = torch.accelerator.current_accelerator()
    if found is None or found.type == "mps":
        return None
    device = torch.device(found.type, torch.accelerator.current_device_index())
    trial = TorchAccelerator(found.type)
    try:
        trial.pinned(torch.empty(1, device="meta"))
        trial.side(device).wait_event(trial.current(device).record_event())
    except (RuntimeError, NotImplementedError) as error:
        logger.warning("tensors on %s are cloned there, since copies aside can't be made: %s", found.type, error)
        return None
    return found.type


def dense(live: torch.Tensor) -> tuple[torch.Tensor, bool]:
    """``live``, or a copy on the current stream without holes and marks; and whether it is a copy."""
    if live.is_conj() or live.is_neg():
        live = live.resolve_conj().resolve_neg()
        return live, True
    if live.is_contiguous() or _fills_its_memory(live):
        return live, False
    return live.clone(), True


def _fills_its_memory(live: torch.Tensor) -> bool:
    expected = 1
    for stride, size in sorted(zip(live.stride(), live.shape, strict=True)):
        if size != 1:
            if stride != expected:
                return False
            expected *= size
    return True


def flat(tensor: torch.Tensor) -> torch.Tensor:
    """The bytes of a dense tensor: a view. Only between such can a device copy by itself, whatever the strides."""
    return tensor.as_strided((tensor.numel(),), (1,)).view(torch.uint8)


def form(tensor: torch.Tensor) -> torch.Tensor:
    """Type, shape and strides of a tensor."""
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="meta")
