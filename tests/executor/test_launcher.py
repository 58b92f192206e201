"""The privileged half: what it refuses, what it is, and that nothing outlives what it should, whoever dies."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import weakref
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from secrets import token_hex
from typing import Any

import pytest

from crucible_executor.sandbox import cgroup, leftovers
from crucible_executor.sandbox.cgroup_v1 import find_hierarchies
from crucible_executor.sandbox.cgroup_v2 import find_unified
from crucible_executor.sandbox.gvisor import spec
from crucible_executor.sandbox.gvisor.driver import GvisorConfig, GvisorDriver, open_driver
from crucible_executor.sandbox.gvisor.link import LauncherLostError
from crucible_executor.sandbox.image import ImageStore
from crucible_executor.sandbox.launcher import wire
from crucible_executor.sandbox.launcher.loop import Loop
from crucible_executor.sandbox.launcher.privileges import Account, status
from crucible_executor.sandbox.launcher.process import start_launcher
from crucible_executor.sandbox.port import Outcome, SandboxFault
from crucible_executor.sandbox.run import run_program
from crucible_testkit import children_of

from .conftest import ACCOUNT, LIMITS, MIB, SLOWNESS, Collected, groups, open_descriptors, program
from .conftest import leftovers as left_on

SLEEPER = program("print('up', flush=True)\nimport time\ntime.sleep(1000)")
SERVICE = Path(__file__).with_name("launcher_service.py")


async def until(condition: Callable[[], object], seconds: float = 30) -> None:
    """Wait for something that happens soon."""
    async with asyncio.timeout(seconds * SLOWNESS):
        while not condition():  # noqa: ASYNC110 - what is waited for is the machine's, it sets no event
            await asyncio.sleep(0.02)


def members(config: GvisorConfig) -> set[int]:
    """Processes in the control groups of sandboxes."""
    return {pid for group in groups(config) for pid in cgroup.read_pids(group)}


async def running(driver: GvisorDriver) -> Any:  # noqa: ANN401 - a sandbox
    sink = Collected()
    sandbox = await driver.boot("python", disk_bytes=LIMITS.disk_bytes)
    await sandbox.deliver(SLEEPER, LIMITS, sink)
    await until(lambda: sink.stdout == b"up\n")
    return sandbox


# What it refuses


class Line:
    """The service's end of the line in the hands of somebody who sends what he likes."""

    def __init__(self, config: GvisorConfig) -> None:
        self.process = start_launcher(config.for_launcher())
        self.socket = self.process.socket
        self.socket.settimeout(60 * SLOWNESS)
        self._number = 0

    def hear(self) -> dict[str, Any]:
        """The next packet but those about ends; empty when the launcher hung up."""
        while True:
            data, descriptors, _, _ = socket.recv_fds(self.socket, wire.ANSWER_BYTES, len(wire.DESCRIPTORS))
            for descriptor in descriptors:
                os.close(descriptor)
            packet = json.loads(data or b"{}")
            if packet.get("event") != "ended":
                return packet

    def ask(self, request: str, identity: str, **fields: object) -> dict[str, Any]:
        """A request that is well formed, and its answer."""
        self._number += 1
        self.socket.send(wire.pack({"op": request, "id": identity, "n": self._number, **fields}))
        answer = self.hear()
        assert answer.pop("n") == self._number
        return answer

    async def send_until_nobody_listens(self, packet: bytes) -> None:
        """Send it again and again, and take no answer."""
        with contextlib.suppress(BlockingIOError):
            for count in range(1_000_000):
                self.socket.send(packet)
                if count % 100 == 0:
                    await asyncio.sleep(0.01)
            pytest.fail("it listens for ever")

    def boot(self, identity: str, **other: object) -> dict[str, Any]:
        return self.ask(
            "boot", identity, **({"runtime": "python", "disk_bytes": LIMITS.disk_bytes, "ahead": False} | other)
        )

    def bound(self, identity: str, **other: object) -> dict[str, Any]:
        return self.ask("bound", identity, **({"memory_bytes": 64 * MIB, "processes": 64} | other))

    def claim(self, identity: str, wall_time: float = 5.0) -> None:
        self.socket.send(wire.pack({"op": "claim", "id": identity, "wall_time": wall_time}))


@contextmanager
def line_to(config: GvisorConfig) -> Generator[Line]:
    line = Line(config)
    try:
        assert line.hear()["event"] == "opened"
        yield line
    finally:
        line.socket.close()
        assert line.process.process.wait(60 * SLOWNESS) == 0


GOOD = {"op": "boot", "id": "0" * 32, "n": 1, "runtime": "python", "disk_bytes": 1 << 20, "ahead": False}


@pytest.mark.parametrize(
    "packet",
    [
        b"\xff",
        b"[" * 4000,
        b"[1]",
        wire.pack(GOOD | {"op": "exec"}),
        wire.pack(GOOD | {"id": "../../../../etc/crucible"}),
        wire.pack(GOOD | {"id": "0" * 32 + "\n"}),
        wire.pack(GOOD | {"n": 0}),
        wire.pack(GOOD | {"ahead": 1}),
        wire.pack(GOOD | {"spec": "{}"}),
        wire.pack({"op": "kill", "id": "0" * 32, "n": 1}),
        wire.pack(GOOD | {"runtime": "x" * wire.REQUEST_BYTES}),
    ],
    ids=["bytes", "deep", "list", "op", "path", "newline", "unnumbered", "type", "field", "numbered", "oversized"],
)
def test_what_is_no_request_ends_the_line(sandbox_config: GvisorConfig, packet: bytes) -> None:
    with line_to(sandbox_config) as line:
        line.socket.send(packet)
        assert line.hear() == {}


def test_what_a_runtime_does_not_allow_is_refused(sandbox_config: GvisorConfig, images: ImageStore) -> None:
    ours, other, none = (token_hex(16) for _ in range(3))
    most = images.index().runtimes["python"].definition.limits.maximum.as_limits()
    with line_to(replace(sandbox_config, most_sandboxes=2)) as line:
        for runtime in ("cobol", "../python", ""):
            assert line.boot(ours, runtime=runtime)["fault"] == "IMAGE"
            assert line.ask("close", ours)["after"] is None
        for disk_bytes in (0, -1, most.disk_bytes + 1):
            assert "disk_bytes" in line.boot(ours, disk_bytes=disk_bytes)["detail"]
            line.ask("close", ours)
        assert "no such sandbox" in line.bound(none)["detail"]
        assert line.boot(ours)["digest"] == images.find("python")[0].digest
        assert "already" in line.boot(ours)["detail"]
        assert line.boot(other)["digest"]
        assert "no more" in line.boot(none)["detail"]
        written = [path.read_text() for path in sandbox_config.state_root.glob("*/*/bundle/config.json")]
        assert len(written) == 2
        for refused in (
            {"memory_bytes": most.memory_bytes + 1},
            {"memory_bytes": 0},
            {"processes": most.processes + 1},
        ):
            assert next(iter(refused)) in line.bound(ours, **refused)["detail"]
        assert line.bound(ours) == {}
        line.claim(none)
        line.claim(ours)
        assert "already" in line.bound(ours)["detail"]
        assert line.ask("end", ours) == {}
        assert "fault" in line.ask("inspect", ours)
        assert "already" in line.boot(ours)["detail"]
        assert line.ask("close", ours)["after"] is None
        assert line.ask("close", ours)["after"] is None
    # Nothing but the runtime and the size of the disk is in a specification.
    assert json.loads(written[0]) == json.loads(written[1])
    assert not any(identity in text for identity in (ours, other) for text in written)
    definition = images.index().runtimes["python"].definition
    assert json.loads(written[0])["process"]["args"] == spec.starter_command(definition)


@pytest.mark.parametrize(
    "wall_times",
    [(float("nan"),), (float("inf"),), (0.0,), (3601.0,), (5.0, 5.0)],
    ids=["no number", "infinite", "none", "too long", "twice"],
)
async def test_a_deadline_that_a_runtime_does_not_allow_ends_the_sandbox(
    sandbox_config: GvisorConfig, wall_times: Sequence[float]
) -> None:
    """Nobody waits for an answer to what is told, and no sandbox goes on without a deadline of its own."""
    with line_to(sandbox_config) as line:
        identity = token_hex(16)
        assert line.boot(identity)["digest"]
        await until(lambda: members(sandbox_config))
        for wall_time in wall_times:
            line.claim(identity, wall_time)
        await until(lambda: not members(sandbox_config))
        assert line.ask("close", identity)["after"] is None


@contextmanager
def mounted(folder: Path) -> Generator[None]:
    """Something is mounted there: nobody can remove it."""
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "none", str(folder)], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", str(folder)], check=True)


async def test_what_could_not_be_removed_is_removed_once_it_can_be(sandbox_config: GvisorConfig) -> None:
    with line_to(replace(sandbox_config, gone_timeout=5.0 * SLOWNESS)) as line:
        identity = token_hex(16)
        assert line.boot(identity)["digest"]
        (folder,) = sandbox_config.state_root.glob(f"*/{identity}")
        with mounted(folder / "busy"):
            answer = line.ask("close", identity)
            assert (answer["fault"], "busy" in answer["detail"]) == ("INFRASTRUCTURE", True)
            assert line.ask("inspect", identity)["fault"]  # it is still there, and does not run
        await until(lambda: not folder.exists())
        assert line.ask("close", identity)["after"] is None


def test_images_that_others_could_write_are_no_roots(
    sandbox_config: GvisorConfig, images: ImageStore, tmp_path: Path
) -> None:
    index = tmp_path / "index.json"
    index.write_bytes((images.folder / "index.json").read_bytes())
    tmp_path.chmod(0o755)
    with line_to(replace(sandbox_config, images_dir=tmp_path)) as line:
        assert "cannot be read" in line.boot(token_hex(16))["detail"]  # the index is right, and the image missing
        index.chmod(0o664)
        assert f"{index} must be a file" in line.boot(token_hex(16))["detail"]
        index.chmod(0o644)
        os.chown(index, Account.named(ACCOUNT).uid, 0)
        assert f"{index} must be a file" in line.boot(token_hex(16))["detail"]
        tmp_path.chmod(0o777)
        assert f"{tmp_path} must be a folder" in line.boot(token_hex(16))["detail"]


def test_a_deadline_that_was_cancelled_holds_nothing() -> None:
    loop, fired = Loop(), list[int]()
    held = [Held() for _ in range(1000)]
    left = [weakref.ref(each) for each in held]
    while held:
        loop.later(3600, held.pop().call).cancel()
    assert not any(reference() for reference in left)
    for number in (2, 1):
        loop.later(number / 100, lambda number=number: fired.append(number))
    loop.later(0.001, lambda: fired.append(0)).cancel()
    loop.later(0.05, loop.stop)
    loop.run()
    assert fired == [1, 2]


class Held:
    """What a timer holds."""

    def call(self) -> None:
        """Would be called."""


async def test_a_service_that_asks_and_never_listens_moves_no_deadline(sandbox_config: GvisorConfig) -> None:
    with line_to(replace(sandbox_config, unclaimed_age=4 * SLOWNESS)) as line:
        identity = token_hex(16)
        assert line.boot(identity)["digest"]
        await until(lambda: len(members(sandbox_config)) >= 1)
        line.socket.setblocking(False)
        question = wire.pack({"op": "bound", "id": "0" * 32, "n": 9, "memory_bytes": 1, "processes": 1})
        await line.send_until_nobody_listens(question)
        resident = int(status(line.process.process.pid)["VmRSS"].split()[0])
        assert resident < 100_000  # kB: answers do not pile up
        await until(lambda: not members(sandbox_config))
        line.socket.settimeout(60 * SLOWNESS)


# Who dies


def start_service(config: GvisorConfig, *, wall_time: float, heir: bool = False) -> subprocess.Popen[bytes]:
    raw = {name: str(value) if isinstance(value, Path) else value for name, value in asdict(config).items()}
    chosen = json.dumps({"config": raw, "wall_time": wall_time, "heir": heir})
    return subprocess.Popen([sys.executable, str(SERVICE), chosen], stdout=subprocess.PIPE)


async def heard(service: subprocess.Popen[bytes]) -> str:
    assert service.stdout is not None
    async with asyncio.timeout(90 * SLOWNESS):
        return (await asyncio.to_thread(service.stdout.readline)).decode().strip()


@contextmanager
def sleeping() -> Generator[subprocess.Popen[bytes]]:
    """A process that is nobody's business."""
    with subprocess.Popen(["sleep", "300"]) as process:
        try:
            yield process
        finally:
            process.kill()


@contextmanager
def ended(service: subprocess.Popen[bytes]) -> Generator[None]:
    try:
        yield
    finally:
        service.kill()
        service.wait()
        assert service.stdout is not None
        service.stdout.close()


async def test_a_deadline_comes_while_the_service_is_stopped(sandbox_config: GvisorConfig) -> None:
    service = start_service(replace(sandbox_config, deadline_grace=0.5), wall_time=1.5 * SLOWNESS)
    with ended(service):
        assert await heard(service) == "up"
        service.send_signal(signal.SIGSTOP)
        assert members(sandbox_config)
        await until(lambda: not members(sandbox_config))
        assert groups(sandbox_config)  # nobody but the launcher did it, and it kept the figures
        service.kill()
        await until(lambda: left_on(sandbox_config) == [])


async def test_a_killed_service_leaves_nothing_though_another_holds_its_line(sandbox_config: GvisorConfig) -> None:
    service = start_service(sandbox_config, wall_time=60, heir=True)
    with ended(service):
        heir = int(await heard(service))
        try:
            assert await heard(service) == "up"
            service.kill()
            await until(lambda: left_on(sandbox_config) == [])
        finally:
            os.kill(heir, signal.SIGKILL)


async def die_beside(config: GvisorConfig, images: ImageStore) -> None:
    """An executor with one busy and one waiting sandbox, until its launcher is killed."""
    async with open_driver(config, images) as driver:
        sandbox = await running(driver)
        waiting = await driver.boot("python", disk_bytes=LIMITS.disk_bytes)
        await asyncio.sleep(1.2)  # the neighbour sweeps, and leaves the living alone
        assert sandbox.alive
        assert waiting.alive
        os.kill(driver.launcher_pid, signal.SIGKILL)
        with pytest.raises(LauncherLostError):
            await driver.lost()
        with pytest.raises(SandboxFault):
            await sandbox.observe()
        with pytest.raises(LauncherLostError):
            await driver.boot("python", disk_bytes=LIMITS.disk_bytes)


async def test_the_sandboxes_of_a_killed_launcher_are_gone_and_a_neighbour_removes_what_is_left(
    sandbox_config: GvisorConfig, images: ImageStore
) -> None:
    """Two executors side by side: one's death is the other's to clean up, within an interval, and nothing else."""
    neighbour = replace(sandbox_config, instance=token_hex(4), sweep_interval=0.5)
    async with open_driver(neighbour, images) as other:
        beside = asyncio.create_task(
            run_program(other, program("import time\ntime.sleep(4)\nprint('done')"), LIMITS, Collected()), name="beside"
        )
        mine = f"executor-{sandbox_config.instance}"
        await die_beside(sandbox_config, images)
        await until(lambda: not groups(sandbox_config, mine))
        await until(lambda: not (sandbox_config.state_root / mine).exists())
        verdict = await beside
        assert verdict.outcome is Outcome.SUCCEEDED


async def test_the_next_start_sweeps_what_a_dead_executor_left(
    sandbox_config: GvisorConfig, images: ImageStore
) -> None:
    service = start_service(sandbox_config, wall_time=60)
    with ended(service):
        assert await heard(service) == "up"
        (launcher,) = children_of(service.pid)
        os.kill(launcher, signal.SIGKILL)
        service.kill()
    await until(lambda: not members(sandbox_config))  # they go with their launcher
    dead = groups(sandbox_config)
    assert dead
    with sleeping() as straggler:
        for group in dead:
            cgroup.move(straggler.pid, group)
        async with open_driver(replace(sandbox_config, instance=token_hex(4)), images):
            assert straggler.wait(30 * SLOWNESS) == -signal.SIGKILL
            assert not [group for group in dead if group.exists()]
    assert left_on(sandbox_config) == []


# Strangers


def test_what_merely_looks_like_an_executors_is_never_touched(sandbox_config: GvisorConfig) -> None:
    root = sandbox_config.state_root
    for name in ("executor-00000001", "executor-00000002", ".executor-00000003"):
        (root / name).mkdir(parents=True)
        (root / name / "theirs").write_text("theirs")
    (root / "executor-00000002" / "lock").write_text("executor-00000001 is a folder of Crucible's\n")
    (root / "executor-00000004").write_text("a file")
    (root / "executor-00000005").symlink_to(root / "executor-00000001")
    unified = find_unified()
    mounts = [unified] if unified else sorted(set(find_hierarchies().values()))
    folders = [mount / sandbox_config.cgroup_parent / "executor-00000001" / "theirs" for mount in mounts]
    before = {path: path.lstat().st_ino for path in root.rglob("*")}
    with sleeping() as stranger:
        try:
            for folder in folders:
                folder.mkdir(parents=True)
                cgroup.move(stranger.pid, folder)
            assert leftovers.sweep(root, sandbox_config.cgroup_parent) == []
            assert stranger.poll() is None
            assert {
                path: path.lstat().st_ino for path in root.rglob("*") if path.name != "lock" or path in before
            } == before
        finally:
            stranger.kill()
            stranger.wait()
            for folder in folders:
                for group in (folder, folder.parent, folder.parent.parent):
                    cgroup.remove(group)
    for path in sorted(root.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink()


def test_a_number_that_became_a_strangers_is_not_killed() -> None:
    descriptors = open_descriptors()
    with sleeping() as process:
        answers = [{process.pid, 0}, set[int]()]
        cgroup.kill_members(lambda: answers.pop(0))
        assert process.poll() is None
        cgroup.kill_members(lambda: {process.pid, 0})
        assert process.wait() == -signal.SIGKILL
    cgroup.kill_members(lambda: {process.pid})
    assert open_descriptors() <= descriptors
