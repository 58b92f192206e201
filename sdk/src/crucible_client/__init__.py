"""The typed async client of Crucible. Everything public is here; modules load when a name of theirs is first used."""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from crucible_client.client import Client
    from crucible_client.errors import (
        AbortedError,
        CallCancelledError,
        ConfigurationError,
        ConflictError,
        CrucibleError,
        DeadlineError,
        FieldViolation,
        InternalError,
        InvalidRequestError,
        NotFoundError,
        OutOfRangeError,
        PermissionDeniedError,
        PlatformError,
        PreconditionError,
        QuotaError,
        UnauthenticatedError,
        UnavailableError,
        UnsupportedError,
        UserError,
    )
    from crucible_client.program import Limits, Priority, Program
    from crucible_client.views import (
        Cause,
        Evaluation,
        Event,
        Outcome,
        Output,
        Result,
        Runtime,
        Status,
        StatusReason,
        Stream,
    )

__all__ = [
    "AbortedError",
    "CallCancelledError",
    "Cause",
    "Client",
    "ConfigurationError",
    "ConflictError",
    "CrucibleError",
    "DeadlineError",
    "Evaluation",
    "Event",
    "FieldViolation",
    "InternalError",
    "InvalidRequestError",
    "Limits",
    "NotFoundError",
    "OutOfRangeError",
    "Outcome",
    "Output",
    "PermissionDeniedError",
    "PlatformError",
    "PreconditionError",
    "Priority",
    "Program",
    "QuotaError",
    "Result",
    "Runtime",
    "Status",
    "StatusReason",
    "Stream",
    "UnauthenticatedError",
    "UnavailableError",
    "UnsupportedError",
    "UserError",
]

_MODULES = ("errors", "program", "views", "client")


def __getattr__(name: str) -> object:
    # `crucible --help` passes through here and must not pay for gRPC.
    if name in __all__:
        for module in _MODULES:
            found = getattr(import_module(f"{__name__}.{module}"), name, None)
            if found is not None:
                return found
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
