"""What a call can raise: two trees under CrucibleError, by who can fix it.

A UserError is answered by changing the request; a PlatformError by waiting, or by the platform's operator. Which class
a gRPC status becomes is in `status`. Knows no gRPC, so that it can be imported for nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class FieldViolation:
    """One broken rule: `field` is a path such as `evaluation.limits.memory_bytes`, `description` the rule."""

    field: str
    description: str

    def __str__(self) -> str:
        return f"{self.field}: {self.description}" if self.field else self.description


class CrucibleError(Exception):
    """A call that failed.

    Attributes:
        message: One sentence for people.
        code: Name of the gRPC status, such as `NOT_FOUND`.
        reason: Name of the `crucible.v1.ErrorReason`, such as `EVALUATION_NOT_FOUND`; empty where no service of
            Crucible answered (the network failed, or something in between did).
        metadata: What belongs to the reason, as its documentation says:
            `{"runtime": "pyhton", "known": "bash, python"}`.
        violations: Every field that breaks a rule, with the rule.
        trace_id: The W3C trace of the call, 32 hex digits: what an operator needs to find it.
        retry_after: Seconds after which the platform asks to be tried again, where it says so.
        transient: The same call may succeed a moment later. The client has tried again already where that was safe.
    """

    def __init__(
        self,
        message: str,
        *,
        code: str = "UNKNOWN",
        reason: str = "",
        metadata: Mapping[str, str] | None = None,
        violations: Sequence[FieldViolation] = (),
        trace_id: str = "",
        retry_after: float | None = None,
        transient: bool = False,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.code = code
        self.reason = reason
        self.metadata: Mapping[str, str] = dict(metadata or {})
        self.violations = tuple(violations)
        self.trace_id = trace_id
        self.retry_after = retry_after
        self.transient = transient

    def __str__(self) -> str:
        return self.message


class UserError(CrucibleError):
    """The request cannot be accepted as it is: change it."""


class InvalidRequestError(UserError):
    """A field is not valid (INVALID_ARGUMENT): see `violations`. Or the message is too large to be sent."""


class OutOfRangeError(UserError):
    """Past the end of the data (OUT_OF_RANGE)."""


class NotFoundError(UserError):
    """It does not exist (NOT_FOUND)."""


class ConflictError(UserError):
    """It already exists and differs (ALREADY_EXISTS): the request id was used before with another body."""


class PreconditionError(UserError):
    """Its state does not allow this (FAILED_PRECONDITION): cancelling what is final, requeueing what did not fail."""


class PermissionDeniedError(UserError):
    """Not allowed (PERMISSION_DENIED)."""


class UnauthenticatedError(UserError):
    """Not authenticated (UNAUTHENTICATED)."""


class QuotaError(UserError):
    """Too much or too often (RESOURCE_EXHAUSTED, with a reason)."""


class ConfigurationError(UserError):
    """The client's own settings cannot be read; nothing was sent."""


class PlatformError(CrucibleError):
    """The platform could not do it: the request may be fine."""


class UnavailableError(PlatformError):
    """The platform or a part of it is unavailable (UNAVAILABLE), or full (RESOURCE_EXHAUSTED without a reason).

    `reached`: this client was connected to it; what was sent may have been done.
    """

    reached: bool = True


class DeadlineError(PlatformError):
    """There was no answer in time (DEADLINE_EXCEEDED). The request may still have taken effect."""


class CallCancelledError(PlatformError):
    """The server cancelled the call (CANCELLED)."""


class AbortedError(PlatformError):
    """It lost a race against another call (ABORTED)."""


class UnsupportedError(PlatformError):
    """The server does not know this call (UNIMPLEMENTED): it is older or newer than the client."""


class InternalError(PlatformError):
    """A fault of the platform (INTERNAL, UNKNOWN, DATA_LOSS)."""
