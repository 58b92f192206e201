"""The stream JOBS and the consumers of the pools: made here, only bound to by executors."""

# pyright: reportUnknownMemberType=false
# nats-py leaves keyword parameters of these methods without a type.

from __future__ import annotations

import nats.errors
import nats.js
from nats.js.api import AckPolicy, ConsumerConfig, RetentionPolicy, StorageType, StreamConfig

from crucible_chassis.logs import get_logger
from crucible_contracts import subjects
from crucible_contracts.limits import LEASE_SECONDS

log = get_logger(__name__)

ACK_WAIT_SECONDS = 5.0
"""A job that an executor took and did not acknowledge goes to another after this."""


class JobsStream:
    """The stream JOBS, with the consumer of one pool."""

    def __init__(self, js: nats.js.JetStreamContext, pool: str) -> None:
        self._js = js
        self._pool = pool

    async def ensure(self) -> None:
        """Makes both, or leaves them as they are.

        Raises `nats.errors.Error` when NATS does not answer, or when they exist with another shape.
        """
        # The duplicate window is left unset: the server takes its default or max_age, whichever is smaller.
        await self._js.add_stream(
            StreamConfig(
                name=subjects.JOBS_STREAM,
                subjects=[subjects.JOBS_SUBJECTS],
                retention=RetentionPolicy.WORK_QUEUE,
                storage=StorageType.FILE,
                max_age=LEASE_SECONDS,  # an older job is worthless: its lease has lapsed
            )
        )
        await self._js.add_consumer(
            subjects.JOBS_STREAM,
            ConsumerConfig(
                durable_name=subjects.jobs_consumer(self._pool),
                filter_subject=subjects.jobs(self._pool),
                ack_policy=AckPolicy.EXPLICIT,
                ack_wait=ACK_WAIT_SECONDS,
                max_deliver=-1,
                max_ack_pending=-1,
            ),
        )

    async def mend(self) -> None:
        """Makes what was lost with a broker's disk, if it answers."""
        try:
            await self.ensure()
        except nats.errors.Error as exc:
            log.warning("stream.not_mended", stream=subjects.JOBS_STREAM, error=repr(exc))
