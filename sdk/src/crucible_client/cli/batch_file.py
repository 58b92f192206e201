"""The file of a batch: one evaluation a line, as proto3 JSON; all of it is read and checked before anything is sent."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from crucible.v1 import evaluation_pb2
from crucible_client.cli.strict_json import FaultError, read_message, read_object

REQUEST_ID = "requestId"
"""Beside the evaluation's own fields a line may hold its request id."""

MAXIMUM_REQUEST_ID = 255


@dataclass(frozen=True, slots=True)
class Line:
    """One line that can be sent. `number` counts from 1."""

    number: int
    request_id: str
    evaluation: evaluation_pb2.Evaluation


@dataclass(frozen=True, slots=True)
class BadLine:
    """One that cannot: which field, and why."""

    number: int
    field: str
    problem: str

    @property
    def what(self) -> str:
        """Field and problem."""
        return f"{self.field}: {self.problem}" if self.field else self.problem

    def __str__(self) -> str:
        return f"line {self.number}: {self.what}"


def read_batch(content: bytes, *, runtimes: Sequence[str], key: str | None) -> tuple[list[Line], list[BadLine]]:
    """The lines and the bad lines. Empty lines count but are no evaluations.

    A line without a request id gets one of the file's content (or of `key`) and its number, so that the same file
    makes the same requests.
    """
    prefix = hashlib.sha256(content if key is None else key.encode(errors="surrogateescape")).hexdigest()[:32]
    lines: list[Line] = []
    bad: list[BadLine] = []
    number_of: dict[str, int] = {}
    for number, text in _numbered(content):
        try:
            request_id, evaluation = _parse(text, runtimes)
            request_id = request_id or f"batch-{prefix}-{number}"
            if request_id in number_of:
                raise FaultError(REQUEST_ID, f"{request_id!r} is already used in line {number_of[request_id]}")
        except FaultError as exc:
            bad.append(BadLine(number, exc.field, exc.problem))
        else:
            number_of[request_id] = number
            lines.append(Line(number, request_id, evaluation))
    return lines, bad


def _numbered(content: bytes) -> Iterator[tuple[int, bytes]]:
    # By the newline alone: JSON strings may hold the other line separators of Unicode.
    for number, text in enumerate(content.removeprefix(b"\xef\xbb\xbf").split(b"\n"), start=1):
        if text.strip():
            yield number, text


def _parse(text: bytes, runtimes: Sequence[str]) -> tuple[str, evaluation_pb2.Evaluation]:
    members = read_object(text)
    request_id = _request_id(members.pop(REQUEST_ID, None))
    evaluation = evaluation_pb2.Evaluation()
    read_message(members, evaluation)
    if not evaluation.runtime:
        raise FaultError("runtime", f"is missing: one of {', '.join(runtimes)}")
    if evaluation.runtime not in runtimes:
        raise FaultError("runtime", f"{evaluation.runtime!r} is not known: one of {', '.join(runtimes)}")
    if not evaluation.HasField("source") and not evaluation.files:
        raise FaultError("source", "is missing: send the program as source or as files")
    if evaluation.HasField("source") and evaluation.files:
        raise FaultError("files", "cannot be combined with source: send the program as one or the other")
    return request_id, evaluation


def _request_id(value: object) -> str:
    if value is None:
        return ""
    if not isinstance(value, str) or not value or len(value) > MAXIMUM_REQUEST_ID or not value.isascii():
        raise FaultError(REQUEST_ID, "must be 1 to 255 printable ASCII characters")
    if any(character <= " " or character == "\x7f" for character in value):
        raise FaultError(REQUEST_ID, "must be printable and without spaces")
    return value
