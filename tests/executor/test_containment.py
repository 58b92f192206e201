"""What is known of each sandbox's confinement: a sound one holds every check, and every way to weaken one is told."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import socket
import subprocess
import sys
from collections.abc import AsyncGenerator, Callable, Generator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from crucible.v1.containment_pb2 import Containment
from crucible_chassis.metrics import render_metrics
from crucible_executor.sandbox.containment import posture
from crucible_executor.sandbox.containment.agent import REPORT_BYTES
from crucible_executor.sandbox.containment.alarm import ConfinementError
from crucible_executor.sandbox.containment.probes import probe_set
from crucible_executor.sandbox.containment.report import Check, Found
from crucible_executor.sandbox.containment.trials import Expected
from crucible_executor.sandbox.gvisor.driver import GvisorConfig, GvisorDriver, open_driver
from crucible_executor.sandbox.gvisor.runsc import Runsc
from crucible_executor.sandbox.image import ImageStore
from crucible_executor.sandbox.launcher.process import LauncherProcess
from crucible_executor.sandbox.leftovers import sweep
from crucible_executor.sandbox.port import Cause, SandboxFault
from crucible_testkit import NatsServer, free_port

from .conftest import LIMITS, RUNSC, Collected, program
from .service_harness import job, platform_on
from .test_service_executor import Executor

AFTER = {Check.PROCESSES_GONE, Check.CONTROL_GROUP_GONE, Check.FOLDER_GONE, Check.IMAGE_UNCHANGED}
NETWORK_OF_ITS_OWN = (
    "unshare", "--net", "sh", "-c",
    "ip link set lo up && ip link add egress type veth peer name nowhere && ip link set nowhere up"
    " && ip addr add 198.18.0.1/24 dev egress && ip link set egress up"
    ' && ip route add default dev egress && ip -6 route add default dev egress && exec "$@"',
    "sh",
)  # fmt: skip
"""A machine's network with a way out that leads nowhere: nothing that is tried leaves this machine."""

Weaken = Callable[[str], AbstractAsyncContextManager[GvisorDriver]]

TOLD: dict[str, set[Check]] = {
    "the host's network": {
        Check.TCP_EGRESS, Check.UDP_EGRESS, Check.DNS, Check.METADATA_SERVICE, Check.NETWORK_INTERFACES,
        Check.SENTRY_NAMESPACES, Check.SENTRY_OPTIONS,
    },
    "files opened by the sentry": {Check.SENTRY_USER, Check.SENTRY_CAPABILITIES, Check.SENTRY_OPTIONS},
    "sockets of the host": {Check.SENTRY_OPTIONS},
    "no filter of system calls": {
        Check.SYSTEM_CALL_FILTER, Check.KEY_RINGS, Check.NAMESPACES, Check.KERNEL_CODE, Check.SENTRY_OPTIONS
    },
    "no list of denied calls": {Check.SYSTEM_CALL_FILTER, Check.KEY_RINGS, Check.NAMESPACES, Check.KERNEL_CODE},
    "raw sockets": {Check.RAW_SOCKETS, Check.PACKET_SOCKETS, Check.CAPABILITIES, Check.SENTRY_OPTIONS},
    "capabilities": {Check.CAPABILITIES},
    "capabilities and no filter": {
        Check.CAPABILITIES, Check.MOUNTING, Check.MACHINE_CONTROL, Check.SETUID, Check.SYSTEM_CALL_FILTER
    },
    "root inside": {Check.USER, Check.SETUID, Check.KERNEL_FILES},
    "further groups": {Check.USER},
    "a writable root": {Check.READ_ONLY_ROOT, Check.MOUNTS},
    "another image": {Check.ROOT_IMAGE, Check.SENTRY_DESCRIPTORS},
    "a folder of the host": {Check.MOUNTS, Check.SANDBOX_PROCESSES},
    "the host's state": {Check.MOUNTS, Check.HOST_PATHS},
    "the host's name servers": {Check.MOUNTS, Check.DNS},
    "the host's devices": {Check.MOUNTS, Check.DEVICES},
    "one more file system": {Check.MOUNTS},
    "no size of files": {Check.DISK_LIMIT},
    "no limits of resources": {Check.RESOURCE_LIMITS},
    "the host's name": {Check.KERNEL_IDENTITY},
    "a descriptor of the host": {Check.DESCRIPTORS, Check.SENTRY_DESCRIPTORS},
    "no limits of the group": {Check.MEMORY_LIMIT, Check.PROCESS_LIMIT},
    "a sentry outside of the group": {Check.CONTROL_GROUP},
    "a stranger in the group": {Check.SANDBOX_PROCESSES},
    "a sentry like any process": {
        Check.SENTRY_USER, Check.SENTRY_CAPABILITIES, Check.SENTRY_SYSTEM_CALL_FILTER, Check.SENTRY_NO_NEW_PRIVILEGES,
        Check.SENTRY_NAMESPACES, Check.SENTRY_ROOT, Check.SENTRY_DESCRIPTORS, Check.SENTRY_OPTIONS, Check.ROOT_IMAGE,
        Check.CONTROL_GROUP,
    },
    "a privileged supervisor": {Check.SUPERVISOR},
}  # fmt: skip
"""By which checks each weakness must be told; others may tell it as well."""
if "allow-suid" in Runsc.probe(RUNSC).flags:  # an option of recent releases
    TOLD["privileges by executing"] = {Check.SENTRY_OPTIONS}

TOLD_AFTER: dict[str, set[Check]] = {
    "never removed": {Check.PROCESSES_GONE, Check.CONTROL_GROUP_GONE, Check.FOLDER_GONE},
    "its folder kept": {Check.FOLDER_GONE},
    "its image touched": {Check.IMAGE_UNCHANGED},
}


@pytest.fixture
def weaken(sandbox_config: GvisorConfig, tmp_path: Path, images: ImageStore) -> Generator[Weaken]:
    """Opens a driver on a launcher with a weakness; what its sandboxes leave is cleared away."""

    @asynccontextmanager
    async def opened(weakness: str) -> AsyncGenerator[GvisorDriver]:
        ground = sandbox_config
        if weakness == "its image touched":
            ground = replace(ground, images_dir=_copied(images, tmp_path / "images"))
        config = ground.for_launcher()
        near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        script = str(Path(__file__).parent / "weak_launcher.py")
        command = [sys.executable, script, weakness, str(tmp_path), str(far.fileno()), config.dump()]
        with far:
            network = NETWORK_OF_ITS_OWN if weakness == "the host's network" else ()
            process = subprocess.Popen([*network, *command], pass_fds=(far.fileno(),))  # noqa: ASYNC220 - it is waited for on a socket
        # What a weakened launcher leaves makes it end with an error.
        with contextlib.suppress(SandboxFault):
            async with open_driver(ground, launcher=LauncherProcess(process, near, config)) as driver:
                yield driver

    yield opened
    sweep(sandbox_config.state_root, sandbox_config.cgroup_parent)


def _copied(images: ImageStore, folder: Path) -> Path:
    """The images once more, to be touched."""
    folder.mkdir()
    index = images.index()
    for image in index.runtimes.values():
        shutil.copyfile(images.folder / image.file_name, folder / image.file_name)
    (folder / "index.json").write_text(index.model_dump_json())
    return folder


@pytest.mark.parametrize("runtime", ["python", "bash"])
async def test_a_sound_sandbox_holds_every_check(driver: GvisorDriver, runtime: str) -> None:
    sandbox = await driver.boot(runtime, disk_bytes=LIMITS.disk_bytes)
    source = {"python": "print(1)", "bash": "echo 1"}[runtime]
    sink = Collected()
    await sandbox.deliver(program(source, runtime), LIMITS, sink)
    verdict = await sandbox.observe()
    await sandbox.close()
    assert sink.stdout == b"1\n"
    known = verdict.containment
    assert known is not None
    assert sandbox.after is not None
    findings = [*known.inside.findings, *known.before.findings, *sandbox.after.findings]
    assert {finding.check: finding.detail for finding in findings if finding.found is not Found.HELD} == {}
    assert sorted(finding.check for finding in findings) == sorted(Check)
    assert driver.alarm.breach is None


@pytest.mark.parametrize("weakness", TOLD)
async def test_a_weakened_sandbox_is_told(weaken: Weaken, weakness: str) -> None:
    async with weaken(weakness) as driver:
        with pytest.raises(ConfinementError):
            await driver.boot("bash", disk_bytes=LIMITS.disk_bytes)
        breach = driver.alarm.breach
        assert breach is not None
        told = {finding.check for finding in breach.findings}
        assert told >= TOLD[weakness], str(breach)
        # And nothing gets another sandbox here.
        with pytest.raises(ConfinementError):
            await driver.boot("bash", disk_bytes=LIMITS.disk_bytes)
        assert await driver.until_unfit() == str(breach)


@pytest.mark.parametrize("weakness", TOLD_AFTER)
async def test_what_is_left_of_a_sandbox_is_told(weaken: Weaken, weakness: str) -> None:
    async with weaken(weakness) as driver:
        sandbox = await driver.boot("bash", disk_bytes=LIMITS.disk_bytes)
        await sandbox.deliver(program("echo 1", "bash"), LIMITS, Collected())
        await sandbox.observe()
        before = driver.alarm.breach
        assert before is None
        await sandbox.close()
        breach = driver.alarm.breach
        assert breach is not None
        assert {finding.check for finding in breach.findings} == TOLD_AFTER[weakness], str(breach)


async def test_where_there_is_no_agent_the_checks_from_inside_are_not_made(weaken: Weaken) -> None:
    """As on a machine that it is not made for: programs run, and their results say so."""
    async with weaken("no agent") as driver:
        sandbox = await driver.boot("python", disk_bytes=LIMITS.disk_bytes)
        await sandbox.deliver(program("print(1)"), LIMITS, Collected())
        known = (await sandbox.observe()).containment
        await sandbox.close()
    assert known is not None
    assert {finding.found for finding in known.inside.findings} == {Found.NOT_CHECKED}
    assert {finding.found for finding in known.before.findings} == {Found.HELD}


async def test_a_sandbox_that_cannot_be_looked_at_gets_no_program_and_stops_nothing(weaken: Weaken) -> None:
    async with weaken("no look") as driver:
        with pytest.raises(SandboxFault) as caught:
            await driver.boot("bash", disk_bytes=LIMITS.disk_bytes)
        assert caught.value.cause is Cause.SANDBOX
        assert "nobody can look" in caught.value.detail
        assert driver.alarm.breach is None


def test_a_kernel_that_refuses_nothing_breaks_every_check() -> None:
    look = probe_set().judge(bytes(REPORT_BYTES), Expected(1 << 20, 64, 256))
    assert [finding.check for finding in look.findings if finding.found is not Found.BROKEN] == []


def test_every_check_belongs_to_one_look() -> None:
    assert sorted([*probe_set().checks, *posture.BEFORE, *AFTER]) == sorted(Check)
    assert {check.value for check in Check} == set(Containment.Check.keys()) - {"CHECK_UNSPECIFIED"}
    weakened = {check for checks in (*TOLD.values(), *TOLD_AFTER.values()) for check in checks}
    assert weakened >= {*posture.BEFORE, *AFTER}


async def ready(executor: Executor) -> str:
    """What the executor answers at /readyz."""
    address = executor.lifetime.settings.admin_listen
    host, port = address.rsplit(":", 1)
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(b"GET /readyz HTTP/1.1\r\n\r\n")
    answer = (await reader.read()).decode()
    writer.close()
    return answer


async def test_a_broken_sandbox_stops_its_node(weaken: Weaken, fresh_nats: NatsServer, tmp_path: Path) -> None:
    async with weaken("its folder kept") as driver, platform_on(fresh_nats.url) as platform:
        executor = Executor(fresh_nats.url, tmp_path, driver, admin_port=free_port())
        async with executor.running():
            # A self-test's sandbox left something: the executor begins out of service, and takes no job.
            await platform.until(lambda: bool(platform.heartbeats) and platform.latest().executor.slots == 0)
            answer = await ready(executor)
            assert "503" in answer
            assert Check.FOLDER_GONE in answer
            waiting = job("print('never')")
            await platform.publish_job(waiting)
            await asyncio.sleep(0.5)
            assert platform.of(waiting) == []
            assert b"crucible_executor_unfit 1.0" in render_metrics()[0]


async def test_a_result_carries_what_is_known(driver: GvisorDriver, fresh_nats: NatsServer, tmp_path: Path) -> None:
    async with platform_on(fresh_nats.url) as platform:
        executor = Executor(fresh_nats.url, tmp_path, driver)
        async with executor.running():
            asked = job("print(1)")
            await platform.publish_job(asked)
            known = (await platform.finished(asked)).result.containment
            # What was left is told after the verdict, which does not wait for it.
            await platform.until(lambda: len(platform.removed) == 1)
            assert not known.HasField("after")
    assert [*known.inside.exceptions, *known.before.exceptions] == []
    names = {Containment.Check.Name(check) for check in (*known.inside.held, *known.before.held)}
    assert names == {check.value for check in {*Check} - AFTER}
    (removed,) = platform.removed
    assert (removed.evaluation_id, removed.token) == (asked.evaluation_id, asked.token)
    assert {Containment.Check.Name(check) for check in removed.removed.look.held} == {check.value for check in AFTER}
    assert known.inside.time.ToDatetime() <= known.before.time.ToDatetime()
