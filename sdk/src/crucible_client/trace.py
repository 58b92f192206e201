"""W3C trace context: enough of it to begin a trace, and to know its id before there is an answer."""

from __future__ import annotations

import secrets


def new_traceparent() -> str:
    """A `traceparent` header of a new, sampled trace."""
    return f"00-{_nonzero(16)}-{_nonzero(8)}-01"


def trace_id_of(traceparent: str) -> str:
    """The trace id in a `traceparent`: 32 hex digits; empty when there is none."""
    parts = traceparent.split("-")
    return parts[1] if len(parts) >= 4 and len(parts[1]) == 32 else ""


def _nonzero(size: int) -> str:
    while not any(value := secrets.token_bytes(size)):  # all zeros means "no trace"
        pass
    return value.hex()
