"""The gateway as it is run, before real gRPC servers that answer as prepared and record what they were asked."""

import asyncio
import sys
from collections.abc import AsyncGenerator
from pathlib import Path

import httpx
import pytest
import pytest_asyncio
from pytest_asyncio import is_async_test

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

from gateway_harness import GatewayUnderTest, Recorder, running_gateway  # noqa: E402  the folder is on the path from here


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """One event loop for all: the servers live in it, and a late event of a closed one is an error in grpc's log."""
    for item in items:
        if item.path.is_relative_to(HERE) and is_async_test(item):
            item.add_marker(pytest.mark.asyncio(loop_scope="session"), append=False)


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def gateway() -> AsyncGenerator[GatewayUnderTest]:
    """One gateway and its upstreams for all tests that do not stop them."""
    async with running_gateway() as running:
        yield running


@pytest_asyncio.fixture(loop_scope="session")
async def upstream(gateway: GatewayUnderTest) -> AsyncGenerator[Recorder]:
    """What the upstreams answer in this test. Fails when something prepared was not asked for, or asked unprepared."""
    gateway.recorder.clear()
    yield gateway.recorder
    await asyncio.sleep(0)
    gateway.recorder.check()


@pytest_asyncio.fixture(loop_scope="session")
async def http(gateway: GatewayUnderTest) -> AsyncGenerator[httpx.AsyncClient]:
    """A client of the gateway."""
    async with httpx.AsyncClient(base_url=gateway.url, timeout=30) as client:
        yield client
