"""Programs that write as fast as they can while nobody takes it: they are neither slowed nor misjudged."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import obstore
import obstore.store
import pytest

from crucible.v1.execution_pb2 import ExecutionResult
from crucible_executor.sandbox.gvisor.driver import GvisorDriver
from crucible_testkit import NatsServer

from .conftest import MIB, SLOWNESS
from .service_harness import job, platform_on
from .test_service_executor import Executor, kinds

EACH = 12 * MIB
FLOOD = f"""
import os, threading, time
print("up", flush=True)
time.sleep(1)
def flood(descriptor, letter):
    block = letter * 65536
    for _ in range({EACH} // 65536):
        rest = block
        while rest:
            rest = rest[os.write(descriptor, rest):]
threads = [threading.Thread(target=flood, args=each) for each in ((1, b"o"), (2, b"e"))]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
os._exit(5)
"""


@pytest.fixture(scope="module", autouse=True)
def object_store_runtime() -> None:
    """obstore opens descriptors of its own once a process: not between the counts of a test."""
    obstore.put(obstore.store.MemoryStore(), "warm", b"")


@contextmanager
def stalled(server: NatsServer) -> Generator[None]:
    """The broker takes nothing and says nothing, and its connections stay open."""
    server.pause()
    try:
        yield
    finally:
        server.resume()


async def test_a_flood_on_both_streams_while_the_watcher_stalls(
    driver: GvisorDriver, fresh_nats: NatsServer, tmp_path: Path
) -> None:
    stall = 5 * SLOWNESS
    async with (
        platform_on(fresh_nats.url) as platform,
        Executor(fresh_nats.url, tmp_path, driver).running() as executor,
    ):
        await platform.until(lambda: len(platform.heartbeats) > 0)
        made = job(FLOOD, output_bytes=16 * MIB, wall_seconds=int(20 * SLOWNESS))
        await platform.publish_job(made)
        await platform.until(lambda: "output" in kinds(platform, made))
        with stalled(fresh_nats):
            await asyncio.sleep(stall)
            assert not driver.sandboxes  # its program has ended, and its sandbox is gone, while nobody listened
        finished = await platform.finished(made)
        result = finished.result
        assert (result.outcome, result.exit_code) == (ExecutionResult.NONZERO_EXIT, 5)
        assert result.usage.wall_time.ToTimedelta().total_seconds() < stall
        store = obstore.store.LocalStore(executor.folder / "objects")
        for output, name, whole in (
            (result.stdout, finished.stdout_object, b"up\n" + b"o" * EACH),
            (result.stderr, finished.stderr_object, b"e" * EACH),
        ):
            assert (output.size_bytes, output.truncated) == (len(whole), False)
            assert output.sha256 == hashlib.sha256(whole).hexdigest()
            assert bytes(obstore.get(store, name).bytes()) == whole
            assert output.omitted_bytes == len(whole) - 2 * 32768
            assert output.text.endswith(chr(whole[-1]) * 32768)
