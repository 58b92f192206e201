"""A scheduler before a real store, on servers of the test's own."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from pathlib import Path

import pytest

from crucible_testkit import NatsServer

from .scheduler_harness import Executor, Scheduler, Store, executor_on


@pytest.fixture
async def store(store_database_url: str, fresh_nats: NatsServer, tmp_path: Path) -> AsyncGenerator[Store]:
    """A running store."""
    made = Store(store_database_url, fresh_nats.url, tmp_path)
    await made.load_runtimes()
    async with made.process:
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
