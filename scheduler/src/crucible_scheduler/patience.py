"""Start-up against parts of the platform that are not there yet: try again, and say so now and then."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

import nats.errors

from crucible_chassis.errors import ServiceError
from crucible_chassis.logs import get_logger

RETRY_SECONDS = 0.5
COMPLAINT_SECONDS = 10.0
"""One log line so often."""

log = get_logger(__name__)


async def persist(what: str, action: Callable[[], Awaitable[None]]) -> None:
    """Runs `action` until it succeeds, as long as that takes; its ServiceErrors and NATS errors are logged."""
    complained = -COMPLAINT_SECONDS
    while True:
        try:
            await action()
        except (ServiceError, nats.errors.Error) as exc:
            if time.monotonic() - complained >= COMPLAINT_SECONDS:
                complained = time.monotonic()
                log.warning("start.waiting", part=what, error=str(exc))
            await asyncio.sleep(RETRY_SECONDS)
        else:
            return
