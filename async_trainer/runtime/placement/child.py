"""A child process, and the connection to it."""

from __future__ import annotations

import logging
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Sequence

from async_trainer.runtime.failures import say
from async_trainer.runtime.placement.remote import Remote, Session
from async_trainer.runtime.wire import Wire

GRACE = 0.2  # s: for the hook under way, once its lane was abandoned
LEAVE = 2.0  # s: for a child to end that has handled everything; then it is left to itself
SIGNALS = {
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2") if hasattr(signal, name)
}


class Child:
    """One child process, and the connection to it. It ends by itself when the connection does."""

    def __init__(self, remote: Remote, session: Session) -> None:
        ours, theirs = socket.socketpair()
        # Until it ignores them: Ctrl-C in a terminal is for the training, which waits for its lanes.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        try:
            self.process = subprocess.Popen(
                [*remote.command(), str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                env=remote.environment(),
                stdin=subprocess.DEVNULL,
            )
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
            theirs.close()
        self.session = session
        self.wire = Wire(ours)
        self.ready = False
        self.gone = False
        self.reader: threading.Thread | None = None

    def send(self, frames: Sequence[tuple[bytes, Sequence[int]]]) -> None:
        """Send ``frames``. Where it has died meanwhile, its reader will tell."""
        try:
            for frame, descriptors in frames:
                self.wire.send(frame, descriptors)
        except (BrokenPipeError, ConnectionError):
            pass
        except OSError as error:  # it may have half a frame, and would wait for the rest
            say(logging.ERROR, "what a process is to get can't be sent: %s", error)
            self.kill()

    def kill(self) -> None:
        """End it, whatever it does."""
        self.process.kill()

    def reap(self, timeout: float) -> str:
        """Wait for its end, and let go of the connection. Returns how it ended."""
        try:
            code = self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            code = 0
        if self.reader is not None:
            self.reader.join(LEAVE if code == 0 else GRACE)
        self.wire.close()  # a process that a hook has forked may have it open still
        if self.reader is not None:
            self.reader.join(LEAVE)
        self.session.close()
        if code >= 0:
            return f"exit code {code}"
        try:
            return signal.Signals(-code).name
        except ValueError:
            return f"signal {-code}"


def supported() -> bool:
    """Whether this system has what it takes: descriptors that can be sent, signals that can be blocked."""
    return hasattr(socket, "send_fds") and hasattr(signal, "pthread_sigmask") and sys.platform != "win32"
