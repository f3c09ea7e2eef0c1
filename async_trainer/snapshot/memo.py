"""One event's capture: what was copied already, and how much."""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, Any, Protocol

from async_trainer.errors import CaptureError
from async_trainer.snapshot.bundle import Bundle
from async_trainer.snapshot.kind import SMALL

if TYPE_CHECKING:
    from async_trainer.snapshot.big import Entry, States
    from async_trainer.snapshot.devices import Part
    from async_trainer.snapshot.fence import Fence
    from async_trainer.snapshot.sealed import SealedLeaf, SealedNode
    from async_trainer.snapshot.shared import Block
    from async_trainer.snapshot.store import Store
    from async_trainer.snapshot.transfer import Transfer


class Buffer(weakref.ref[Any]):
    """A weak reference to the memory of one big copy: it dies when nothing, no hook's view either, uses it."""

    __slots__ = ("nbytes",)

    nbytes: int


class Room(Protocol):
    """The bytes of the budget that an event takes. They are reserved before its first big copy."""

    def reserve(self, memo: Memo) -> bool:
        """Wait for them, and set ``memo.room`` to None. Returns whether anything may be copied. TRAINING THREAD."""


class Memo:
    """Shared by all arguments of one event, so that what they share stays shared, and is copied once.

    It belongs to the training thread, and holds the live values: drop it when the event is captured. ``buffers`` may be
    kept: what a hook still holds after its event is ``sum(b.nbytes for b in buffers if b() is not None)``.

    Attributes:
        copies: id of a live value -> what became of it.
        alive: those live values (some are temporary), so that no id is used twice; in the order of ``copies``.
        nbytes: bytes of the big parts (above ``SMALL`` each) copied in fact.
        buffers: the memory of the big copies.
        argument: the event's argument that is being captured; stand-ins name it when they expire.
        private: within a module: its tensors are written in place by ``forward``, so each hook needs its own.
        gradients: within a model that is captured with them.
        deep: the memo of ``copy.deepcopy``, once it is needed.
        bundle: once a cycle was found.
        batch: the tensors found so far, which are copied together: those of one module or optimizer at its end, or
            those of all arguments when all are found. None: each is copied when it is found.
        states: the optimizers' states found so far, which go with the batch.
        room: where the bytes of the event are to be reserved before anything big is copied; None: they are.
        parts: tensors on an accelerator; copied together when all arguments are captured.
        store: where big copies go; None: to memory of their own, at once.
        used: bytes of the budget in use, this event's included.
        fences: within a module or an optimizer: the fence of each parameter that has one, by the parameter's id.
        owner: within an optimizer: its fence.
        block: where big copies go that a child process is to see.
        transfer: the copies that are made while the training goes on.
        expecting: the fences that wait for it.
    """

    __slots__ = (
        "alive", "argument", "batch", "block", "buffers", "bundle", "copies", "deep", "expecting", "fences",
        "gradients", "nbytes", "owner", "parts", "private", "room", "states", "store", "transfer", "used",
    )  # fmt: skip

    def __init__(self, store: Store | None = None, used: int = 0) -> None:
        self.copies: dict[int, Any] = {}
        self.alive: list[object] = []
        self.nbytes = 0
        self.buffers: list[Any] = []
        self.argument = ""
        self.private = False
        self.gradients = False
        self.bundle: Bundle | None = None
        self.deep: dict[int, Any] | None = None
        self.batch: list[Entry] | None = None
        self.states: list[States] = []
        self.room: Room | None = None
        self.parts: list[Part] = []
        self.store = store
        self.used = used
        self.fences: dict[int, Fence] | None = None
        self.owner: Fence | None = None
        self.block: Block | None = None
        self.transfer: Transfer | None = None
        self.expecting: set[Fence] = set()

    def put(self, source: object, taken: Any) -> None:
        """Remember what became of a live value."""
        self.copies[id(source)] = taken
        self.alive.append(source)

    def begin(self, source: object, node: SealedNode) -> None:
        """Remember what a live value becomes before its parts are captured; set ``node.done`` after."""
        node.done = False
        self.copies[id(source)] = node
        self.alive.append(source)

    def again(self, taken: Any) -> Any:
        """``taken``, which was met once more; below itself, if it isn't done."""
        if not getattr(taken, "done", True):
            if self.bundle is None:
                self.bundle = Bundle()
            self.bundle.nodes.append(taken)
        return taken

    def hold(self, memory: object, nbytes: int) -> None:
        """Account for a big copy; ``memory`` is what stays alive while any view of the copy does."""
        buffer = Buffer(memory)
        buffer.nbytes = nbytes
        self.buffers.append(buffer)
        self.nbytes += nbytes

    def at_once(self) -> None:
        """Something that may be big is about to be copied, while the rest of the event isn't known yet.

        Raises:
            CaptureError: there is no room for it.
        """
        if self.room is not None and not self.room.reserve(self):
            raise CaptureError("there is no room in the byte budget")

    def pending(self) -> int:
        """Bytes of the big tensors that are found, and not copied yet."""
        found = sum(nbytes for _, _, nbytes, _, _ in self.batch or () if nbytes > SMALL)
        found += sum(nbytes for _, _, nbytes, _, _ in self.states)
        return found + sum(part.nbytes for part in self.parts if part.nbytes > SMALL)

    def copy_batch(self) -> None:
        """Copy what was found."""
        batch, self.batch = self.batch or [], None
        states, self.states = self.states, []
        if states:
            from async_trainer.snapshot.big import copy_states

            batch += copy_states(states, self)
        if batch:
            from async_trainer.snapshot.tensors import copy_together

            copy_together(batch, self)

    def copy_now(self, sealed: SealedLeaf) -> None:
        """Copy one of those that were found before the others: it is about to be read."""
        for entry in self.batch or ():
            if entry[0] is sealed:
                from async_trainer.snapshot.tensors import copy_together

                self.at_once()
                copy_together([(*entry[:3], None, entry[4])], self)
                self.batch = [other for other in self.batch or () if other is not entry]
                return

    def mark(self) -> tuple[int, ...]:
        """Where it is now, for ``rollback``."""
        return len(self.alive), len(self.buffers), len(self.batch or ()), len(self.parts), len(self.states)

    def rollback(self, mark: tuple[int, ...]) -> None:
        """Forget all that was found since: a capture that failed left values half sealed."""
        alive, buffers, batch, parts, states = mark
        for source in self.alive[alive:]:
            self.copies.pop(id(source), None)
        self.nbytes -= sum(buffer.nbytes for buffer in self.buffers[buffers:])
        del self.alive[alive:], self.buffers[buffers:], (self.batch or [])[batch:], self.parts[parts:]
        del self.states[states:]
        self.deep = None

    def __repr__(self) -> str:
        return f"Memo({len(self.copies)} values, {self.nbytes} big bytes)"
