"""Pipes to and from a program: feeding, draining, what is kept, and the moment that there was too much."""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import Callable
from typing import Final

from crucible_executor.sandbox.port import OutputSink, Stream, StreamSummary

CHUNK_BYTES: Final = 128 * 1024


class PipeReader:
    """Reads a pipe in the event loop until its end, however much comes; owns the descriptor."""

    def __init__(self, descriptor: int, take: Callable[[bytes], None]) -> None:
        self._descriptor = descriptor
        self._take = take
        self._open = True
        self._reading = False

    def start(self) -> None:
        """Begin to read in the running loop."""
        os.set_blocking(self._descriptor, False)
        asyncio.get_running_loop().add_reader(self._descriptor, self._read)
        self._reading = True

    def drain(self) -> None:
        """Take all that the pipe holds now, without waiting."""
        while self._reading and self._read():
            pass

    def close(self) -> None:
        """Stop and close; idempotent."""
        self._stop()
        if self._open:
            self._open = False
            os.close(self._descriptor)

    def _stop(self) -> None:
        if self._reading:
            self._reading = False
            asyncio.get_running_loop().remove_reader(self._descriptor)

    def _read(self) -> bool:
        try:
            data = os.read(self._descriptor, CHUNK_BYTES)
        except BlockingIOError:
            return False
        except OSError:
            data = b""
        if not data:
            self._stop()
            return False
        self._take(data)
        return True


class OutputCapture:
    """Keeps the first bytes of one stream, hands them on, and tells once when more came."""

    def __init__(self, stream: Stream, limit: int, sink: OutputSink, on_exceeded: Callable[[], None]) -> None:
        self._stream = stream
        self._limit = limit
        self._sink = sink
        self._on_exceeded = on_exceeded
        self._hash = hashlib.sha256()
        self._size = 0
        self._truncated = False

    def take(self, data: bytes) -> None:
        """Account for the next bytes; those over the limit are dropped."""
        kept = data[: self._limit - self._size]
        if kept:
            self._hash.update(kept)
            self._size += len(kept)
            self._sink.write(self._stream, kept)
        if len(kept) < len(data) and not self._truncated:
            self._truncated = True
            self._on_exceeded()

    def summary(self) -> StreamSummary:
        """What was kept so far."""
        return StreamSummary(size_bytes=self._size, sha256=self._hash.hexdigest(), truncated=self._truncated)


class CappedLog:
    """Keeps the beginning of a log and drops the rest."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._kept = bytearray()

    def take(self, data: bytes) -> None:
        """Account for the next bytes."""
        self._kept += data[: self._limit - len(self._kept)]

    @property
    def text(self) -> str:
        """What was kept; invalid bytes replaced."""
        return self._kept.decode(errors="replace").strip()


class PipeWriter:
    """Feeds bytes to a pipe in the event loop, then closes it; a reader that goes away is no error."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._open = True
        self._rest = memoryview(b"")

    def feed(self, data: bytes) -> None:
        """Write all of it as the reader takes it, then the end of file."""
        os.set_blocking(self._descriptor, False)
        self._rest = memoryview(data)
        self._write()
        if self._open:
            asyncio.get_running_loop().add_writer(self._descriptor, self._write)

    def close(self) -> None:
        """Stop and close; idempotent."""
        if self._open:
            self._open = False
            asyncio.get_running_loop().remove_writer(self._descriptor)
            os.close(self._descriptor)

    def _write(self) -> None:
        try:
            while self._rest:
                self._rest = self._rest[os.write(self._descriptor, self._rest) :]
        except BlockingIOError:
            return
        except OSError:
            self._rest = memoryview(b"")
        self.close()
