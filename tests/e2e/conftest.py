"""One whole stack for the folder's tests: started as users start it, on free ports and with its own data."""

from collections.abc import Iterator

import pytest

from crucible_testkit import OtlpReceiver
from crucible_testkit.stack import Stack


@pytest.fixture(scope="session")
def collector() -> Iterator[OtlpReceiver]:
    """Where every service of the stack sends its spans."""
    with OtlpReceiver() as receiver:
        yield receiver


@pytest.fixture(scope="session")
def stack(collector: OtlpReceiver) -> Iterator[Stack]:
    """The running stack."""
    with Stack(environment=collector.environment) as running:
        yield running


@pytest.fixture(autouse=True)
def nothing_left(stack: Stack) -> Iterator[None]:
    """After each test the machine is as it was: no sandbox, cgroup, mount or bundle of a run is left."""
    yield
    stack.require_no_leftovers()
