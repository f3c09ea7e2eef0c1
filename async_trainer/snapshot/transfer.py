"""The copies of an event that are made while the training goes on; whoever needs one waits for it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from async_trainer.errors import CaptureError
from async_trainer.gate import Gate
from async_trainer.snapshot.buffers import Buffers, Pooled
from async_trainer.snapshot.kind import SMALL

if TYPE_CHECKING:
    from async_trainer.snapshot.big import Entry
    from async_trainer.snapshot.sealed import SealedLeaf
    from async_trainer.snapshot.states import SealedState

    Pair = tuple[torch.Tensor | SealedLeaf, torch.Tensor, str]
    """Where a copy goes, or what seals it; the live tensor; the argument that it is part of."""

CHUNK = 32 << 20  # bytes that are copied in one call: without the interpreter lock
LOOK = 0.5  # s: of several that wait at a gate, one that Ctrl-C has ended may not have let the others through
clock = time.perf_counter


class Transfer:
    """The copies of one event that are under way. It holds the live tensors' memory until they are made.

    Where they go is chosen when they are made: a buffer for each of hundreds of tensors takes its time. To the event
    it is the buffer of all of them.

    Args:
        buffers: where they go.
        room: bytes that the buffers that wait may take.

    Attributes:
        error: what went wrong.
        planned: bytes that they take, or will.
    """

    __slots__ = (
        "_buffers",
        "_gate",
        "_mine",
        "_pairs",
        "_room",
        "_states",
        "_versions",
        "_wanted",
        "copies",
        "error",
        "planned",
    )

    def __init__(self, buffers: Buffers, room: int) -> None:
        self.error: CaptureError | None = None
        self.planned = 0
        self.copies: list[Pooled] = []  # in buffers; whoever takes the token gives them back
        self._mine = [self.copies]
        self._wanted = True  # False: the event was dropped; what isn't copied yet need not be
        self._buffers: Buffers | None = buffers  # until they are made: what waits there must not live as long as this
        self._room = room
        self._pairs: list[Pair] = []
        self._states: list[tuple[SealedState, list[int], str]] = []
        self._versions: list[int] = []
        self._gate = Gate()

    def add(self, buffer: torch.Tensor, live: torch.Tensor, argument: str) -> None:
        """Copy ``live`` into ``buffer``, later. TRAINING THREAD."""
        # An alias of its own: whoever gives a parameter other memory (``p.data = ...``) leaves this one as it is. An
        # optimizer's state is changed in place or replaced.
        self._pairs.append((buffer, live if type(live) is torch.Tensor else live.detach(), argument))
        self._versions.append(live._version)

    def add_sealed(self, entries: Sequence[Entry]) -> int:
        """Copy tensors, later, to wherever there is room then. TRAINING THREAD.

        Returns:
            Their bytes.
        """
        nbytes = sum([entry[2] for entry in entries])
        self.planned += nbytes
        self._pairs += [
            (sealed, live if type(live) is torch.Tensor else live.detach(), argument)
            for sealed, live, _, _, argument in entries
        ]
        self._versions += [entry[1]._version for entry in entries]
        return nbytes

    def add_state(self, sealed: SealedState, live: list[torch.Tensor], nbytes: int, argument: str) -> None:
        """Copy an optimizer's state, later, after what was added one by one. TRAINING THREAD."""
        self.planned += nbytes
        self._states.append((sealed, [one._version for one in live], argument))

    # ------------------------------------------------------------------------------------- as a buffer of its event

    def __call__(self) -> object:
        """One of the copies that somebody else holds, if there is one."""
        return next((copy for copy in self.copies if copy() is not None), None)

    @property
    def nbytes(self) -> int:
        """Bytes of the copies that somebody else holds."""
        return sum(copy.nbytes for copy in self.copies if copy() is not None)

    def give_back(self) -> list[Pooled]:
        """The event is over: its copies, if they are made; else the copier gives back what it has made of them."""
        self._wanted = False
        return self._take_copies() if self.done else []

    def _take_copies(self) -> list[Pooled]:
        try:
            return self._mine.pop()
        except IndexError:  # the other thread was faster
            return []

    # --------------------------------------------------------------------------------------------- until they are made

    @property
    def done(self) -> bool:
        """Whether the copies are made."""
        return self._gate.is_open

    def wait(self) -> float:
        """Wait until they are. Any thread but the copier.

        Returns:
            The seconds that this took.
        """
        if self._gate.is_open:
            return 0.0
        began = clock()
        while not self._gate.wait(LOOK):
            pass
        return clock() - began

    def check(self) -> None:
        """Wait, and raise what went wrong.

        Raises:
            CaptureError: a tensor could not be copied, or was changed before it was.
        """
        self.wait()
        if self.error is not None:
            raise self.error

    def make(self) -> None:
        """Make the copies. The copier's thread."""
        start = 0
        try:
            for sealed, versions, argument in self._states:
                self._pairs += [(leaf, live, argument) for leaf, live in sealed.leaves()]
                self._versions += versions
            while start < len(self._pairs) and self._wanted:
                end, nbytes = start, 0
                while end < len(self._pairs) and (nbytes == 0 or nbytes < CHUNK):
                    nbytes += self._pairs[end][1].nbytes
                    end += 1
                copy_all([self._with_buffer(pair) for pair in self._pairs[start:end]])
                self._look_for_changes(start, end)
                start = end
        except Exception as error:
            self.error = CaptureError(f"a copy in the background failed: {error}")
            self.error.__cause__ = error.with_traceback(None)
        finally:
            self._pairs, self._states = [], []
            self._gate.open()
            buffers, self._buffers = self._buffers, None
            if buffers is not None and not self._wanted:
                buffers.give_back(self._take_copies())

    def _with_buffer(self, pair: Pair) -> tuple[torch.Tensor, torch.Tensor, str]:
        where, live, argument = pair
        if isinstance(where, torch.Tensor):
            return where, live, argument
        if live.nbytes <= SMALL:
            where.copied = torch.empty_like(live)
            return where.copied, live, argument
        assert self._buffers is not None
        buffer = self._buffers.like(live, self._room)
        if buffer is None:
            buffer = torch.empty_like(live)
        self.copies.append(Pooled(buffer, live.nbytes))
        where.copied = buffer
        return buffer, live, argument

    def _look_for_changes(self, start: int, end: int) -> None:
        """What bumps a tensor's version is seen (not what goes by ``.data``, nor fused optimizers)."""
        for place in range(start, end):
            _, live, argument = self._pairs[place]
            if live._version != self._versions[place] and self.error is None:
                self.error = CaptureError(
                    f"{argument}: weights were changed while they were copied, other than by their optimizer's step; "
                    "call handler.fence() before"
                )


def copy_all(pairs: list[tuple[torch.Tensor, torch.Tensor, str]]) -> None:
    """Copy the live tensors of ``pairs`` into their buffers, in one call.

    Raises:
        CaptureError: a live tensor's memory was freed (torch would read it all the same, and the process die of it).
    """
    for _, live, argument in pairs:
        if live.untyped_storage().nbytes() < live.nbytes:
            raise CaptureError(f"{argument}: the memory of a tensor of {tuple(live.shape)} was freed")
    with torch.inference_mode(False), torch.no_grad():
        torch._foreach_copy_([buffer for buffer, _, _ in pairs], [live for _, live, _ in pairs])
