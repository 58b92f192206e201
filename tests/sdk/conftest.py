"""The recorded platform, and a client of it."""

import sys
from collections.abc import AsyncGenerator
from pathlib import Path

import pytest
from pytest_asyncio import fixture, is_async_test

from crucible_client import Client

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))  # the folder's own modules

from command import Command  # noqa: E402  found by the line above
from recorded_platform import RecordedPlatform  # noqa: E402  same


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """One event loop for all: grpc.aio polls for the process, and complains of late events of a closed loop."""
    for item in items:
        if item.path.is_relative_to(HERE) and is_async_test(item):
            item.add_marker(pytest.mark.asyncio(loop_scope="session"), append=False)


@fixture(loop_scope="session")
async def platform() -> AsyncGenerator[RecordedPlatform]:
    async with RecordedPlatform() as platform:
        yield platform


@fixture(loop_scope="session")
async def client(platform: RecordedPlatform) -> AsyncGenerator[Client]:
    async with Client(scheduler=platform.address, store=platform.address, patience=20) as client:
        yield client


@pytest.fixture
def crucible(platform: RecordedPlatform, tmp_path: Path) -> Command:
    """The command, in an empty folder."""
    return Command(platform.address, tmp_path)
