"""Tells of what was committed, on core NATS: at most once, so nobody relies on it."""

from __future__ import annotations

from collections.abc import Iterable

import nats.errors

from crucible_chassis.logs import get_logger
from crucible_chassis.messaging import Messaging
from crucible_contracts import subjects
from crucible_store.convert import StoredEvent

log = get_logger(__name__)


class Announcer:
    """Publishes events to their watchers, and wakes the dispatch of pools."""

    def __init__(self, messaging: Messaging) -> None:
        self._messaging = messaging

    async def announce(self, events: Iterable[StoredEvent], pools: Iterable[str]) -> None:
        """Publishes, if there is anybody to publish to. Never fails: what is lost is found in the database."""
        if not self._messaging.is_connected:
            return
        try:
            # Without trace headers: an event is read by watchers of other traces.
            for event in events:
                await self._messaging.nc.publish(event.subject, event.data)
            for pool in pools:
                await self._messaging.nc.publish(subjects.queue(pool))
        except (nats.errors.Error, OSError) as exc:
            log.warning("events.not_announced", error=type(exc).__name__)
