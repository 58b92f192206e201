"""What a call can raise: two trees under CrucibleError, by who can do something about it.

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
    """The request cannot be granted as it is: change it."""


class InvalidRequestError(UserError):
    """A field breaks a rule (INVALID_ARGUMENT): see `violations`."""


class OutOfRangeError(UserError):
    """Past the end of what there is (OUT_OF_RANGE)."""


class NotFoundError(UserError):
    """No such thing (NOT_FOUND)."""


class ConflictError(UserError):
    """It exists already, and differs (ALREADY_EXISTS): a request id used before with another body."""


class PreconditionError(UserError):
    """Not in the state for it (FAILED_PRECONDITION): cancelling what is final, requeueing what did not fail."""


class PermissionDeniedError(UserError):
    """Not allowed (PERMISSION_DENIED)."""


class UnauthenticatedError(UserError):
    """Not known (UNAUTHENTICATED)."""


class QuotaError(UserError):
    """Too much or too often (RESOURCE_EXHAUSTED)."""


class ConfigurationError(UserError):
    """The client's own settings cannot be read; nothing was sent."""


class PlatformError(CrucibleError):
    """The platform could not do it: the request may be fine."""


class UnavailableError(PlatformError):
    """The platform, or a part of it, is away (UNAVAILABLE). `reached` is False when it never answered this client."""

    reached: bool = True


class DeadlineError(PlatformError):
    """The answer did not come in time (DEADLINE_EXCEEDED). What was asked for may still have happened."""


class CallCancelledError(PlatformError):
    """The other side gave the call up (CANCELLED)."""


class AbortedError(PlatformError):
    """It lost a race against another call (ABORTED)."""


class UnsupportedError(PlatformError):
    """This server does not know the call (UNIMPLEMENTED): it is older or newer than the client."""


class InternalError(PlatformError):
    """A fault of the platform (INTERNAL, UNKNOWN, DATA_LOSS)."""
