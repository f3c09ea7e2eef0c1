"""Taking a checkpoint without stopping: captured at once, written in the background, committed when the lanes have
passed the cut."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch.nn import Module

from async_trainer.emit import take_values
from async_trainer.errors import LaneError
from async_trainer.files.loadable import check_loadable
from async_trainer.resume.bundles import Bundles
from async_trainer.resume.objects import check_keys, live_values, plain_names, states
from async_trainer.routes import Uncaptured
from async_trainer.runtime.barrier import Barrier
from async_trainer.runtime.failures import forget_frames
from async_trainer.snapshot import Scope, open_value

if TYPE_CHECKING:
    from async_trainer.runtime.job import Lease
    from async_trainer.runtime.pool import Pool

logger = logging.getLogger("async_trainer")

DEADLINE = 60.0  # s: for the lanes to pass the cut; then those that have not are left out, and named
LATE = 600.0  # s: that a state which comes late is waited for
JOIN = 5.0  # s: for the writing itself, at the end


class Names:
    """What ``take_values`` asks of a plan."""

    essential = True
    shared = False

    def __init__(self, names: list[str]) -> None:
        self._names = names

    def argument(self, place: int) -> str:
        """For messages."""
        return self._names[place]


class Checkpoint:
    """A checkpoint that was asked for. Made by ``CallbacksHandler.checkpoint()``, which never waits. (The callback that
    writes states is :class:`async_trainer.callbacks.Checkpoint`.)

    Attributes:
        path: the folder of its bundle, once it is there.
        skipped: there was one under way, so that none was made.
        late: the callbacks that had not passed the cut by the deadline: their last known states were taken, or none.
    """

    def __init__(self) -> None:
        self.path: Path | None = None
        self.skipped = False
        self.late: tuple[str, ...] = ()
        self._states: dict[str, Any] = {}
        self._error: BaseException | None = None
        self._over = threading.Event()

    def __repr__(self) -> str:
        how = (
            "skipped" if self.skipped else "failed" if self._error else f"in {self.path}" if self.path else "under way"
        )
        return f"<Checkpoint: {how}>"

    @property
    def done(self) -> bool:
        """Whether it is on disk, or never will be."""
        return self._over.is_set()

    def wait(self, timeout: float | None = None) -> dict[str, Any]:
        """Wait until it is on disk. Any thread, but not inside a hook.

        Args:
            timeout: seconds; None: as long as it takes, its deadline at most, and the writing.

        Returns:
            ``{callback name: state_dict()}`` at the cut.

        Raises:
            TimeoutError: it is not on disk yet.
            LaneError: it could not be written; the last good one is still there.
        """
        if not self._over.wait(timeout):
            raise TimeoutError(f"checkpoint: not on disk after {timeout} s")
        if self._error is not None:
            raise self._error
        if self.skipped:
            logger.warning("a checkpoint that is waited for was skipped: another was under way, and is all there is")
        return dict(self._states)

    def skip(self) -> None:
        """There is one under way."""
        self.skipped = True
        self._over.set()

    def succeed(self, path: Path, states: dict[str, Any], late: tuple[str, ...]) -> None:
        """It is on disk."""
        self.path, self._states, self.late = path, states, late
        self._over.set()

    def fail(self, error: BaseException) -> None:
        """It never will be."""
        self._error = error
        self._over.set()


class Checkpoints:
    """The checkpoints of a handler: one at a time."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._thread: threading.Thread | None = None
        self._pending: Checkpoint | None = None
        self._known: dict[str, Any] = {}  # the last states that were taken
        self.skipped = 0
        self.failed: LaneError | None = None  # the last that failed, to be raised at the end of the run
        self._failures = 0  # since then

    @property
    def busy(self) -> bool:
        """Whether one is under way."""
        return self._pending is not None and not self._pending.done

    def capture(
        self, checkpoint: Checkpoint, folder: Path, objects: Mapping[str, Any], extra: Mapping[str, Any],
        rng: dict[str, Any], barrier: Barrier, names: Mapping[str, str], *, keep: int, deadline: float,
    ) -> None:  # fmt: skip
        """Capture, here and now; the rest is done in the background. The training thread.

        Args:
            checkpoint: is told what becomes of it.
            folder: of the bundles.
            objects: with states, by name.
            extra: plain values, and tensors, by name.
            rng: the random generators, at the cut.
            barrier: at the cut.
            names: of the callbacks, with their lanes.
            keep: how many bundles to keep.
            deadline: seconds for the lanes to pass the cut.
        """
        keys = {name: set(plain_names(one.state_dict())) for name, one in objects.items() if isinstance(one, Module)}
        live = [*(live_values(value) for value in objects.values()), dict(extra), rng]
        plan = Names([*objects, "extra", "rng"])
        values, lease = take_values(self._pool, live, plan)
        if values is None:
            self.fail(checkpoint, MemoryError("there is no room for it in max_snapshot_bytes"))
            return
        # No daemon: the interpreter waits for it at its exit, which it reaches within its deadline.
        self._thread = threading.Thread(
            target=self._write,
            args=(checkpoint, folder, list(objects), keys, values, lease, barrier, names, keep, deadline),
            name="async_trainer-checkpoint", daemon=False,
        )  # fmt: skip
        self._pending = checkpoint
        try:
            self._thread.start()
        except RuntimeError:  # the system gives no more threads
            if lease is not None:
                self._pool.release(lease)
            raise

    def _write(
        self, checkpoint: Checkpoint, folder: Path, objects: list[str], keys: Mapping[str, set[str]],
        values: list[Any], lease: Lease | None, barrier: Barrier, names: Mapping[str, str], keep: int, deadline: float,
    ) -> None:  # fmt: skip
        until = time.monotonic() + deadline
        draft = None
        try:
            try:
                bundles = Bundles(folder)
                draft = bundles.draft()
                content = self._opened(objects, values, lease)
                check_keys(content["objects"], keys)
                draft.write("objects", content)
                del content
            finally:
                values.clear()
                if lease is not None:
                    self._pool.release(lease)
            found, late = self._states(barrier, names, until)
            for name, state in found.items():
                check_loadable(state, f"the state of {name}")
            draft.write("callbacks", found)
            path = draft.commit({"callbacks": sorted(found), "late": {name: self._how_late(name) for name in late}})
            draft = None
            bundles.publish(path, keep)
            self._known = found
            if late:
                logger.warning("checkpoint %s was made without waiting any longer for: %s", path, ", ".join(late))
            checkpoint.succeed(path, found, tuple(late))
        except BaseException as error:
            if draft is not None:
                draft.abandon()
            self.fail(checkpoint, error)
            return
        if late:
            self._add_late(bundles, path, barrier, late)

    def _opened(self, objects: list[str], values: list[Any], lease: Lease | None) -> dict[str, Any]:
        if lease is not None and lease.transfer is not None:
            lease.transfer.check()
        scope = Scope("checkpoint")
        content: dict[str, Any] = {}
        for name, value in zip([*objects, "extra", "rng"], values, strict=True):
            if type(value) is Uncaptured:
                raise value.error
            content[name] = states(open_value(value, scope))
            check_loadable(content[name], f"the state of {name}")
        return {"objects": {name: content[name] for name in objects}, "extra": content["extra"], "rng": content["rng"]}

    def _states(self, barrier: Barrier, names: Mapping[str, str], until: float) -> tuple[dict[str, Any], list[str]]:
        """The callbacks' states, those of late lanes as they were last known; and who is late."""
        try:
            self._pool.watch(lambda: barrier.pending, until - time.monotonic())
        except TimeoutError:
            pass
        pending = {lane.name for lane in barrier.pending}
        found = barrier.taken()
        late = [name for name, lane in names.items() if lane in pending]
        for name in late:
            if name in self._known:
                found[name] = self._known[name]
        return found, late

    def _how_late(self, name: str) -> str:
        return "as of the checkpoint before" if name in self._known else "missing"

    def _add_late(self, bundles: Bundles, path: Path, barrier: Barrier, late: list[str]) -> None:
        try:
            self._pool.watch(lambda: barrier.pending, LATE)
            came = {name: state for name, state in barrier.taken().items() if name in late}
            for name, state in came.items():
                check_loadable(state, f"the state of {name}")
            if came and path.exists():
                bundles.amend(path, came, {"late": {name: "missing" for name in late if name not in came}})
        except Exception as error:
            logger.warning("checkpoint %s goes without the states of: %s (%s)", path, ", ".join(late), error)

    def fail(self, checkpoint: Checkpoint, error: BaseException) -> None:
        """It is not made: logged, the 1st, 2nd, 4th, 8th ..., counted, and raised at the end of the run."""
        forget_frames(error)  # they hold what was captured
        self._failures = count = self._failures + 1
        times = f" ({count} have failed)" if count > 1 else ""
        raised = LaneError(
            f"the checkpoint failed: {type(error).__name__}: {error}{times}; the last that was made is still there"
        )
        raised.__cause__ = error
        if not count & (count - 1):
            logger.error("%s", raised)
        self.failed = raised
        checkpoint.fail(raised)

    def settle(self, timeout: float | None) -> None:
        """Wait for the one that is under way. Any thread."""
        if self._pending is not None:
            self._pending._over.wait(timeout)

    def take_failed(self) -> LaneError | None:
        """The error that the end of the run should raise; once."""
        failed, self.failed, self._failures = self.failed, None, 0
        return failed
