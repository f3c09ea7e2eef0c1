"""How many bytes the snapshots may hold."""

from __future__ import annotations

import weakref

from async_trainer.runtime.job import Lease


class Budget:
    """The bytes in use, out of ``limit``. Pure: the pool calls it under its lock."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.used = 0
        self._leases: list[weakref.ref[Lease]] = []
        self._prune_at = 256

    def fits(self, nbytes: int) -> bool:
        """Whether a snapshot of ``nbytes`` may be taken now. One that is larger than all of the budget goes alone."""
        if not self._fits(nbytes):
            self.recount()
        return self._fits(nbytes)

    def _fits(self, nbytes: int) -> bool:
        return self.used + nbytes <= self.limit or self.used == 0

    def recount(self) -> int:
        """The bytes in use, without those of leases that nobody has any more: Ctrl-C may break in before a release."""
        alive = [lease for ref in self._leases if (lease := ref()) is not None and lease.lanes > 0]
        self._leases = [weakref.ref(lease) for lease in alive]
        self._prune_at = 256 + 2 * len(alive)
        self.used = sum(lease.nbytes for lease in alive)
        return self.used

    def lease(self, nbytes: int) -> Lease:
        """Take ``nbytes``, whether they fit or not."""
        lease = Lease(nbytes)
        self._leases.append(weakref.ref(lease))
        self.used += nbytes
        if len(self._leases) > self._prune_at:
            self.recount()
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
