"""Copies that overlap with the training: one thread makes them, and whoever needs one waits for it."""

from __future__ import annotations

import _thread
import time
from queue import SimpleQueue

import torch

from async_trainer.errors import CaptureError
from async_trainer.gate import Gate

CHUNK = 32 << 20  # bytes that are copied in one call: without the interpreter lock
LOOK = 0.5  # s: of several that wait at a gate, one that Ctrl-C has ended may not have let the others through
clock = time.perf_counter


class Transfer:
    """The copies of one event that are under way. It holds the live tensors' memory until they are made.

    Attributes:
        pairs: buffer, live tensor, the argument that it is part of.
        error: what went wrong.
        wanted: False: the event was dropped; what isn't copied yet need not be.
    """

    __slots__ = ("_gate", "_versions", "error", "pairs", "wanted")

    def __init__(self) -> None:
        self.pairs: list[tuple[torch.Tensor, torch.Tensor, str]] = []
        self.error: CaptureError | None = None
        self.wanted = True
        self._versions: list[int] = []
        self._gate = Gate()

    def add(self, buffer: torch.Tensor, live: torch.Tensor, argument: str) -> None:
        """Copy ``live`` into ``buffer``, later. TRAINING THREAD."""
        # An alias of its own: whoever gives a parameter other memory (``p.data = ...``) leaves this one as it is.
        self.pairs.append((buffer, live.detach(), argument))
        self._versions.append(live._version)

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
            while start < len(self.pairs) and self.wanted:
                end, nbytes = start, 0
                while end < len(self.pairs) and (nbytes == 0 or nbytes < CHUNK):
                    nbytes += self.pairs[end][1].nbytes
                    end += 1
                copy_all(self.pairs[start:end])
                self._look_for_changes(start, end)
                start = end
        except Exception as error:
            self.error = CaptureError(f"a copy in the background failed: {error}")
            self.error.__cause__ = error.with_traceback(None)
        finally:
            self.pairs = []
            self._gate.open()

    def _look_for_changes(self, start: int, end: int) -> None:
        """What bumps a tensor's version is seen (not what goes by ``.data``, nor fused optimizers)."""
        for place in range(start, end):
            _, live, argument = self.pairs[place]
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


class Copier:
    """The thread that makes copies. It starts with the first one."""

    def __init__(self) -> None:
        self._queue: SimpleQueue[Transfer | None] = SimpleQueue()
        self._running = False
        self._ended = Gate()

    def submit(self, transfer: Transfer) -> None:
        """Make the copies of ``transfer``, after those that were submitted before. TRAINING THREAD."""
        if not self._running:
            try:
                _thread.start_new_thread(self._run, ())  # threading.Thread.start() could be interrupted half way
            except RuntimeError:  # the system gives no more threads
                transfer.make()
                return
            self._running = True
        self._queue.put(transfer)

    def stop(self, timeout: float) -> None:
        """End the thread when its copies are made, and wait at most ``timeout`` seconds for that. Any thread."""
        self._queue.put(None)
        if self._running:
            self._ended.wait(timeout)

    def _run(self) -> None:
        while (transfer := self._queue.get()) is not None:
            transfer.make()
            del transfer  # it holds no tensor any more, but whoever waits holds it
        self._queue.put(None)  # Ctrl-C between a start and its note: there may be another
        self._ended.open()
