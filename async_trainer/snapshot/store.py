"""Where the big copies of a handler's events are: warm buffers, filled at once, or while the training goes on."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from async_trainer.snapshot.shared import Block, Segments

if TYPE_CHECKING:
    import torch

    from async_trainer.snapshot.buffers import Buffers, Pooled
    from async_trainer.snapshot.copier import Copier
    from async_trainer.snapshot.devices import Devices
    from async_trainer.snapshot.fence import Fence
    from async_trainer.snapshot.memo import Memo
    from async_trainer.snapshot.offload import Offload
    from async_trainer.snapshot.transfer import Transfer

STOP = 5.0  # s: for copies under way at the end


class Store:
    """The buffers, the copier and the fences of a handler. It loads torch when the first tensor comes.

    Args:
        limit: bytes that the buffers in use and those that wait may take together.
        waited: the seconds that the training thread has waited, by what for; added to under ``"fence"``.
        overlap: whether copies may be made while the training goes on.

    Attributes:
        devices: the accelerators, once a tensor on one has come.
        segments: the memory that child processes see, once there is some.
    """

    def __init__(self, limit: int, waited: dict[str, float], *, overlap: bool = True) -> None:
        self._limit = limit
        self._waited = waited
        self._overlap = overlap
        self._buffers: Buffers | None = None
        self._copier: Copier | None = None
        self._fences: list[Fence] = []
        self.devices: Devices | None = None
        self.segments: Segments | None = None

    def __repr__(self) -> str:
        return f"<Store: {self.waiting_bytes} bytes wait to be used again, {len(self._fences)} optimizers fenced>"

    # ------------------------------------------------------------------------------------------------- the optimizers

    def watch(self, values: Iterable[Any]) -> None:
        """Fence the optimizers among ``values``: what they change may be copied until their next step. TRAINING
        THREAD."""
        if not self._overlap or "torch" not in sys.modules:
            return
        from async_trainer.snapshot.fence import Fence, torchs_own

        for optimizer in torchs_own(values):
            if not any(fence.guards(optimizer) for fence in self._fences):
                self._fences = [fence for fence in self._fences if fence.alive]
                self._fences.append(Fence(optimizer, self._waited))

    def fenced(self) -> dict[int, Fence]:
        """The fence of each parameter that has one, by the parameter's id. TRAINING THREAD."""
        # Of several for one parameter, that which steps now comes last: nothing may be copied later then.
        fences = sorted(self._fences, key=lambda fence: fence.stepping)
        found: dict[int, Fence] = {}
        for fence in fences:
            found |= dict.fromkeys(fence.parameters(), fence)
        return found

    def fence_of(self, optimizer: object) -> Fence | None:
        """The fence of an optimizer, if it has one."""
        return next((fence for fence in self._fences if fence.guards(optimizer)), None)

    def fence(self) -> None:
        """Wait for all copies that are under way. TRAINING THREAD."""
        for fence in self._fences:
            fence.wait()

    # ---------------------------------------------------------------------------------------------------- the copies

    def buffer(self, live: torch.Tensor, used: int) -> torch.Tensor | None:
        """A buffer for a copy of ``live``, while ``used`` bytes are in use; None: it has no form that is kept warm."""
        return self._warm().like(live, self._limit - used)

    def _warm(self) -> Buffers:
        if self._buffers is None:
            from async_trainer.snapshot.buffers import Buffers

            self._buffers = Buffers()
        return self._buffers

    def transfer(self, memo: Memo) -> Transfer:
        """That of an event, whose copies are made while the training goes on. TRAINING THREAD."""
        if memo.transfer is None:
            from async_trainer.snapshot.transfer import Transfer

            memo.transfer = Transfer(self._warm(), self._limit - memo.used)
            memo.buffers.append(memo.transfer)
        return memo.transfer

    def block(self, nbytes: int, used: int) -> Block | None:
        """Memory for ``nbytes`` of big copies that a child process is to see, while ``used`` bytes are in use; None:
        there is none, and they go elsewhere. Any thread."""
        nbytes += nbytes >> 9  # each starts at a round address
        segments = self.shared()
        segments.trim(self._limit - used)
        try:
            return segments.block(nbytes)
        except OSError:
            return None

    def shared(self) -> Segments:
        """The memory that child processes see. Any thread."""
        if self.segments is None:
            self.segments = Segments(self._limit)
        return self.segments

    def submit(self, transfer: Transfer, fences: Iterable[Fence]) -> None:
        """Make the copies of ``transfer`` while the training goes on, until one of ``fences`` waits. TRAINING
        THREAD."""
        if self._copier is None:
            from async_trainer.snapshot.copier import Copier

            self._copier = Copier(self._tidy)
        self._copier.submit(transfer)  # first: nobody may wait for what Ctrl-C has kept from being made
        for fence in fences:
            fence.expect(transfer)

    def launch(self, memo: Memo) -> Offload | None:
        """Start the copies of what ``memo`` has found on accelerators. TRAINING THREAD."""
        if self.devices is None:
            return None
        waiting = self._buffers.nbytes if self._buffers is not None else 0
        return self.devices.launch(memo, self._limit - memo.used - waiting)

    def reclaim(self, used: int) -> None:
        """Look at what was given back; what waits takes no more than the budget has left. TRAINING THREAD."""
        if self._buffers is not None:
            self._buffers.reclaim()
            room = self._limit - used - (self.devices.nbytes if self.devices is not None else 0)
            self._waited["fence"] += self._buffers.settle(room)
            self._buffers.trim(room)
        if self.segments is not None:
            self.segments.trim(self._limit - used)

    def give_back(self, buffers: Sequence[Pooled]) -> None:
        """The last lane is done with ``buffers``. Any thread, possibly under a lock."""
        if self._buffers is not None:
            self._buffers.give_back(buffers)
            if self._copier is not None:
                self._copier.tidy()  # so that the training thread has nothing to look at
        if self.devices is not None:
            self.devices.give_back(buffers)

    def _tidy(self) -> None:
        buffers = self._buffers
        if buffers is not None:
            buffers.reclaim()

    @property
    def waiting_bytes(self) -> int:
        """Bytes of buffers that wait to be used again."""
        return sum(kind.nbytes for kind in (self._buffers, self.devices) if kind is not None)

    # -------------------------------------------------------------------------------------------------------- the end

    def close(self, timeout: float = STOP) -> None:
        """Let the copies under way be made, end the copier, and leave the optimizers as they were. Any thread."""
        self._overlap = False
        copier, self._copier = self._copier, None
        if copier is not None:
            copier.stop(timeout)
        fences, self._fences = self._fences, []
        for fence in fences:
            fence.remove()
        buffers, self._buffers = self._buffers, None
        if buffers is not None:
            buffers.reclaim()  # what hooks have kept is theirs, and nothing else is held
        if self.segments is not None:
            self.segments.trim(0)
        self.devices = None

    def after_fork(self) -> None:
        """In a forked child: nothing is copied, nobody waits for what isn't."""
        self._overlap = False
        for fence in self._fences:
            fence.forget()
        self._fences = []
        self._copier = self._buffers = None
        if self.segments is not None:
            self.segments.after_fork()
        _of_the_parent.append(self.devices)
        self.devices = None


_of_the_parent: list[Any] = []  # a forked child must not free what is on devices, or pinned
