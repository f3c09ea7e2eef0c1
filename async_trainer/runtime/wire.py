"""Frames of bytes between a process and its child, over a Unix socket; a frame may carry file descriptors."""

from __future__ import annotations

import array
import socket
import struct
import threading
from collections.abc import Sequence

HEAD = struct.Struct("<QI")  # bytes that follow, descriptors that come along
DESCRIPTORS = 200  # with one frame, at most; Linux takes 253
CHUNK = 1 << 20


class Wire:
    """One end. Any thread may send; one thread receives."""

    def __init__(self, end: socket.socket) -> None:
        self._socket = end
        self._sending = threading.Lock()

    def send(self, frame: bytes | bytearray | memoryview, descriptors: Sequence[int] = ()) -> None:
        """Send ``frame``. Waits while the other end doesn't read.

        Raises:
            OSError: the other end is gone.
        """
        head = HEAD.pack(len(frame), len(descriptors))
        extra = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))] if descriptors else []
        with self._sending:
            sent = self._socket.sendmsg([head, frame], extra)
            if sent < len(head):  # a signal, or a buffer that is all but full
                self._socket.sendall(head[sent:])
                sent = len(head)
            if sent < len(head) + len(frame):
                self._socket.sendall(memoryview(frame)[sent - len(head) :])

    def receive(self) -> tuple[bytearray, list[int]] | None:
        """The next frame, and its descriptors; None: the other end is gone. Waits for it."""
        received = array.array("i")
        head = b""
        try:
            while len(head) < HEAD.size:
                space = socket.CMSG_SPACE(DESCRIPTORS * received.itemsize)
                part, extras, flags, _ = self._socket.recvmsg(HEAD.size - len(head), space)
                if flags & socket.MSG_CTRUNC:  # this process may open no more files
                    return None
                for level, kind, data in extras:
                    if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                        received.frombytes(data[: len(data) - len(data) % received.itemsize])
                if not part:
                    return None
                head += part
            length, _ = HEAD.unpack(head)
            frame = bytearray(length)
            with memoryview(frame) as rest:
                place = 0
                while place < length:
                    count = self._socket.recv_into(rest[place : place + CHUNK])
                    if not count:
                        return None
                    place += count
        except OSError:  # reset, or closed by our own side
            return None
        return frame, list(received)

    def hang_up(self) -> None:
        """Nothing more will be sent; what the other end has sent is still received."""
        try:
            self._socket.shutdown(socket.SHUT_WR)
        except OSError:
            pass

    def forget(self) -> None:
        """In a forked child: let go of the descriptor, and leave the connection to the parent."""
        self._socket.close()

    def close(self) -> None:
        """Let go of the descriptor; a thread that receives is woken."""
        try:
            self._socket.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass
        self._socket.close()
