"""What programs wrote, byte for byte: from the events, or from the object store where it was too much for them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any, Literal

import grpc
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from crucible.v1 import event_pb2
from crucible_chassis.errors import ServiceError
from crucible_store.database import Database
from crucible_store.domain.states import FINAL, Status
from crucible_store.ledger.requests import not_found
from crucible_store.objects import PIECE_BYTES, ObjectMissingError, Objects

Stream = Literal["stdout", "stderr"]

_NUMBERS: dict[Stream, int] = {"stdout": 1, "stderr": 2}

# The verdict's attempt where there is a verdict: what an earlier one wrote is not what the verdict is about.
_PLACE = sa.text("""
SELECT chosen.status, chosen.attempt, a.stdout_object AS stdout, a.stderr_object AS stderr FROM (
    SELECT e.id, e.status, coalesce(
        r.attempt, (SELECT max(attempt) FROM events WHERE evaluation = e.id AND stream IS NOT NULL)
    ) AS attempt
    FROM evaluations e LEFT JOIN results r ON r.evaluation = e.id AND r.generation = e.generation
    WHERE e.id = :id
) chosen LEFT JOIN attempts a ON a.evaluation = chosen.id AND a.attempt = chosen.attempt
""")

_LIVE = sa.text("""
SELECT stream_offset, event FROM events WHERE evaluation = :id AND attempt = :attempt AND stream = :stream
ORDER BY sequence
""")


@dataclass(frozen=True, slots=True)
class Slice:
    """A part of a stream."""

    offset: int
    length: int
    size: int
    """Of the whole stream, as far as it is kept."""
    complete: bool
    """The evaluation is final: nothing will be added."""
    pieces: AsyncIterator[bytes]
    """The bytes; none for an empty part."""


class Outputs:
    """Reads outputs. Raises DatabaseAwayError, and ServiceError as the contract of `ReadOutput` says."""

    def __init__(self, database: Database, objects: Objects) -> None:
        self._database = database
        self._objects = objects

    async def read(self, evaluation: str, stream: Stream, *, offset: int, limit: int) -> Slice:
        """The part from `offset` (negative: from the end), of `limit` bytes (0: all)."""
        place = await self._database.read(lambda c: _place(c, evaluation))
        if place is None:
            raise not_found(evaluation)
        complete = Status(place["status"]) in FINAL
        if name := place[stream]:
            try:
                size = await self._objects.size(name)
                start, length = _part(offset, limit, size)
                return Slice(start, length, size, complete, self._objects.read(name, start, length))
            except ObjectMissingError as exc:
                raise ServiceError(
                    grpc.StatusCode.INTERNAL, "INTERNAL", "the object that holds the output is missing"
                ) from exc
        data = await self._database.read(lambda c: _live(c, evaluation, place["attempt"], stream))
        start, length = _part(offset, limit, len(data))
        return Slice(start, length, len(data), complete, _pieces(data[start : start + length]))


def _part(offset: int, limit: int, size: int) -> tuple[int, int]:
    start = max(0, size + offset) if offset < 0 else offset
    if start > size:
        raise ServiceError(
            grpc.StatusCode.OUT_OF_RANGE,
            "RANGE_NOT_SATISFIABLE",
            f"the offset is past the end: the output has {size} bytes",
            metadata={"size": str(size)},
        )
    return start, min(limit or size, size - start)


async def _place(connection: AsyncConnection, evaluation: str) -> Any:  # noqa: ANN401  a row of columns
    return (await connection.execute(_PLACE, {"id": evaluation})).mappings().one_or_none()


async def _live(connection: AsyncConnection, evaluation: str, attempt: int | None, stream: Stream) -> bytes:
    """The bytes in the events: at most what is sent live."""
    if attempt is None:
        return b""
    rows = await connection.execute(_LIVE, {"id": evaluation, "attempt": attempt, "stream": _NUMBERS[stream]})
    data = bytearray()
    for offset, event in rows:
        output = event_pb2.Event.FromString(event).output
        content = output.text.encode() if output.HasField("text") else output.data
        # Where a message was set aside a hole stays, so that every byte keeps its place.
        data.extend(bytes(max(0, offset - len(data))))
        data[offset : offset + len(content)] = content
    return bytes(data)


async def _pieces(data: bytes) -> AsyncIterator[bytes]:
    for start in range(0, len(data), PIECE_BYTES):
        yield data[start : start + PIECE_BYTES]
