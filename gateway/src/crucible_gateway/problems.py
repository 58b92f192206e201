"""Failures as people meet them: RFC 9457 problem documents, made from a code, a reason and its details alone.

Nothing of an exception's text gets here: a `ServiceError` holds what may be shown, everything else is INTERNAL.
"""

from __future__ import annotations

import http
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import grpc
from google.protobuf.descriptor import Descriptor
from opentelemetry import trace

from crucible_chassis.errors import FieldViolation, ServiceError
from crucible_gateway.contract import BODY_WHOLE, Route
from crucible_gateway.descriptions import describe

CONTENT_TYPE = "application/problem+json"
TYPE_PREFIX = "https://crucible.dev/errors/"
"""Of a problem's `type`; the reason follows."""

STATUS: Mapping[grpc.StatusCode, int] = {
    grpc.StatusCode.OK: 200,
    grpc.StatusCode.INVALID_ARGUMENT: 400,
    grpc.StatusCode.FAILED_PRECONDITION: 400,
    grpc.StatusCode.OUT_OF_RANGE: 400,
    grpc.StatusCode.UNAUTHENTICATED: 401,
    grpc.StatusCode.PERMISSION_DENIED: 403,
    grpc.StatusCode.NOT_FOUND: 404,
    grpc.StatusCode.ALREADY_EXISTS: 409,
    grpc.StatusCode.ABORTED: 409,
    grpc.StatusCode.RESOURCE_EXHAUSTED: 429,
    grpc.StatusCode.CANCELLED: 499,
    grpc.StatusCode.UNKNOWN: 500,
    grpc.StatusCode.INTERNAL: 500,
    grpc.StatusCode.DATA_LOSS: 500,
    grpc.StatusCode.UNIMPLEMENTED: 501,
    grpc.StatusCode.UNAVAILABLE: 503,
    grpc.StatusCode.DEADLINE_EXCEEDED: 504,
}
"""google/rpc/code.proto."""

STATUS_OF_REASON: Mapping[str, int] = {
    "METHOD_NOT_ALLOWED": 405,
    "BODY_TOO_SLOW": 408,
    # The state of the resource stands against it, and nothing is wrong with the request.
    "EVALUATION_FINAL": 409,
    "EVALUATION_NOT_FAILED": 409,
    "BODY_TOO_LARGE": 413,
    "URL_TOO_LONG": 414,
    "UNSUPPORTED_MEDIA_TYPE": 415,
    "RANGE_NOT_SATISFIABLE": 416,
    "HEADERS_TOO_LARGE": 431,
}
"""Reasons for which HTTP has a better word than for their code."""

_PHRASES = {499: "Client Closed Request"}


@dataclass(frozen=True, slots=True)
class Problem:
    """An answer that is a failure."""

    status: int
    headers: tuple[tuple[str, str], ...]
    document: dict[str, Any]


def fault(reason: str, message: str, *, field: str = "", metadata: Mapping[str, str] | None = None) -> ServiceError:
    """INVALID_ARGUMENT of the gateway's own, about one field where it is about one."""
    violations = (FieldViolation(field, message),) if field else ()
    return ServiceError(grpc.StatusCode.INVALID_ARGUMENT, reason, message, metadata=metadata, violations=violations)


def too_large(reason: str, what: str, maximum: int) -> ServiceError:
    """OUT_OF_RANGE: something of the request is larger than `maximum` bytes."""
    return ServiceError(
        grpc.StatusCode.OUT_OF_RANGE, reason, f"{what} than {maximum} bytes", metadata={"maximum_bytes": str(maximum)}
    )


def problem(error: ServiceError) -> Problem:
    """The document of a failure, with the trace of the current span."""
    error = _normal(error)
    status = status_of(error.code, error.reason)
    detail = error.message
    if error.violations:
        detail = _summary(error.violations)
    document: dict[str, Any] = {
        "type": TYPE_PREFIX + error.reason,
        "title": title(error.reason, status),
        "status": status,
        "detail": detail,
        "reason": error.reason,
        "metadata": {_camel_case(key): value for key, value in error.metadata.items()},
    }
    if error.violations:
        document["errors"] = [{"field": each.field, "message": each.description} for each in error.violations]
    span = trace.get_current_span().get_span_context()
    if span.is_valid:
        document["traceId"] = trace.format_trace_id(span.trace_id)
    headers: list[tuple[str, str]] = []
    if error.retry_after is not None:
        headers.append(("retry-after", str(max(1, math.ceil(error.retry_after)))))
    if error.reason == "METHOD_NOT_ALLOWED":
        headers.append(("allow", error.metadata.get("allowed", "")))
    if error.reason == "RANGE_NOT_SATISFIABLE" and error.metadata.get("size", "").isdecimal():
        headers.append(("content-range", f"bytes */{error.metadata['size']}"))
    return Problem(status, tuple(headers), document)


def status_of(code: grpc.StatusCode, reason: str) -> int:
    """The status of HTTP for a failure."""
    return STATUS_OF_REASON.get(reason, STATUS[code])


def title(reason: str, status: int) -> str:
    """A reason's words for people, as its comment in the contract has them; else the status's."""
    # A reason's comment is "CODE. What it means. More." by the contract's own convention.
    sentences = describe(f"crucible.v1.ErrorReason.{reason}").split(". ")
    if len(sentences) > 1:
        return sentences[1].rstrip(".")
    return _PHRASES.get(status) or http.HTTPStatus(status).phrase


def in_callers_words(error: ServiceError, route: Route, spoken: Mapping[str, str]) -> ServiceError:
    """The error with its fields named as the caller wrote them.

    Services name fields in proto names of the request message. Here the body's fields get their JSON names, without the
    name of the field that the body is; `spoken` holds, for fields from elsewhere, what the caller called them.
    """
    if not error.violations:
        return error
    violations = [FieldViolation(_spoken(each.field, route, spoken), each.description) for each in error.violations]
    return ServiceError(
        error.code,
        error.reason,
        error.message,
        metadata=error.metadata,
        violations=violations,
        retry_after=error.retry_after,
    )


def _spoken(path: str, route: Route, spoken: Mapping[str, str]) -> str:
    first = path.partition(".")[0].partition("[")[0]
    if first in spoken:
        return spoken[first] + path[len(first) :]
    words = _json_path(path, route.rpc.input_type)
    if route.body not in ("", BODY_WHOLE) and first == route.body:
        own = _json_path(first, route.rpc.input_type)
        return words[len(own) :].removeprefix(".")
    # Path and query speak proto names, as the documentation shows them.
    return words if route.body == BODY_WHOLE else path


def _json_path(path: str, message: Descriptor) -> str:
    """`files[3].stdin_bytes` as `files[3].stdinBytes`; what the message does not know stays as it is.

    A key in `[...]` may hold anything, dots and brackets included, so it is cut off by its quotes.
    """
    parts: list[str] = []
    at: Descriptor | None = message
    rest = path
    while rest:
        end = min((rest.find(mark) for mark in ".[" if mark in rest), default=len(rest))
        name, rest = rest[:end], rest[end:]
        field = at.fields_by_name.get(name) if at is not None else None
        if field is None:
            return ".".join([*parts, name]) + rest
        text = field.json_name
        inner = field.message_type
        if rest.startswith("["):
            close = rest.find('"]') + 1 if rest.startswith('["') else rest.find("]")
            if close <= 0:
                return ".".join([*parts, text]) + rest
            text += rest[: close + 1]
            rest = rest[close + 1 :]
            if inner is not None and inner.GetOptions().map_entry:
                inner = inner.fields_by_name["value"].message_type
        parts.append(text)
        at = inner
        rest = rest.removeprefix(".")
    return ".".join(parts)


def _camel_case(name: str) -> str:
    """As all names are written in JSON: `maximum_bytes` as `maximumBytes`."""
    first, *others = name.split("_")
    return first + "".join(other.capitalize() for other in others)


def _summary(violations: Sequence[FieldViolation]) -> str:
    shown = "; ".join(f"{v.field}: {v.description}" if v.field else v.description for v in violations[:3])
    return shown + (f"; and {len(violations) - 3} more" if len(violations) > 3 else "")


def _normal(error: ServiceError) -> ServiceError:
    """A bare status, which the transport or a foreign server made, gets a reason of the contract and words of ours."""
    if error.reason != error.code.name:
        return error
    match error.code:
        # A server that is full is as good as away: RESOURCE_EXHAUSTED without a reason is gRPC's own.
        case grpc.StatusCode.UNAVAILABLE | grpc.StatusCode.RESOURCE_EXHAUSTED:
            return ServiceError(
                grpc.StatusCode.UNAVAILABLE,
                "DEPENDENCY_UNAVAILABLE",
                "a part of the platform is unavailable; try again",
                metadata=error.metadata,
                retry_after=1,
            )
        case grpc.StatusCode.DEADLINE_EXCEEDED:
            return ServiceError(error.code, "DEADLINE_EXCEEDED", "the answer did not come in time")
        case grpc.StatusCode.CANCELLED:
            return ServiceError(error.code, "CANCELLED_BY_CLIENT", "the call was cancelled")
        case grpc.StatusCode.UNIMPLEMENTED:
            return ServiceError(error.code, "INTERNAL", "this part of the platform does not know the method yet")
        case _:
            return internal()


def internal() -> ServiceError:
    """INTERNAL, which says nothing but where an operator finds more."""
    trace_id = trace.format_trace_id(trace.get_current_span().get_span_context().trace_id)
    return ServiceError(grpc.StatusCode.INTERNAL, "INTERNAL", "internal error", metadata={"trace_id": trace_id})


def status_of_name(code: str, reason: str) -> int:
    """As `status_of`, by a code's name."""
    return status_of(grpc.StatusCode[code], reason)
