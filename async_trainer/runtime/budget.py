"""How many bytes the snapshots may hold."""

from __future__ import annotations

from async_trainer.runtime.job import Lease


class Budget:
    """The bytes in use, out of ``limit``. Pure: the pool calls it under its lock."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.used = 0

    def fits(self, nbytes: int) -> bool:
        """Whether a snapshot of ``nbytes`` may be taken now. One that is larger than all of the budget goes alone."""
        return self.used + nbytes <= self.limit or self.used == 0

    def lease(self, nbytes: int) -> Lease:
        """Take ``nbytes``, whether they fit or not."""
        lease = Lease(nbytes)
        self.used += nbytes
        return lease

    def grow(self, lease: Lease, nbytes: int) -> None:
        """What could only be known once it was copied: ``lease`` holds ``nbytes`` in fact."""
        self.used += nbytes - lease.nbytes
        lease.nbytes = nbytes

    def release(self, lease: Lease) -> bool:
        """One lane is done with it. Returns whether it was the last, so that the bytes are free again."""
        lease.lanes -= 1
        if lease.lanes == 0:
            self.used -= lease.nbytes
        return lease.lanes == 0
