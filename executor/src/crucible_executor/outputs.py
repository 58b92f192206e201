"""A run's output on its way: gathered for the next message, cut between code points, bounded live, kept whole.

Owns no network. One `OutputStream` is one of the two streams of one run.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections import deque
from dataclasses import dataclass
from typing import IO

from crucible_contracts.limits import LIVE_OUTPUT_BYTES, OUTPUT_MESSAGE_BYTES, OUTPUT_PREVIEW_BYTES
from crucible_executor.sandbox.port import Stream

REPLACEMENT = "\ufffd"


@dataclass(frozen=True, slots=True)
class Chunk:
    """Bytes of a stream for one message, at most OUTPUT_MESSAGE_BYTES."""

    stream: Stream
    offset: int
    content: str | bytes
    """Text where the bytes are UTF-8 without NUL."""


@dataclass(frozen=True, slots=True)
class Elision:
    """From `offset` on a stream is not sent live."""

    stream: Stream
    offset: int


@dataclass(frozen=True, slots=True)
class Preview:
    """A stream as people see it in a result."""

    text: str
    lossy: bool
    omitted: int = 0
    """Bytes of the middle that `text` does not show."""


def code_point_cut(data: bytes | bytearray, end: int) -> int:
    """The greatest index up to `end` that splits no UTF-8 sequence; `end` itself where the bytes are no UTF-8."""
    for back in range(1, min(3, end) + 1):
        byte = data[end - back]
        if byte & 0xC0 == 0x80:  # a continuation: its lead stands before it
            continue
        length = 2 if byte >> 5 == 0b110 else 3 if byte >> 4 == 0b1110 else 4 if byte >> 3 == 0b11110 else 1
        return end - back if length > back else end
    return end


def as_content(data: bytes) -> str | bytes:
    """Text if the bytes are UTF-8 without NUL, else the bytes."""
    if b"\0" in data:
        return data
    try:
        return data.decode()
    except UnicodeDecodeError:
        return data


class OutputStream:
    """One stream of one run: what is still to be sent, and all of it.

    All of it is held in memory while it is short enough to be sent live, then in an unnamed file. `failed` is set when
    that file could not be written; the run then has no trustworthy output.
    """

    def __init__(self, stream: Stream, *, live_bytes: int = LIVE_OUTPUT_BYTES) -> None:
        self.stream = stream
        self.size = 0
        self.failed = False
        self._live_bytes = live_bytes
        self._whole = bytearray()
        self._spool: IO[bytes] | None = None
        self._pending = bytearray()
        self._sent = 0
        self._ended = False
        self._elision_told = False

    @property
    def elided(self) -> bool:
        """More was written than is sent live."""
        return self.size > self._live_bytes

    @property
    def spool(self) -> IO[bytes] | None:
        """The whole stream as a file, where it was too long to be sent live."""
        return self._spool

    def write(self, data: bytes) -> None:
        """Takes the next bytes; does not raise."""
        room = self._live_bytes - min(self.size, self._live_bytes)
        self.size += len(data)
        self._pending += data[:room]
        if not self.elided:
            self._whole += data
            return
        try:
            if self._spool is None:
                self._spool = tempfile.TemporaryFile(prefix="crucible-output-")  # noqa: SIM115  closed by `close`
                self._spool.write(self._whole)
                self._whole.clear()
            self._spool.write(data)
        except OSError:
            self.failed = True

    def end(self) -> None:
        """Nothing more comes: an unfinished code point is sent as it is."""
        self._ended = True

    @property
    def ready(self) -> bool:
        """`take` has something."""
        return self._cut() > 0 or self._tells_elision()

    def take(self) -> Chunk | Elision | None:
        """The next message of this stream; None: nothing now."""
        cut = self._cut()
        if cut > 0:
            data = bytes(self._pending[:cut])
            del self._pending[:cut]
            chunk = Chunk(self.stream, self._sent, as_content(data))
            self._sent += cut
            return chunk
        if self._tells_elision():
            self._elision_told = True
            self._pending.clear()
            return Elision(self.stream, self._sent)
        return None

    def preview(self) -> Preview:
        """The first and the last 32 KiB. Reads the file, so not for the event loop when `spool` is set. OSError."""
        head, tail = self._read(0, OUTPUT_PREVIEW_BYTES), b""
        if self.size <= 2 * OUTPUT_PREVIEW_BYTES:
            tail = self._read(len(head), OUTPUT_PREVIEW_BYTES)
            whole = head + tail
            content = as_content(whole)
            return Preview(content, False) if isinstance(content, str) else Preview(_shown(whole), True)
        head = head[: code_point_cut(head, len(head))]
        tail = self._read(self.size - OUTPUT_PREVIEW_BYTES, OUTPUT_PREVIEW_BYTES)
        tail = tail[_first_code_point(tail) :]
        left_out = self.size - len(head) - len(tail)
        line = f"[... {left_out} bytes left out ...]\n"
        shown = _shown(head)
        return Preview(f"{shown}{'' if shown.endswith(chr(10)) else chr(10)}{line}{_shown(tail)}", True, left_out)

    def close(self) -> None:
        """Removes the file."""
        if self._spool is not None:
            with contextlib.suppress(OSError):  # what found no room is written once more, and finds none
                self._spool.close()

    def _cut(self) -> int:
        end = min(len(self._pending), OUTPUT_MESSAGE_BYTES)
        if self._ended and not self.elided and end == len(self._pending):
            return end
        return code_point_cut(self._pending, end)

    def _tells_elision(self) -> bool:
        return self.elided and not self._elision_told

    def _read(self, offset: int, size: int) -> bytes:
        if self._spool is None:
            return bytes(self._whole[offset : offset + size])
        self._spool.seek(offset)
        return self._spool.read(size)


def _first_code_point(data: bytes) -> int:
    """The first index, at most 3, that is no continuation byte."""
    return next((index for index in range(min(4, len(data))) if data[index] & 0xC0 != 0x80), 0)


def _shown(data: bytes) -> str:
    return data.decode(errors="replace").replace("\0", REPLACEMENT)


class RunOutput:
    """Both streams of a run, and which of them speaks next."""

    def __init__(self) -> None:
        self.streams = {stream: OutputStream(stream) for stream in Stream}
        self._turns = deque(self.streams.values())

    def write(self, stream: Stream, data: bytes) -> None:
        """Takes the next bytes of a stream; does not raise."""
        self.streams[stream].write(data)

    def end(self) -> None:
        """Nothing more comes."""
        for stream in self.streams.values():
            stream.end()

    @property
    def ready(self) -> bool:
        """`take` has something."""
        return any(stream.ready for stream in self._turns)

    @property
    def failed(self) -> bool:
        """A stream could not be kept whole."""
        return any(stream.failed for stream in self._turns)

    @property
    def must_be_stored(self) -> bool:
        """Not all of it is in the messages."""
        return any(stream.elided for stream in self._turns)

    def take(self) -> Chunk | Elision | None:
        """The next message, of the streams in turn."""
        for _ in range(len(self._turns)):
            stream = self._turns[0]
            self._turns.rotate(-1)
            if (taken := stream.take()) is not None:
                return taken
        return None

    def close(self) -> None:
        """Removes what was kept."""
        for stream in self.streams.values():
            stream.close()
