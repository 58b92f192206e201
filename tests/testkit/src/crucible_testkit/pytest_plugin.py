"""Fixtures for every test folder; named in the root conftest.

`postgres_server`, `nats_server`: one real server a session. `database_url`: a fresh empty database;
`store_database_url`: a fresh database with the store's schema; `otlp_receiver`: a fresh trace receiver.
A test that kills a server makes one of its own: `with NatsServer() as nats:`.
"""

from collections.abc import Iterator

import pytest

from crucible_testkit.nats import NatsServer
from crucible_testkit.otlp import OtlpReceiver
from crucible_testkit.postgres import PostgresServer


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[PostgresServer]:
    """The session's PostgreSQL."""
    with PostgresServer() as server:
        yield server


@pytest.fixture(scope="session")
def nats_server() -> Iterator[NatsServer]:
    """The session's NATS with JetStream; tests share it, so name streams and subjects per test."""
    with NatsServer() as server:
        yield server


@pytest.fixture
def fresh_nats() -> Iterator[NatsServer]:
    """A NATS server of the test's own (50 ms): no stream of another test, free to be killed."""
    with NatsServer() as server:
        yield server


@pytest.fixture
def database_url(postgres_server: PostgresServer) -> Iterator[str]:
    """A fresh, empty database."""
    with postgres_server.fresh_database() as url:
        yield url


@pytest.fixture
def store_database_url(postgres_server: PostgresServer) -> Iterator[str]:
    """A fresh database with the store's migrated schema."""
    with postgres_server.store_database() as url:
        yield url


@pytest.fixture
def otlp_receiver() -> Iterator[OtlpReceiver]:
    """A fresh OTLP/HTTP trace receiver."""
    with OtlpReceiver() as receiver:
        yield receiver
