"""An accelerator whose streams advance when the test says so. Its memory is the host's."""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch

GARBAGE = 0x7F


class FakeEvent:
    """A place in a stream."""

    def __init__(self) -> None:
        self.fired = False

    def query(self) -> bool:
        return self.fired


class Work:
    """One kernel or copy: it starts when all of ``after`` have fired, and fires ``then``."""

    def __init__(self, action: Callable[[], None], after: list[FakeEvent]) -> None:
        self.action = action
        self.after = after
        self.then: list[FakeEvent] = []


class FakeStream:
    """Work in order. ``eager``: done as soon as it is put in, where nothing holds it up."""

    def __init__(self, name: int, eager: bool, oracle: Any) -> None:
        self.name = name
        self.queue: deque[Work] = deque()
        self._eager = eager
        self._oracle = oracle
        self._after: list[FakeEvent] = []
        if oracle is not None:
            oracle._handle_stream_creation(name)

    def put(
        self, action: Callable[[], None], reads: Iterable[torch.Tensor] = (), writes: Iterable[torch.Tensor] = ()
    ) -> None:
        """A kernel, and what it reads and writes on the device: for the oracle."""
        if self._oracle is not None:
            self._oracle.launch(self.name, reads, writes)
        self.queue.append(Work(action, self._after))
        self._after = []
        while self._eager and self.able:
            self.advance()

    def record_event(self) -> FakeEvent:
        event = FakeEvent()
        if self._oracle is not None:
            self._oracle._handle_event_record(id(event), self.name)
            self._oracle.events.append(event)  # so that no id is used twice
        if self._after:
            self.put(lambda: None)
        if self.queue:
            self.queue[-1].then.append(event)
        else:
            event.fired = True
        return event

    def wait_event(self, event: FakeEvent) -> None:
        if self._oracle is not None:
            self._oracle._handle_event_wait(id(event), self.name)
        self._after.append(event)

    @property
    def able(self) -> bool:
        """Whether it can go on."""
        return bool(self.queue) and all(event.fired for event in self.queue[0].after)

    def advance(self) -> None:
        """Do the first of its work."""
        work = self.queue.popleft()
        work.action()
        for event in work.then:
            event.fired = True


class FakeAccelerator:
    """One device, with a stream for kernels and one for copies.

    Memory that nobody holds when it is read has got other content meanwhile, as from a caching allocator.
    """

    def __init__(self, *, eager: bool = False, oracle: Any = None) -> None:
        self.kernels = FakeStream(0, eager, oracle)
        self.copies = FakeStream(1, eager, oracle)
        self.made: list[weakref.ref[Any]] = []  # pinned memory and packs
        self.pinned_count = 0
        self.transfers = 0

    def holds(self, tensor: torch.Tensor) -> bool:
        return True

    def current(self, device: torch.device) -> Any:
        return self.kernels

    def side(self, device: torch.device) -> Any:
        return self.copies

    def pinned(self, like: torch.Tensor) -> torch.Tensor:
        self.pinned_count += 1
        return self._make(torch.empty_strided(like.shape, like.stride(), dtype=like.dtype, device="cpu"))

    def pack(self, parts: Sequence[torch.Tensor]) -> torch.Tensor:
        packed = self._make(torch.empty(sum(part.numel() for part in parts), dtype=torch.uint8))
        into = weakly(packed)
        held = list(parts)  # freed memory is used again in the order of this stream: after the pack
        self.kernels.put(lambda: write(into, torch.cat(held)), reads=held, writes=[packed])
        return packed

    def copy(self, stream: Any, pairs: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> None:
        for host, source in pairs:
            self.transfers += 1
            into, out_of = weakly(host), weakly(source)
            stream.put(lambda into=into, out_of=out_of: write(into, read(out_of)), reads=[source])

    def _make(self, tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        torch.empty(0, dtype=torch.uint8).set_(storage, 0, (storage.nbytes(),)).fill_(GARBAGE)
        self.made.append(weakref.ref(tensor.untyped_storage()))
        return tensor


Place = tuple["weakref.ref[Any]", int, int]


def weakly(tensor: torch.Tensor) -> Place:
    """Where some bytes are, without holding them."""
    assert tensor.dtype == torch.uint8
    return weakref.ref(tensor.untyped_storage()), tensor.storage_offset(), tensor.numel()


def _bytes(place: Place) -> torch.Tensor | None:
    storage = place[0]()
    return None if storage is None else torch.empty(0, dtype=torch.uint8).set_(storage, place[1], (place[2],))


def read(place: Place) -> torch.Tensor:
    found = _bytes(place)
    return torch.full((place[2],), GARBAGE, dtype=torch.uint8) if found is None else found.clone()


def write(place: Place, content: torch.Tensor) -> None:
    found = _bytes(place)
    if found is not None:
        found.copy_(content)
