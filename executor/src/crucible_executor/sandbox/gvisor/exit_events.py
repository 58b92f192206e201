"""How the program ended, by the sentry's own word: the `sentry/task_exit` trace point, received on a socket of ours.

`runsc run` returns 139 for both `exit 139` and SIGSEGV; the trace point carries the raw wait status. The program cannot
reach the socket. One listener serves one sandbox.

The trace point fires for every thread of a process, with the status that the process had then (0 until something ended
it), and the first thread need not be the last. So the `sentry/clone` point is received too, which fires before the new
thread may run: the status is the one told with the exit of the last thread of the first process. The sentry waits for
us, up to a second, when the socket is full; should it drop a point all the same, no status is told.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Callable, Iterator
from typing import Final

INIT_THREAD_GROUP: Final = 1
_HEADER: Final = struct.Struct("<HHI")  # header size, message type, dropped count
_HANDSHAKE_ANSWER: Final = b"\x08\x01"  # protocol version 1
_MAX_PACKET: Final = 65536
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_CLONE, _TASK_EXIT = 2, 5  # message types
_CONTEXT_FIELD, _STATUS_FIELD, _THREAD_GROUP_FIELD = 1, 2, 4  # of a task's exit, and of its context
_CREATED_GROUP_FIELD = 4  # of a clone


class InitThreads:
    """Follows the threads of the program's first process, packet by packet."""

    def __init__(self) -> None:
        self._alive = 1
        self._dropped = False

    def take(self, packet: bytes) -> int | None:
        """The raw wait status when this packet tells of the last thread's exit; None for any other packet."""
        header_size, kind, dropped = _HEADER.unpack_from(packet)
        self._dropped = self._dropped or dropped > 0
        message = dict(_fields(packet[header_size:]))
        if kind == _CLONE and message.get(_CREATED_GROUP_FIELD) == INIT_THREAD_GROUP:
            self._alive += 1
        if kind != _TASK_EXIT:
            return None
        context = message.get(_CONTEXT_FIELD, b"")
        status = message.get(_STATUS_FIELD, 0)
        if not isinstance(context, bytes) or not isinstance(status, int):
            return None
        if dict(_fields(context)).get(_THREAD_GROUP_FIELD) != INIT_THREAD_GROUP:
            return None
        self._alive -= 1
        return status if self._alive == 0 and not self._dropped else None


class ExitEvents:
    """Takes the one connection; tells the wait status of the program's first process, and when the sandbox hung up."""

    def __init__(self, on_exit: Callable[[int], None], on_closed: Callable[[], None]) -> None:
        self._on_exit = on_exit
        self._on_closed = on_closed
        self._socket: socket.socket | None = None
        self._greeted = False
        self._threads = InitThreads()

    def listen(self, listener: socket.socket) -> None:
        """Begin on a listening socket, which becomes this object's to close."""
        self._socket = listener
        listener.setblocking(False)
        asyncio.get_running_loop().add_reader(listener, self._accept)

    def close(self) -> None:
        """Stop; idempotent."""
        if self._socket is not None:
            asyncio.get_running_loop().remove_reader(self._socket)
            self._socket.close()
            self._socket = None

    def poll(self) -> None:
        """Take what has come without waiting for the event loop."""
        while self._greeted and self._socket is not None and self._receive():
            pass

    def _accept(self) -> None:
        assert self._socket is not None
        try:
            connection, _ = self._socket.accept()
        except BlockingIOError:
            return
        self.close()
        connection.setblocking(False)
        self._socket = connection
        asyncio.get_running_loop().add_reader(connection, self._receive)

    def _receive(self) -> bool:
        assert self._socket is not None
        try:
            packet = self._socket.recv(_MAX_PACKET)
        except BlockingIOError:
            return False
        except OSError:
            packet = b""
        if not packet:
            self.close()
            self._on_closed()
            return False
        if not self._greeted:
            self._socket.send(_HANDSHAKE_ANSWER)
            self._greeted = True
            return True
        status = self._threads.take(packet)
        if status is not None:
            self._on_exit(status)
        return True


def _fields(message: bytes) -> Iterator[tuple[int, int | bytes]]:
    """The fields of a protobuf message, as far as their wire types are known."""
    at = 0
    while at < len(message):
        key, at = _varint(message, at)
        kind = key & 7
        if kind == _VARINT:
            value, at = _varint(message, at)
            yield key >> 3, value
        elif kind == _BYTES:
            size, at = _varint(message, at)
            yield key >> 3, message[at : at + size]
            at += size
        elif kind in (_FIXED64, _FIXED32):
            at += 8 if kind == _FIXED64 else 4
        else:
            return


def _varint(message: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while at < len(message):
        byte = message[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            break
        shift += 7
    return value, at
