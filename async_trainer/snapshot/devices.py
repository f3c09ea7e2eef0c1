"""Tensors on an accelerator: hooks get them on the CPU, and the training thread never waits for the device.

Per event and device::

    current stream   ... | small ones, packed into one | e1 |          wait, if "exposed" |  ...  | wait | step ...
    side stream             wait for e1 | exposed ones | e2 | the pack, and what a fence guards | ready
    worker                                                                         waits for ready, opens

*Small* ones (losses, counts, BatchNorm's buffers) are packed on the device: one transfer for all of them. The pack is
new memory, so the training may change them at once. *Guarded* are the weights and the state of the optimizers that the
run was given: before their next step, the current stream waits for ``ready``. All other big ones are *exposed*: any
kernel may change them (the batch by the next copy into it, gradients by ``zero_grad``), so the current stream waits for
their copies right away. A copy of them on the device would let it go on, but costs memory there that the training may
need; a callback that isn't essential must not be what it runs out of memory for.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from async_trainer.snapshot.accelerators import (
    Accelerator,
    TorchAccelerator,
    accelerator_kind,
    dense,
    flat,
    form,
)
from async_trainer.snapshot.buffers import Pooled
from async_trainer.snapshot.faults import LeafError
from async_trainer.snapshot.kind import SMALL
from async_trainer.snapshot.memo import Memo
from async_trainer.snapshot.offload import Guard, Offload

if TYPE_CHECKING:
    from async_trainer.snapshot.fence import Fence
    from async_trainer.snapshot.sealed import SealedLeaf

ARENA = 4096  # bytes, at least; then powers of two: what the pinned allocator makes of each size anyway
_no_dispatch: Any = torch._C._disabled_torch_dispatch_impl


class Part(NamedTuple):
    """A tensor of an event, on a device.

    Attributes:
        sealed: what gets the copy.
        live: the tensor, without its graph.
        identity: the id of the one that was met.
        nbytes: of a copy.
        owner: the fence of the optimizer that it was found in.
        grouped: found in a module or an optimizer; what comes by itself may be changed by whoever passed it.
    """

    sealed: SealedLeaf
    live: torch.Tensor
    identity: int
    nbytes: int
    owner: Fence | None
    grouped: bool


class Pinned(Pooled):
    """A big copy of an event, in pinned memory.

    Attributes:
        transfer: what fills it.
    """

    __slots__ = ("transfer",)

    def __init__(self, tensor: torch.Tensor, nbytes: int, transfer: Offload) -> None:
        super().__init__(tensor, nbytes)
        self.transfer = transfer

    @property
    def settled(self) -> bool:
        """Whether nothing is written to it any more."""
        return self.transfer.done


class Devices:
    """The devices of a handler, and the pinned memory that waits to be used again.

    Args:
        accelerator: what does the work.
    """

    def __init__(self, accelerator: Accelerator) -> None:
        self.accelerator = accelerator
        self._free: dict[Any, list[torch.Tensor]] = {}
        self._returned: deque[Pinned] = deque()

    def __repr__(self) -> str:
        return f"<Devices: {self.accelerator!r}, {self.nbytes} pinned bytes wait to be used again>"

    def launch(self, memo: Memo, room: int) -> Offload:
        """Start the copies of an event's tensors: never waits, and never raises (the hooks' events fail). TRAINING
        THREAD.

        Args:
            memo: the event's; what it has found on devices is copied.
            room: bytes that the pinned memory that waits may take.
        """
        self.reclaim()
        self.trim(room)
        offload = Offload(self.accelerator, memo.transfer)
        parts, memo.parts = memo.parts, []
        try:
            with torch.inference_mode(False), torch.no_grad():
                for device in {part.live.device: None for part in parts}:
                    self._launch_on(device, [part for part in parts if part.live.device == device], memo, offload)
        except Exception as error:
            offload.fail(error)
        return offload

    def _launch_on(self, device: torch.device, parts: list[Part], memo: Memo, offload: Offload) -> None:
        accelerator = self.accelerator
        current, side = accelerator.current(device), accelerator.side(device)
        small: list[tuple[SealedLeaf, torch.Tensor]] = []
        exposed: list[tuple[torch.Tensor, torch.Tensor]] = []
        unhurried: list[tuple[torch.Tensor, torch.Tensor]] = []
        expecting: set[Fence] = set()
        fences = memo.store.fenced() if memo.store is not None and any(part.nbytes > SMALL for part in parts) else {}
        for sealed, live, identity, nbytes, owner, grouped in parts:
            source, own = dense(live)
            if nbytes <= SMALL:
                small.append((sealed, source))
                continue
            host = self._lease(source)
            sealed.copied = host
            memo.buffers.append(Pinned(host, nbytes, offload))
            memo.nbytes += nbytes
            fence = (owner or fences.get(identity)) if grouped else None
            guarded = fence is not None and not fence.stepping
            (unhurried if own or guarded else exposed).append((flat(host), flat(source)))
            if guarded and fence is not None and not own:
                expecting.add(fence)
        if small:
            unhurried.insert(0, self._pack(small, memo, offload))
        offload.hold(source for _, source in (*exposed, *unhurried))
        side.wait_event(current.record_event())
        if exposed:
            accelerator.copy(side, exposed)
            current.wait_event(side.record_event())
        accelerator.copy(side, unhurried)
        offload.ready.append((device, side.record_event()))
        for fence in expecting:
            guard: Any = Guard(offload)  # one for each: their steps may be on different streams
            fence.expect(guard)

    def _pack(
        self, small: list[tuple[SealedLeaf, torch.Tensor]], memo: Memo, offload: Offload
    ) -> tuple[torch.Tensor, torch.Tensor]:
        small.sort(key=lambda entry: -entry[1].element_size())  # so that each is aligned
        pack = self.accelerator.pack([flat(source) for _, source in small])
        size = max(ARENA, 1 << (pack.numel() - 1).bit_length())
        arena = self._lease(torch.empty(size, dtype=torch.uint8, device="meta"))
        memo.buffers.append(Pinned(arena, 0, offload))
        offload.unpack_later(arena, [(sealed, form(source)) for sealed, source in small])
        return arena[: pack.numel()], pack

    # ------------------------------------------------------------------------------------------------ pinned memory

    def _lease(self, like: torch.Tensor) -> torch.Tensor:
        try:
            return self._free[like.dtype, like.shape, like.stride()].pop()
        except (KeyError, IndexError):
            return self.accelerator.pinned(like)

    def give_back(self, buffers: Iterable[object]) -> None:
        """The event of ``buffers`` is over. Any thread, possibly under a lock: they are looked at later."""
        self._returned.extend(buffer for buffer in buffers if type(buffer) is Pinned)

    def reclaim(self) -> None:
        """Use again what no device writes to, and no hook holds. Any thread."""
        for _ in range(len(self._returned)):
            try:
                pinned = self._returned.popleft()
            except IndexError:  # another thread was faster
                return
            if not pinned.settled:
                self._returned.append(pinned)
            elif pinned.transfer.error is None:  # else some copies may be under way: the allocator knows
                tensor = pinned.take_back()
                if tensor is not None:
                    self._free.setdefault((tensor.dtype, tensor.shape, tensor.stride()), []).append(tensor)

    def trim(self, room: int) -> None:
        """Let go of waiting memory until what is left takes at most ``room`` bytes; what came first goes first."""
        over = self.nbytes - room
        for key in list(self._free) if over > 0 else ():
            waiting = self._free[key]
            while waiting and over > 0:
                over -= waiting.pop().nbytes

    @property
    def nbytes(self) -> int:
        """Pinned bytes that wait to be used again."""
        return sum(tensor.nbytes for waiting in list(self._free.values()) for tensor in list(waiting))


def to_host(sealed: SealedLeaf, live: torch.Tensor, nbytes: int, memo: Memo) -> bool:
    """Whether ``live`` is copied with the others of its event that are on accelerators. TRAINING THREAD.

    Raises:
        LeafError: its memory was freed.
    """
    store = memo.store
    if store is None:
        return False
    if store.devices is None:
        kind = accelerator_kind()
        if kind is None:
            return False
        store.devices = Devices(TorchAccelerator(kind))
    cls: Any = type(live)
    if cls.__torch_dispatch__ is not _no_dispatch or not store.devices.accelerator.holds(live):
        return False
    if live.layout is not torch.strided or live.is_nested or live.is_quantized:
        return False
    plain = live.detach() if cls in PLAIN else live.as_subclass(torch.Tensor).detach()
    if nbytes and not plain.untyped_storage().nbytes():
        raise LeafError(f"the memory of a tensor of {tuple(plain.shape)} was freed")
    memo.parts.append(Part(sealed, plain, id(live), nbytes, memo.owner, memo.fences is not None))
    return True


PLAIN: tuple[Any, ...] = (torch.Tensor, torch.nn.Parameter)
