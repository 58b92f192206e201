"""Tells of what was committed, to others on core NATS: at most once, so nobody relies on it."""

from __future__ import annotations

import nats.errors

from crucible_chassis.logs import get_logger
from crucible_chassis.messaging import Messaging
from crucible_contracts import subjects
from crucible_store.ledger.hot import Changes
from crucible_store.watching import Watchtower

log = get_logger(__name__)


class Announcer:
    """Tells watchers of events, and wakes the dispatch of pools."""

    def __init__(self, messaging: Messaging, tower: Watchtower) -> None:
        """`messaging` echoes nothing: this process's own watchers are told directly."""
        self._messaging = messaging
        self._tower = tower

    def here(self, changes: Changes) -> None:
        """Tells those who watch from here."""
        for ending in changes.endings():
            self._tower.settle(ending)
        for event in changes.events:
            self._tower.hear(event.evaluation, event.data)

    async def elsewhere(self, changes: Changes) -> None:
        """Publishes for all others, if that can be done now.

        Never fails: what is lost is found in the database.
        """
        if not self._messaging.is_connected:
            return
        try:
            # Without trace headers: an event is read by watchers of other traces.
            for event in changes.events:
                await self._messaging.nc.publish(event.subject, event.data)
            for pool in changes.pools:
                await self._messaging.nc.publish(subjects.queue(pool))
        except (nats.errors.Error, OSError) as exc:
            log.warning("events.not_announced", error=type(exc).__name__)
