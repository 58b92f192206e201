"""Figures of the protocol that more than one service counts on."""

from collections.abc import Iterable

LEASE_SECONDS = 15.0
"""L: how long a lease holds without a heartbeat."""

HEARTBEAT_SECONDS = LEASE_SECONDS / 5
"""Between two heartbeats of an executor."""

MAX_ATTEMPTS = 3
"""Attempts that may be begun and lost before an evaluation is FAILED."""

MAX_DISPATCHES = 20
"""Times an evaluation of one generation is handed out before it is FAILED, begun or not."""

INLINE_PROGRAM_BYTES = 512 * 1024
"""Largest serialized `Program` that travels inside its job; a larger one goes by its hash."""

OUTPUT_MESSAGE_BYTES = 128 * 1024
"""Most output in one message."""

LIVE_OUTPUT_BYTES = 1024 * 1024
"""Output of one stream that is sent live; the rest is only in the object store."""

OUTPUT_PREVIEW_BYTES = 32 * 1024
"""Of each end of a stream in `Output.text`."""

MESSAGE_BYTES = 64 * 1024 * 1024
"""Largest gRPC message between services."""

DISK_PAGE_BYTES = 4096
"""Each file takes a multiple of this of `Limits.disk_bytes`."""


def disk_taken(file_bytes: Iterable[int]) -> int:
    """What files of these sizes take of `Limits.disk_bytes`."""
    return sum(-(-size // DISK_PAGE_BYTES) * DISK_PAGE_BYTES for size in file_bytes)
