"""Makes the folder's own modules importable, and gives tests the log lines of this process."""

import json
import logging
import sys
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest
import structlog
from pytest_asyncio import is_async_test

from crucible_chassis.logs import configure_logging

# The echo service is used by tests and by the small process they start.
sys.path.insert(0, str(Path(__file__).parent))


HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """One event loop for all: a late event of a closed one is an error in the log of grpc.aio's poller."""
    for item in items:
        if item.path.is_relative_to(HERE) and is_async_test(item):
            item.add_marker(pytest.mark.asyncio(loop_scope="session"), append=False)


@pytest.fixture
def structured_logs() -> Generator[list[dict[str, Any]]]:
    """The lines as they are written, parsed; filled while the test runs."""
    root = logging.getLogger()
    before, level = root.handlers[:], root.level
    configure_logging("test", "info")
    [handler] = root.handlers
    lines: list[dict[str, Any]] = []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(json.loads(handler.format(record)))

    root.handlers[:] = [*before, Keep()]
    yield lines
    root.handlers[:] = before
    root.setLevel(level)
    logging.captureWarnings(capture=False)
    structlog.reset_defaults()
