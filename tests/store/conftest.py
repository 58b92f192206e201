"""The store's parts in this process, on real servers."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import sqlalchemy as sa
from obstore.store import LocalStore
from sqlalchemy.ext.asyncio import AsyncConnection

from crucible.internal.v1 import job_pb2
from crucible_chassis.messaging import Messaging, connect_messaging
from crucible_store.announcing import Announcer
from crucible_store.database import Database, open_database
from crucible_store.domain.folding import Fate
from crucible_store.histories import Histories
from crucible_store.ledger import Ledger
from crucible_store.ledger.attempts import Delivery
from crucible_store.objects import open_objects
from crucible_store.outputs import Outputs
from crucible_store.watching import Watchtower
from crucible_testkit import NatsServer

from .samples import Run, an_executor, heartbeat


@dataclass
class Store:
    """What `crucible_store.app` wires, without its gRPC."""

    database: Database
    ledger: Ledger
    histories: Histories
    outputs: Outputs
    bucket: LocalStore
    """The objects themselves."""
    messaging: Messaging

    async def execute(self, statement: str, **parameters: object) -> list[sa.Row[tuple[object, ...]]]:
        """Looks into the database, or turns its clocks."""

        async def work(connection: AsyncConnection) -> list[sa.Row[tuple[object, ...]]]:
            answer = await connection.execute(sa.text(statement), parameters)
            return list(answer.all()) if answer.returns_rows else []

        return await self.database.read(work)

    async def lease(self, *, pool: str = "default", limit: int = 64) -> list[job_pb2.Job]:
        """Leases, with slots free."""
        await self.ledger.heartbeat(heartbeat(an_executor(), pool=pool), seconds=15)
        return [leased.job for leased in (await self.ledger.lease(pool=pool, limit=limit, seconds=15)).jobs]

    async def run(self, *, pool: str = "default") -> Run:
        """A run of the evaluation that is next."""
        (job,) = await self.lease(pool=pool, limit=1)
        return Run(job)

    async def apply(self, *deliveries: Delivery) -> list[Fate]:
        """Applies one batch and announces it, as the consumer does."""
        applied = await self.ledger.apply(deliveries)
        await self.ledger.announce(applied)
        fates = {place: fate for part in applied for place, fate in part.fates.items()}
        return [fates[place] for place in range(len(deliveries))]

    async def lapse(self, evaluation: str) -> None:
        """Lets the lease lapse, and a reaper judge it."""
        await self.execute("UPDATE evaluations SET lease_until = now() - interval '1 s' WHERE id = :id", id=evaluation)
        lapsed = [lease for lease in await self.ledger.list_lapsed(limit=1000) if lease.evaluation_id == evaluation]
        await self.ledger.judge_lapsed(lapsed)

    async def wake(self, evaluation: str) -> None:
        """Lets the wait of a queued one be over."""
        await self.execute("UPDATE evaluations SET not_before = now() WHERE id = :id", id=evaluation)


@asynccontextmanager
async def open_store(database_url: str, nats_url: str, objects: Path) -> AsyncGenerator[Store]:
    async with (
        open_database(database_url, connections=16, application="crucible-store-test") as database,
        connect_messaging(nats_url, name="store-test", echo=False) as messaging,
    ):
        bucket = open_objects(objects.as_uri())
        tower = Watchtower(messaging)
        yield Store(
            database,
            Ledger(database, Announcer(messaging, tower), bucket),
            Histories(database, tower),
            Outputs(database, bucket),
            LocalStore(prefix=objects),
            messaging,
        )


@pytest.fixture
async def store(store_database_url: str, nats_server: NatsServer, tmp_path: Path) -> AsyncGenerator[Store]:
    async with open_store(store_database_url, nats_server.url, tmp_path / "objects") as opened:
        yield opened
