"""What the host sees of a sandbox: a sentry without rights, inside its limits, and a supervisor outside of them."""

from __future__ import annotations

import asyncio
from pathlib import Path

from crucible_executor.sandbox.gvisor.driver import GvisorConfig, GvisorDriver
from crucible_executor.sandbox.port import Program, ProgramFile

from .conftest import LIMITS, MIB, SLOWNESS, Collected, groups


def processes(config: GvisorConfig) -> dict[int, list[bytes]]:
    """Command lines of all processes of a ground."""
    found: dict[int, list[bytes]] = {}
    for process in Path("/proc").glob("[0-9]*"):
        try:
            words = (process / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if any(str(config.state_root).encode() in word for word in words):
            found[int(process.name)] = words
    return found


def status_of(pid: int) -> dict[str, str]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


def namespace(pid: int | str, kind: str) -> str:
    return str(Path(f"/proc/{pid}/ns/{kind}").readlink())


def limited(config: GvisorConfig, pid: int) -> bool:
    """Whether a process is in a sandbox's own group for memory."""
    groups = Path(f"/proc/{pid}/cgroup").read_text().splitlines()
    path = next(line.split(":", 2)[2] for line in groups if ":memory:" in line or line.startswith("0::"))
    return f"/{config.cgroup_parent}/" in path and not path.endswith("/supervisors")


def memory_limits(config: GvisorConfig, sandbox: str) -> set[str]:
    """The bounds of a sandbox's group, whichever version of control groups keeps them."""
    names = ("memory.limit_in_bytes", "memory.max")
    return {
        (group / name).read_text().strip()
        for group in groups(config, f"*/{sandbox}")
        for name in names
        if (group / name).exists()
    }


def open_files(pid: int) -> list[str]:
    return [str(descriptor.readlink()) for descriptor in Path(f"/proc/{pid}/fd").iterdir()]


async def test_the_sentry_has_no_rights_and_the_limits_hold(driver: GvisorDriver, sandbox_config: GvisorConfig) -> None:
    sandbox = await driver.boot("python", disk_bytes=LIMITS.disk_bytes)
    # The limits hold before any program is there.
    found = await asyncio.to_thread(processes, sandbox_config)
    sentries = [pid for pid, words in found.items() if b"boot" in words]
    supervisors = [pid for pid, words in found.items() if b"run" in words and b"boot" not in words]
    assert sentries
    assert len(supervisors) == 1
    assert not any(b"gofer" in words for words in found.values())
    for pid in sentries:
        assert limited(sandbox_config, pid)
        status = status_of(pid)
        assert set(status["Uid"].split()) == {"65534"}
        assert {status[name] for name in ("CapEff", "CapPrm", "CapBnd", "CapAmb")} == {"0" * 16}
        assert (status["Seccomp"], status["NoNewPrivs"]) == ("2", "1")
        for kind in ("user", "mnt", "net", "ipc", "uts"):
            assert namespace(pid, kind) != namespace("self", kind)
    assert not limited(sandbox_config, supervisors[0])

    sink = Collected()
    files = (ProgramFile("main.py", b"print('up'); import time; time.sleep(100)"),)
    await sandbox.deliver(Program("python", files), LIMITS, sink)
    async with asyncio.timeout(20 * SLOWNESS):
        while not sink.stdout:  # noqa: ASYNC110 - a sink sets no event
            await asyncio.sleep(0.01)
    assert memory_limits(sandbox_config, sandbox.id) == {str((256 + 64 + 32) * MIB)}
    await sandbox.close()


async def test_a_sandbox_holds_no_descriptor_of_a_host_file(driver: GvisorDriver, sandbox_config: GvisorConfig) -> None:
    sandbox = await driver.boot("python", disk_bytes=LIMITS.disk_bytes)
    image = str(driver.images.find("python")[1])
    for pid, words in processes(sandbox_config).items():
        if b"boot" not in words:
            continue
        for target in open_files(pid):
            harmless = target.startswith(("pipe:", "socket:", "anon_inode:", "/memfd:", "/dev/null", "/proc", "net:"))
            ours = target.startswith(str(sandbox_config.state_root))
            assert harmless or ours or target in (image, "/"), target
    await sandbox.close()
