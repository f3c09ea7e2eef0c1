"""One event's capture: what was copied already, and how much."""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, Any

from async_trainer.snapshot.bundle import Bundle

if TYPE_CHECKING:
    from async_trainer.snapshot.copier import Transfer
    from async_trainer.snapshot.devices import Part
    from async_trainer.snapshot.fence import Fence
    from async_trainer.snapshot.sealed import SealedLeaf, SealedNode
    from async_trainer.snapshot.shared import Block
    from async_trainer.snapshot.store import Store


class Buffer(weakref.ref[Any]):
    """A weak reference to the memory of one big copy: it dies when nothing, no hook's view either, uses it."""

    __slots__ = ("nbytes",)

    nbytes: int


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
        batch: within a module or an optimizer: the tensors found so far, copied together at its end; each with the
            fence of the optimizer whose state it is.
        parts: tensors on an accelerator; copied together when all arguments are captured.
        store: where big copies go; None: to memory of their own, at once.
        used: bytes of the budget in use, this event's included.
        owner: within an optimizer: its fence.
        block: where big copies go that a child process is to see.
        transfer: the copies that are made while the training goes on.
        expecting: the fences that wait for it.
    """

    __slots__ = (
        "alive", "argument", "batch", "block", "buffers", "bundle", "copies", "deep", "expecting", "gradients",
        "nbytes", "owner", "parts", "private", "store", "transfer", "used",
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
        self.batch: list[tuple[SealedLeaf, Any, int, Fence | None]] | None = None
        self.parts: list[Part] = []
        self.store = store
        self.used = used
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

    def rollback(self, alive: int, buffers: int) -> None:
        """Forget all that was captured since those lengths were so: a capture that failed left values half sealed."""
        for source in self.alive[alive:]:
            self.copies.pop(id(source), None)
        self.nbytes -= sum(buffer.nbytes for buffer in self.buffers[buffers:])
        del self.alive[alive:], self.buffers[buffers:]
        self.deep = None

    def __repr__(self) -> str:
        return f"Memo({len(self.copies)} values, {self.nbytes} big bytes)"
