"""From a failed gRPC call to the exception a caller sees: one total table."""

from __future__ import annotations

import grpc
import grpc.aio
from google.protobuf.message import DecodeError
from google.rpc import (  # pyright: ignore[reportMissingTypeStubs]  typed by its .pyi files, which no py.typed announces
    error_details_pb2,
    status_pb2,
)

from crucible_client import errors
from crucible_client.errors import CrucibleError, FieldViolation

ERROR_OF_STATUS: dict[grpc.StatusCode, type[CrucibleError]] = {
    grpc.StatusCode.CANCELLED: errors.CallCancelledError,
    grpc.StatusCode.UNKNOWN: errors.InternalError,
    grpc.StatusCode.INVALID_ARGUMENT: errors.InvalidRequestError,
    grpc.StatusCode.DEADLINE_EXCEEDED: errors.DeadlineError,
    grpc.StatusCode.NOT_FOUND: errors.NotFoundError,
    grpc.StatusCode.ALREADY_EXISTS: errors.ConflictError,
    grpc.StatusCode.PERMISSION_DENIED: errors.PermissionDeniedError,
    grpc.StatusCode.RESOURCE_EXHAUSTED: errors.QuotaError,
    grpc.StatusCode.FAILED_PRECONDITION: errors.PreconditionError,
    grpc.StatusCode.ABORTED: errors.AbortedError,
    grpc.StatusCode.OUT_OF_RANGE: errors.OutOfRangeError,
    grpc.StatusCode.UNIMPLEMENTED: errors.UnsupportedError,
    grpc.StatusCode.INTERNAL: errors.InternalError,
    grpc.StatusCode.UNAVAILABLE: errors.UnavailableError,
    grpc.StatusCode.DATA_LOSS: errors.InternalError,
    grpc.StatusCode.UNAUTHENTICATED: errors.UnauthenticatedError,
}
"""Every status but OK; of RESOURCE_EXHAUSTED, what has a reason."""

_DETAILS_KEY = "grpc-status-details-bin"

_TRANSIENT = {
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.CANCELLED,
    grpc.StatusCode.ABORTED,
}
# A connection that breaks in the middle of an answer can end as one of these; a fault that a service of Crucible knows
# of comes with its reason.
_TRANSIENT_WITHOUT_REASON = {grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN}

_TOO_LARGE = "message larger than max"
"""In gRPC's words for a message that was sent, and for one that was received."""


def from_rpc_error(error: grpc.aio.AioRpcError, *, trace_id: str) -> CrucibleError:
    """The exception that a failed call is for its caller."""
    code = error.code()
    info = error_details_pb2.ErrorInfo()
    bad_request = error_details_pb2.BadRequest()
    retry_info = error_details_pb2.RetryInfo()
    retry_after = None
    for detail in _details(error):
        try:
            detail.Unpack(info)
            detail.Unpack(bad_request)
            if detail.Unpack(retry_info):
                retry_after = retry_info.retry_delay.ToNanoseconds() / 1e9
        except DecodeError:  # a detail of another version: the status itself still says what happened
            continue
    message = error.details() or code.value[1]
    kind = ERROR_OF_STATUS[code]
    transient = code in _TRANSIENT or (code in _TRANSIENT_WITHOUT_REASON and not info.reason)
    if code is grpc.StatusCode.RESOURCE_EXHAUSTED and not info.reason:
        # gRPC's own, for a message that can never pass, or a server that is full for now.
        transient = _TOO_LARGE not in message
        kind = errors.UnavailableError if transient else errors.InvalidRequestError
        message = message if transient else f"the request, or its answer, is too large to be sent: {message}"
    return kind(
        message,
        code=code.name,
        reason=info.reason,
        metadata=dict(info.metadata),
        violations=[FieldViolation(v.field, v.description) for v in bad_request.field_violations],
        trace_id=info.metadata.get("trace_id", trace_id),
        retry_after=retry_after,
        transient=transient,
    )


def _details(error: grpc.aio.AioRpcError):  # noqa: ANN202  a repeated field of Any has no public type name
    status = status_pb2.Status()
    for key, value in error.trailing_metadata() or ():
        if key == _DETAILS_KEY and isinstance(value, bytes):
            try:
                status.ParseFromString(value)
            except DecodeError:
                status.Clear()
    return status.details
