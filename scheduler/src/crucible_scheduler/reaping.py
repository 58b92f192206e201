"""The reaper's loop: a tick a second, each with a probe through the whole path that heartbeats take."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import Protocol

import nats.errors
from google.protobuf.message import DecodeError

from crucible.internal.v1 import heartbeat_pb2, ledger_service_pb2
from crucible_chassis.errors import ServiceError
from crucible_chassis.logs import get_logger
from crucible_chassis.messaging import Messaging
from crucible_contracts import subjects
from crucible_scheduler.domain.reaper import TICK_SECONDS, LeaseKey, Reaper

BATCH = 1000
"""Lapsed leases looked at in one tick."""

_PROBE = heartbeat_pb2.Heartbeat().SerializeToString()

log = get_logger(__name__)


class LapsedLedger(Protocol):
    """Where lapsed leases are found and judged."""

    async def lapsed(self, limit: int) -> Sequence[ledger_service_pb2.LapsedLease]:
        """Raises ServiceError."""
        ...

    async def judge(
        self, leases: Sequence[ledger_service_pb2.LapsedLease]
    ) -> ledger_service_pb2.JudgeLapsedLeasesResponse:
        """Raises ServiceError."""
        ...


class ReaperLoop:
    """Ticks for ever; what it may judge is decided in the domain."""

    def __init__(self, ledger: LapsedLedger, messaging: Messaging, reaper: Reaper) -> None:
        self._ledger = ledger
        self._messaging = messaging
        self._reaper = reaper
        self.path_works = False
        """Whether the last probe came back."""

    async def run(self) -> None:
        """Ticks for ever."""
        while True:
            started = time.monotonic()
            self.path_works = await self._probe()
            if self._reaper.tick(time.monotonic(), probe_succeeded=self.path_works):
                await self._reap()
            await asyncio.sleep(max(0.0, started + TICK_SECONDS - time.monotonic()))

    async def _probe(self) -> bool:
        try:
            answer = await self._messaging.request(subjects.HEARTBEAT, _PROBE, timeout=self._reaper.probe_seconds)
            heartbeat_pb2.HeartbeatReply.FromString(answer.data)
        except (nats.errors.Error, DecodeError):
            return False
        return True

    async def _reap(self) -> None:
        try:
            lapsed = await self._ledger.lapsed(BATCH)
            keys = [LeaseKey(lease.evaluation_id, lease.attempt, lease.token) for lease in lapsed]
            due = self._reaper.due(time.monotonic(), keys)
            if not due:
                return
            judged = await self._ledger.judge(
                [
                    ledger_service_pb2.LapsedLease(
                        evaluation_id=key.evaluation_id, attempt=key.attempt, token=key.token
                    )
                    for key in due
                ]
            )
        except ServiceError as exc:
            log.warning("reaper.hindered", reason=exc.reason)
            return
        log.info("reaper.judged", seen=len(due), requeued=judged.requeued, failed=judged.failed)
