"""Real sandboxes for the executor's tests: a ground of its own for each test, and a look for what was left after it."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import time
from collections.abc import AsyncGenerator, Awaitable, Generator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

import pytest

from crucible_executor.build_images import build_all
from crucible_executor.sandbox import cgroup
from crucible_executor.sandbox.gvisor.driver import GvisorConfig, GvisorDriver, open_driver
from crucible_executor.sandbox.image import DEFAULT_IMAGES_DIR, ImageStore
from crucible_executor.sandbox.port import Program, ProgramFile, SandboxLimits, Stream, Verdict
from crucible_executor.sandbox.run import run_program

MIB = 1024 * 1024
RUNSC = os.environ.get("CRUCIBLE_TEST_RUNSC", "runsc")
"""The binary under test: another release than the installed one."""
SLOWNESS = float(os.environ.get("CRUCIBLE_TEST_SLOWNESS", "1"))
"""How many times longer than on a common machine things may take: an emulated one says 10."""
ACCOUNT = "daemon"
"""A system user that every Debian and Ubuntu has, and that nothing runs as."""
RUNTIMES_SOURCE = Path(__file__).parents[2] / "deploy" / "runtimes"
LIMITS = SandboxLimits(
    wall_time=30 * SLOWNESS,
    cpu_time=30 * SLOWNESS,
    memory_bytes=256 * MIB,
    disk_bytes=64 * MIB,
    output_bytes=MIB,
    processes=64,
    open_files=256,
)


@dataclass
class Collected:
    """A sink that keeps everything, chunk by chunk."""

    chunks: list[tuple[Stream, bytes]] = field(default_factory=list[tuple[Stream, bytes]])

    def write(self, stream: Stream, data: bytes) -> None:
        self.chunks.append((stream, data))

    def of(self, stream: Stream) -> bytes:
        return b"".join(data for which, data in self.chunks if which is stream)

    @property
    def stdout(self) -> bytes:
        return self.of(Stream.STDOUT)

    @property
    def stderr(self) -> bytes:
        return self.of(Stream.STDERR)


@dataclass(frozen=True)
class Ran:
    """A verdict with the output that came before it."""

    verdict: Verdict
    stdout: bytes
    stderr: bytes


class Run(Protocol):
    """Runs one program to its verdict."""

    def __call__(
        self,
        source: str,
        *,
        runtime: str = ...,
        files: Sequence[ProgramFile] = ...,
        args: Sequence[str] = ...,
        env: Mapping[str, str] | None = ...,
        stdin: bytes = ...,
        **limits: float,
    ) -> Awaitable[Ran]: ...


def program(source: str, runtime: str = "python") -> Program:
    """A program of one file."""
    entrypoint = {"python": "main.py", "bash": "main.sh"}[runtime]
    return Program(runtime, (ProgramFile(entrypoint, source.encode()),))


@pytest.fixture(scope="session")
def images() -> ImageStore:
    """The runtimes' images, built when they are not there or not up to date."""
    folder = Path(os.environ.get("CRUCIBLE_RUNTIMES_DIR", str(DEFAULT_IMAGES_DIR)))
    build_all(RUNTIMES_SOURCE, folder)
    return ImageStore(folder)


@pytest.fixture
def sandbox_config(images: ImageStore) -> Generator[GvisorConfig]:
    """A ground that no one else uses; after the test nothing may be left on it."""
    name = f"crucible-test-{secrets.token_hex(4)}"
    config = GvisorConfig(
        images_dir=images.folder,
        state_root=Path("/run") / name,
        cgroup_parent=name,
        runsc=RUNSC,
        boot_timeout=30 * SLOWNESS,
    )
    descriptors = open_descriptors()
    yield config
    left = leftovers(config)
    shutil.rmtree(config.state_root, ignore_errors=True)
    assert left == []
    assert_descriptors(descriptors)


@pytest.fixture
async def driver(sandbox_config: GvisorConfig, images: ImageStore) -> AsyncGenerator[GvisorDriver]:
    """An open driver."""
    async with open_driver(sandbox_config, images) as opened:
        yield opened


@pytest.fixture
def run(driver: GvisorDriver) -> Run:
    """Runs a program with `LIMITS`, or with those given instead."""

    async def run_one(
        source: str,
        *,
        runtime: str = "python",
        files: Sequence[ProgramFile] = (),
        args: Sequence[str] = (),
        env: Mapping[str, str] | None = None,
        stdin: bytes = b"",
        **limits: float,
    ) -> Ran:
        sink = Collected()
        base = program(source, runtime)
        full = replace(base, files=(*base.files, *files), args=args, env=env or {}, stdin=stdin)
        chosen = replace(LIMITS, **limits)  # pyright: ignore[reportArgumentType] - the tests name fields of the dataclass
        verdict = await run_program(driver, full, chosen, sink)
        return Ran(verdict, sink.stdout, sink.stderr)

    return run_one


def groups(config: GvisorConfig, pattern: str = "*/*") -> list[Path]:
    """The control groups of sandboxes on a ground, in each hierarchy; not those of supervisors."""
    found = {group for mount in mounts() for group in mount.glob(f"{config.cgroup_parent}/{pattern}") if group.is_dir()}
    return sorted(group for group in found if group.name != cgroup.SUPERVISORS)


def mounts() -> list[Path]:
    """Where control groups are: version 1 mounts its hierarchies below, version 2 is the folder itself."""
    return [Path("/sys/fs/cgroup"), *Path("/sys/fs/cgroup").iterdir()]


def leftovers(config: GvisorConfig) -> list[str]:
    """Every process, control group and file that runs on a ground have left; empty when all is well."""
    marks = (str(config.state_root).encode(), config.cgroup_parent.encode())
    found: list[str] = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            line = (process / "cmdline").read_bytes()
        except OSError:
            continue
        if any(mark in line for mark in marks) and int(process.name) != os.getpid():
            found.append(f"process {process.name}")
    found += [
        f"control group {mount / config.cgroup_parent}" for mount in mounts() if (mount / config.cgroup_parent).exists()
    ]
    if config.state_root.exists():
        found += [str(path) for path in config.state_root.iterdir() if path.name != "lock"]
    return found


def assert_descriptors(before: int) -> None:
    """No more descriptors than before; a library's thread that is closing one just now gets a moment."""
    deadline = time.monotonic() + 3 * SLOWNESS
    while open_descriptors() > before and time.monotonic() < deadline:
        time.sleep(0.01)
    held: list[str] = []
    for entry in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # the one by which this folder is read
            held.append(str(entry.readlink()))
    assert open_descriptors() <= before, held


def open_descriptors() -> int:
    """How many descriptors this process holds."""
    return len(list(Path("/proc/self/fd").iterdir()))
