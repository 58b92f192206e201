"""Failures: every one is a gRPC code plus an `ErrorInfo` reason.

Use cases raise `ServiceError`; the server translates it to `google.rpc.Status`; `from_rpc_error` gives it to a caller.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import grpc
import grpc.aio
from google.protobuf import message as protobuf_message
from google.rpc import (  # pyright: ignore[reportMissingTypeStubs]  typed by its .pyi files, which no py.typed announces
    error_details_pb2,
    status_pb2,
)

STATUS_DETAILS_KEY = "grpc-status-details-bin"
"""Trailing metadata that carries the `google.rpc.Status`."""

MAX_MESSAGE_CHARS = 1024
"""A status travels in HTTP/2 headers, whose size peers limit (8 KiB by default in many): longer messages are cut."""
MAX_VIOLATIONS = 20
"""Field violations reported at most in one status."""
MAX_VIOLATION_CHARS = 200
"""Characters of a violation's field and of its description, each."""
MAX_METADATA_CHARS = 256
"""Characters of a value in `ErrorInfo.metadata`."""

_CODES: dict[int, grpc.StatusCode] = {code.value[0]: code for code in grpc.StatusCode}


@dataclass(frozen=True, slots=True)
class FieldViolation:
    """One broken rule. `field` is a path in proto names (`evaluation.limits.memory_bytes`, `files[3].path`)."""

    field: str
    description: str


class ServiceError(Exception):
    """A failure whose message may be shown to the caller.

    `code` is never OK; `reason` is a name of the error reason enum; `retry_after` is in seconds. Never put secrets, a
    program's output or another exception's text into `message` or `metadata`.
    """

    def __init__(
        self,
        code: grpc.StatusCode,
        reason: str,
        message: str,
        *,
        metadata: Mapping[str, str] | None = None,
        violations: Sequence[FieldViolation] = (),
        retry_after: float | None = None,
    ) -> None:
        if code is grpc.StatusCode.OK:
            msg = "a ServiceError cannot have the code OK"
            raise ValueError(msg)
        super().__init__(code, reason, message)
        self.code = code
        self.reason = reason
        self.message = message
        self.metadata: Mapping[str, str] = dict(metadata or {})
        self.violations = tuple(violations)
        self.retry_after = retry_after

    def __str__(self) -> str:
        return f"{self.code.name} {self.reason}: {self.message}"


def invalid_argument(violations: Sequence[FieldViolation], *, reason: str = "INVALID_FIELD") -> ServiceError:
    """INVALID_ARGUMENT that names each field and its limit. The message is readable without the details."""
    shown = "; ".join(f"{v.field}: {v.description}" if v.field else v.description for v in violations[:3])
    more = f"; and {len(violations) - 3} more" if len(violations) > 3 else ""
    return ServiceError(grpc.StatusCode.INVALID_ARGUMENT, reason, shown + more, violations=violations)


def rich_status(error: ServiceError, domain: str) -> status_pb2.Status:
    """The error as it travels: code, message, and the details ErrorInfo, BadRequest (if any) and RetryInfo (if any).

    Bounded in size (see the constants above): what does not fit is cut, the code and reason never are.
    """
    number: int = error.code.value[0]
    status = status_pb2.Status(code=number, message=_cut(error.message, MAX_MESSAGE_CHARS))
    info = error_details_pb2.ErrorInfo(reason=error.reason, domain=domain)
    for key, value in error.metadata.items():
        info.metadata[key] = _cut(value, MAX_METADATA_CHARS)
    status.details.add().Pack(info)
    if error.violations:
        bad = error_details_pb2.BadRequest()
        for violation in error.violations[:MAX_VIOLATIONS]:
            bad.field_violations.add(
                field=_cut(violation.field, MAX_VIOLATION_CHARS),
                description=_cut(violation.description, MAX_VIOLATION_CHARS),
            )
        status.details.add().Pack(bad)
    if error.retry_after is not None:
        retry = error_details_pb2.RetryInfo()
        retry.retry_delay.FromNanoseconds(int(error.retry_after * 1e9))
        status.details.add().Pack(retry)
    return status


def from_rpc_error(e: grpc.aio.AioRpcError) -> ServiceError:
    """The error a server of this chassis meant. Total: any status of any server becomes one.

    Without `ErrorInfo` (the transport itself failed, or a foreign server answered) the reason is the code's name and
    the message a fixed one: text nobody vouches for, such as an internal address, is not passed on. A bare CANCELLED is
    UNAVAILABLE: it comes from a server that stops in the middle of a call.
    """
    status = _status_of(e)
    if status is None or status.code == 0:
        code = e.code()
        if code is grpc.StatusCode.CANCELLED:
            # A caller that cancels gets CancelledError, never this: the server cancelled, because it is leaving.
            code = grpc.StatusCode.UNAVAILABLE
        text: str = code.value[1]
        return ServiceError(code, code.name, text)
    info = error_details_pb2.ErrorInfo()
    bad = error_details_pb2.BadRequest()
    retry = error_details_pb2.RetryInfo()
    retry_after: float | None = None
    for detail in status.details:
        # Unpack answers False for another type; a detail that does not parse is as good as absent.
        try:
            detail.Unpack(info)
            detail.Unpack(bad)
            if detail.Unpack(retry):
                retry_after = retry.retry_delay.ToNanoseconds() / 1e9
        except protobuf_message.DecodeError:
            continue
    code = _CODES.get(status.code, grpc.StatusCode.UNKNOWN)
    return ServiceError(
        code,
        info.reason or code.name,
        status.message,
        metadata=dict(info.metadata),
        violations=[FieldViolation(v.field, v.description) for v in bad.field_violations],
        retry_after=retry_after,
    )


def _status_of(e: grpc.aio.AioRpcError) -> status_pb2.Status | None:
    metadata = e.trailing_metadata()
    if metadata is None:
        return None
    for key, value in metadata:
        if key == STATUS_DETAILS_KEY and isinstance(value, bytes):
            try:
                return status_pb2.Status.FromString(value)
            except protobuf_message.DecodeError:
                return None
    return None


def _cut(text: str, limit: int) -> str:
    return text if len(text) <= limit else text[: limit - 1] + "…"
