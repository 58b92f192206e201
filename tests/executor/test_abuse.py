"""Programs that try everything: each ends as its header says, and after each the host is as it was.

Two tricks run at a time, and beside them a program that does nothing wrong: it must not notice, and it is the next
program on that machine for the tricks before it.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import secrets
from collections.abc import AsyncGenerator, Generator, Sequence
from pathlib import Path

import pytest

from crucible_executor.sandbox.gvisor.driver import GvisorConfig, GvisorDriver
from crucible_executor.sandbox.image import ImageStore, image_digest
from crucible_executor.sandbox.pool import open_pool
from crucible_executor.sandbox.port import Outcome, SandboxDriver, SandboxFault, SandboxLimits

from .abuse_tricks import Trick, load_tricks
from .conftest import LIMITS, Collected, groups, program

AT_ONCE = 2
TRICKS = load_tricks()
VICTIM = program("import os; print(sorted(os.listdir('/work')), os.listdir('/tmp'), sum(range(100_000)))")
UNHARMED = b"['main.py'] [] 4999950000\n"


class Host:
    """What must be the same after every program."""

    def __init__(self, driver: GvisorDriver, config: GvisorConfig, folder: Path) -> None:
        self._driver = driver
        self._config = config
        self._images = {path: path.stat() for _, path in map(driver.images.find, driver.images.index().runtimes)}
        self.canary = folder / f"canary-{secrets.token_hex(8)}"
        self.canary.write_text("untouched", encoding="utf-8")
        self.canary.chmod(0o666)  # only the sandbox keeps a program from it
        self._files = {path: self._seen(path) for path in (self.canary, Path("/etc/passwd"), Path("/etc/hostname"))}
        self._pids = (os.getpid(), driver.launcher_pid)
        self._descriptors = [_descriptors(pid) for pid in self._pids]
        self._listening = self._listeners()

    def trace_of(self, identity: str) -> list[str]:
        """What is left of one sandbox that was closed."""
        found = [str(path) for path in self._config.state_root.glob(f"*/{identity}*")]
        found += map(str, groups(self._config, f"*/{identity}"))
        for process in Path("/proc").glob("[0-9]*"):
            try:
                if (
                    identity in (process / "cgroup").read_text()
                    or identity.encode() in (process / "cmdline").read_bytes()
                ):
                    found.append(f"process {process.name}")
            except OSError:
                continue  # it ended
        return found

    def changes(self) -> list[str]:
        """What differs while no sandbox is there."""
        found = [f"sandbox {sandbox.id} is still there" for sandbox in self._driver.sandboxes]
        (instance,) = [path for path in self._config.state_root.iterdir() if path.is_dir()]
        found += [str(path) for path in instance.iterdir() if path.name not in ("lock", "empty")]
        found += [str(path) for path in (instance / "empty").iterdir()]
        for folder in (self._config.images_dir, self._config.state_root):
            found += [str(path) for path in folder.rglob(".gvisor.filestore.*")]
        found += [str(path) for path, seen in self._files.items() if self._seen(path) != seen]
        for path, was in self._images.items():
            now = path.stat()
            if (now.st_ino, now.st_size, now.st_mtime_ns) != (was.st_ino, was.st_size, was.st_mtime_ns):
                found.append(str(path))
        for pid, before in zip(self._pids, self._descriptors, strict=True):
            if len(now := _descriptors(pid)) > len(before):
                found.append(f"descriptors of process {pid}: {sorted(now)} after {sorted(before)}")
        found += [f"a listening socket: {line}" for line in self._listeners() - self._listening]
        return found

    @staticmethod
    def _seen(path: Path) -> tuple[bytes, int, int]:
        status = path.stat()
        return path.read_bytes(), status.st_ino, status.st_mtime_ns

    def _listeners(self) -> set[str]:
        """Of the executor, of its launcher, and of nobody, who a sandbox's kernel is. Others may come and go."""
        ours = {target for pid in self._pids for target in _descriptors(pid).values() if target.startswith("socket:")}
        found: set[str] = set()
        for kind in ("tcp", "tcp6"):
            for line in Path(f"/proc/net/{kind}").read_text().splitlines()[1:]:
                words = line.split()
                if words[3] == "0A" and (words[7] == "65534" or f"socket:[{words[9]}]" in ours):
                    found.add(f"{kind} {words[1]} {words[9]}")
        for line in Path("/proc/net/unix").read_text().splitlines()[1:]:
            words = line.split()
            if int(words[3], 16) & 0x10000 and f"socket:[{words[6]}]" in ours:
                found.add(line)
        return found


def _descriptors(pid: int) -> dict[int, str]:
    found: dict[int, str] = {}
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        try:
            target = str(entry.readlink())
        except FileNotFoundError:
            continue  # the one by which this folder was read
        found[int(entry.name)] = target
    return found


@pytest.fixture
async def host(driver: GvisorDriver, sandbox_config: GvisorConfig, tmp_path: Path) -> AsyncGenerator[Host]:
    """Looked at when a first sandbox has come and gone: what is opened once stays open."""
    await run_victim(driver)
    watched = Host(driver, sandbox_config, tmp_path)
    yield watched
    assert watched.changes() == []


@pytest.fixture(scope="module", autouse=True)
def images_unchanged(images: ImageStore) -> Generator[None]:
    """Byte for byte, when all tricks have run."""
    yield
    for image in images.index().runtimes.values():
        assert image_digest(images.folder / image.file_name) == image.digest


async def run_victim(driver: GvisorDriver) -> list[str]:
    sandbox = await driver.boot("python", disk_bytes=LIMITS.disk_bytes)
    sink = Collected()
    try:
        await sandbox.deliver(VICTIM, LIMITS, sink)
        verdict = await sandbox.observe()
    finally:
        await sandbox.close()
    if (verdict.outcome, sink.stdout, sink.stderr) != (Outcome.SUCCEEDED, UNHARMED, b""):
        return [f"a program beside it noticed: {verdict.outcome} {sink.stdout!r} {sink.stderr!r}"]
    return []


async def run_trick(driver: SandboxDriver, host: Host, trick: Trick) -> list[str]:
    limits: SandboxLimits = trick.chosen
    sandbox = await driver.boot(trick.runtime, disk_bytes=limits.disk_bytes)
    sink = Collected()
    try:
        await sandbox.deliver(trick.program({"CANARY": str(host.canary)}), limits, sink)
        verdict = await sandbox.observe()
        found = trick.complaints(verdict, sink.stdout, sink.stderr)
    except SandboxFault as fault:
        found = [f"no verdict: {fault}"]
    finally:
        await sandbox.close()
    return [f"{trick.name}: {what}" for what in found + await asyncio.to_thread(host.trace_of, sandbox.id)]


def waves(tricks: Sequence[Trick]) -> list[Sequence[Trick]]:
    return [tuple(itertools.islice(tricks, start, start + AT_ONCE)) for start in range(0, len(tricks), AT_ONCE)]


@pytest.mark.parametrize("kind", TRICKS)
async def test_a_trick_ends_as_expected_and_changes_nothing(driver: GvisorDriver, host: Host, kind: str) -> None:
    problems: list[str] = []
    for wave in waves(TRICKS[kind]):
        ran = await asyncio.gather(run_victim(driver), *(run_trick(driver, host, trick) for trick in wave))
        names = " and ".join(trick.name for trick in wave)
        problems += [what for found in ran for what in found]
        problems += [f"after {names}: {what}" for what in await asyncio.to_thread(host.changes)]
    if problems:
        pytest.fail("\n".join(problems), pytrace=False)


@pytest.mark.parametrize("kind", ["channel", "tenant"])
async def test_a_trick_finds_nothing_else_in_a_sandbox_that_waited(driver: GvisorDriver, host: Host, kind: str) -> None:
    problems: list[str] = []
    async with open_pool(driver, size=AT_ONCE) as pool:
        pool.keep({"python": LIMITS.disk_bytes})
        for wave in waves([trick for trick in TRICKS[kind] if trick.runtime == "python"]):
            ran = await asyncio.gather(*(run_trick(pool, host, trick) for trick in wave))
            problems += [what for found in ran for what in found]
        assert pool.claims.ready + pool.claims.booting > 0
    problems += await asyncio.to_thread(host.changes)
    if problems:
        pytest.fail("\n".join(problems), pytrace=False)


def test_every_class_has_its_tricks() -> None:
    assert set(TRICKS) == {"channel", "kernel", "network", "output", "recon", "resource", "sockets", "tenant"}
    assert sum(map(len, TRICKS.values())) >= 100
