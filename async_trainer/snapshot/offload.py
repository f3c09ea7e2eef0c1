"""One event's copies from devices: who waits for them, and how."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import torch

from async_trainer.errors import CaptureError
from async_trainer.snapshot.accelerators import Accelerator, Event

if TYPE_CHECKING:
    from async_trainer.snapshot.sealed import SealedLeaf
    from async_trainer.snapshot.transfer import Transfer

PAUSES = 50e-6, 2e-3  # s: a worker looks ever less often. Event.synchronize() would spin, on a core for each lane
clock = time.perf_counter


class Offload:
    """The copies of one event that devices make.

    Attributes:
        ready: by device, the event after its copies.
        error: what went wrong.
    """

    __slots__ = ("_also", "_arenas", "_held", "_over", "accelerator", "error", "ready")

    def __init__(self, accelerator: Accelerator, also: Transfer | None) -> None:
        self.accelerator = accelerator
        self.ready: list[tuple[torch.device, Event]] = []
        self.error: CaptureError | None = None
        self._also = also  # the event's copies of CPU tensors
        self._held: list[torch.Tensor] = []
        self._arenas: list[tuple[torch.Tensor, list[tuple[SealedLeaf, torch.Tensor]]]] = []
        self._over = False

    def hold(self, sources: Iterable[torch.Tensor]) -> None:
        """Keep the memory of ``sources`` from being used for something else before it is copied."""
        self._held += sources

    def unpack_later(self, arena: torch.Tensor, parts: list[tuple[SealedLeaf, torch.Tensor]]) -> None:
        """``arena`` will have the bytes of ``parts``: what seals a tensor, and an empty one of its form."""
        self._arenas.append((arena, parts))

    @property
    def done(self) -> bool:
        """Whether the copies are made. Any thread; never waits."""
        if self._also is not None and not self._also.done:
            return False
        if not self._over:
            try:
                over = all(event.query() for _, event in self.ready)
            except Exception as error:  # of a kernel, as a rule: the device is of no more use
                self.fail(error)
                over = True
            if over:
                self._over = True
                self._held = []
        return self._over

    def wait(self) -> float:
        """Wait until they are. Any thread; of the training's own only those that run hooks on the spot.

        Returns:
            The seconds that this took.
        """
        began = clock()
        if self._also is not None:
            self._also.wait()
        pause, longest = PAUSES
        while not self.done:
            time.sleep(pause)
            pause = min(2 * pause, longest)
        return clock() - began

    def check(self) -> None:
        """Wait, raise what went wrong, and make what was packed ready to be opened. WORKER thread, several at once.

        Raises:
            CaptureError: a tensor could not be copied.
        """
        self.wait()
        if self._also is not None:
            self._also.check()
        if self.error is not None:
            raise self.error
        for arena, parts in self._arenas:
            unpack(arena, parts)
        self._arenas = []  # two threads may both have unpacked: each tensor is one of theirs, and they are the same

    def fail(self, error: Exception) -> None:
        """Have those who open it raise ``error``."""
        failure = CaptureError(f"copying from the device failed: {error}")
        failure.__cause__ = error.with_traceback(None)  # whose frames hold live values
        self.error = self.error or failure


class Guard:
    """What one optimizer's fence waits for: the device does, the training thread doesn't."""

    __slots__ = ("_offload", "_passed")

    def __init__(self, offload: Offload) -> None:
        self._offload = offload
        self._passed = False

    @property
    def done(self) -> bool:
        """Whether the next step needs no more."""
        return self._passed or self._offload.done

    def wait(self) -> float:
        """What the current streams do from now on comes after the copies. TRAINING THREAD.

        Returns:
            The seconds that this took: none.
        """
        for device, event in self._offload.ready:
            self._offload.accelerator.current(device).wait_event(event)
        self._passed = True
        return 0.0


def unpack(arena: torch.Tensor, parts: Sequence[tuple[SealedLeaf, torch.Tensor]]) -> None:
    """Give each of ``parts`` its own of ``arena``: in other memory, so that no hook holds the pinned. WORKER thread."""
    with torch.inference_mode(False):
        copied = arena[: sum(like.nbytes for _, like in parts)].clone()
        start = 0
        for sealed, like in parts:
            end = start + like.nbytes
            sealed.copied = copied[start:end].view(like.dtype).as_strided(like.shape, like.stride())
            start = end
