"""A script for the agent as it is written, and its report as it is read: an address for everything, a bound for each.

Layout, from `agent.BASE` on: the results, the buffers that calls fill, `REPORT_BYTES` in all; then the calls, then what
the calls are given.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final

from crucible_executor.sandbox.containment import agent

MAX_CALLS: Final = 160
_RESULT: Final = struct.Struct("<q")
_CALL: Final = struct.Struct("<q6QQ")
_BUFFERS_AT: Final = MAX_CALLS * _RESULT.size
_DATA_AT: Final = agent.REPORT_BYTES + (MAX_CALLS + 1) * agent.CALL_BYTES
_ALIGNMENT: Final = 8
_WORD: Final = 1 << 64


@dataclass(frozen=True, slots=True)
class Buffer:
    """Memory of the report that a call fills."""

    offset: int
    size: int

    @property
    def address(self) -> int:
        """Where the agent has it."""
        return agent.BASE + self.offset


@dataclass(frozen=True, slots=True)
class Called:
    """A call of the script."""

    index: int

    @property
    def address(self) -> int:
        """Where the agent puts its result."""
        return agent.BASE + self.index * _RESULT.size


class Script:
    """Calls in the order in which they are added; raises ValueError when one more would not fit."""

    def __init__(self) -> None:
        self._calls = bytearray()
        self._data = bytearray()
        self._buffered = _BUFFERS_AT

    def buffer(self, size: int) -> Buffer:
        """So many bytes for a call to fill, zero before."""
        buffer = Buffer(self._buffered, size)
        self._buffered += _aligned(size)
        if self._buffered > agent.REPORT_BYTES:
            raise ValueError("the report is full")
        return buffer

    def data(self, content: bytes) -> int:
        """Address of bytes for a call to read."""
        address = agent.BASE + _DATA_AT + len(self._data)
        self._data += content.ljust(_aligned(len(content)), b"\0")
        if _DATA_AT + len(self._data) > agent.SCRIPT_BYTES:
            raise ValueError("the script is full")
        return address

    def text(self, content: str) -> int:
        """Address of a string for a call to read."""
        return self.data(content.encode() + b"\0")

    def call(self, number: int, *arguments: int) -> Called:
        """A call with plain arguments."""
        return self._add(number, arguments, indirect=False)

    def call_on(self, earlier: Called, number: int, *arguments: int) -> Called:
        """A call whose first argument is what an earlier one returned, such as a descriptor; `arguments` follow it."""
        return self._add(number, (earlier.address, *arguments), indirect=True)

    def _add(self, number: int, arguments: tuple[int, ...], *, indirect: bool) -> Called:
        called = Called(len(self._calls) // agent.CALL_BYTES)
        if called.index == MAX_CALLS:
            raise ValueError("the script has too many calls")
        words = [argument % _WORD for argument in arguments]
        words += [0] * (6 - len(words))
        self._calls += _CALL.pack(number, *words, indirect)
        return called

    def image(self) -> bytes:
        """The script as the agent reads it: `SCRIPT_BYTES`."""
        image = bytearray(agent.SCRIPT_BYTES)
        calls = self._calls + _CALL.pack(-1, 0, 0, 0, 0, 0, 0, 0)
        image[agent.REPORT_BYTES : agent.REPORT_BYTES + len(calls)] = calls
        image[_DATA_AT : _DATA_AT + len(self._data)] = self._data
        return bytes(image)


class Report:
    """What the agent wrote back. Raises ValueError when it is not `REPORT_BYTES`."""

    def __init__(self, content: bytes) -> None:
        if len(content) != agent.REPORT_BYTES:
            raise ValueError(f"a report of {len(content)} bytes")
        self._content = content

    def result(self, called: Called) -> int:
        """What a call returned; an error is its negative number."""
        return _RESULT.unpack_from(self._content, called.index * _RESULT.size)[0]

    def filled(self, buffer: Buffer, called: Called | None = None) -> bytes:
        """A buffer: as much of it as a call says it wrote, nothing where it failed; without a call all of it."""
        size = buffer.size if called is None else max(0, min(self.result(called), buffer.size))
        return self._content[buffer.offset : buffer.offset + size]


def _aligned(size: int) -> int:
    return -(-size // _ALIGNMENT) * _ALIGNMENT
