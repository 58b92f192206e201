"""A scheduler before a real store, on servers of the test's own."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterator
from pathlib import Path

import pytest

from crucible_testkit import NatsServer, PostgresServer

from .scheduler_harness import Executor, Scheduler, Store, executor_on, load_runtimes


@pytest.fixture
def loaded_database_url(postgres_server: PostgresServer) -> Iterator[str]:
    """A fresh database with the store's schema and the repository's runtimes."""
    template = postgres_server.ensure_template("store_with_runtimes", load_runtimes)
    with postgres_server.fresh_database(template=template) as url:
        yield url


@pytest.fixture
async def store(loaded_database_url: str, fresh_nats: NatsServer, tmp_path: Path) -> AsyncGenerator[Store]:
    """A serving store."""
    async with Store(loaded_database_url, fresh_nats.url, tmp_path).inside() as made:
        yield made


@pytest.fixture
async def scheduler(store: Store, fresh_nats: NatsServer) -> AsyncGenerator[Scheduler]:
    """A serving scheduler."""
    async with Scheduler(store.address, fresh_nats.url).running() as made:
        await made.until_serving()
        yield made


@pytest.fixture
async def executor(fresh_nats: NatsServer) -> AsyncGenerator[Executor]:
    """What a test does in an executor's place."""
    async with executor_on(fresh_nats.url) as made:
        yield made
