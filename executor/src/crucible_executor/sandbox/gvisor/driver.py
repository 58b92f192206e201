"""The gVisor driver of one executor: has its launcher boot sandboxes, runs programs in them, tests runtimes."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from crucible_executor.sandbox.cgroup import CgroupError, CgroupTree
from crucible_executor.sandbox.cgroup_tree import open_cgroup_tree
from crucible_executor.sandbox.containment.alarm import Alarm
from crucible_executor.sandbox.gvisor.link import Link
from crucible_executor.sandbox.gvisor.sandbox import GvisorSandbox
from crucible_executor.sandbox.image import DEFAULT_IMAGES_DIR, BuiltImage, ImageStore
from crucible_executor.sandbox.launcher.config import LauncherConfig
from crucible_executor.sandbox.launcher.process import LauncherProcess, start_launcher
from crucible_executor.sandbox.leftovers import folder_name
from crucible_executor.sandbox.port import Cause, Offerable, Outcome, RuntimeOffer, SandboxError, SandboxFault, Stream
from crucible_executor.sandbox.run import run_program

DEFAULT_STATE_ROOT: Final = Path("/run/crucible")
DEFAULT_CGROUP_PARENT: Final = "crucible"
_ID_BYTES: Final = 16


@dataclass(frozen=True, slots=True)
class GvisorConfig:
    """How a driver is set up."""

    images_dir: Path = DEFAULT_IMAGES_DIR
    """Where `build_images` wrote."""
    state_root: Path = DEFAULT_STATE_ROOT
    """Folder of all executors' state on this machine; best on a tmpfs, and short (40 bytes): sockets lie in it."""
    cgroup_parent: str = DEFAULT_CGROUP_PARENT
    """Path of the executors' control groups below the hierarchy's mount point."""
    instance: str = field(default_factory=lambda: secrets.token_hex(4))
    """Names this executor's folder and control groups; new at each start."""
    runsc: str = "runsc"
    platform: str = "systrap"
    boot_timeout: float = 30.0
    """Seconds; longer for a boot that gives way to programs."""
    deadline_grace: float = 10.0
    """Seconds beyond its wall time after which a launcher ends a sandbox unasked."""
    unclaimed_age: float = 900.0
    """Seconds that a sandbox may be there without a program: more than any pool boots and keeps one."""
    gone_timeout: float = 30.0
    """Seconds for a killed sandbox to be gone: many, since one that is not takes its executor out of service."""
    sweep_interval: float = 60.0
    """Seconds between two sweeps of what dead executors left."""
    most_sandboxes: int = 1024
    """A launcher makes no more at one time, whoever asks; far above what is needed."""

    def for_launcher(self) -> LauncherConfig:
        """What its launcher is told."""
        return LauncherConfig(
            images_dir=self.images_dir.absolute(),
            state_root=self.state_root,
            image_record=DEFAULT_STATE_ROOT / "verified-images",
            cgroup_parent=self.cgroup_parent,
            instance=self.instance,
            runsc=self.runsc,
            platform=self.platform,
            deadline_grace=self.deadline_grace,
            unclaimed_age=self.unclaimed_age,
            gone_timeout=self.gone_timeout,
            sweep_interval=self.sweep_interval,
            most_sandboxes=self.most_sandboxes,
        )


class GvisorDriver:
    """See `SandboxDriver`, the port. Made by `open_driver`."""

    def __init__(self, images: ImageStore, link: Link, cgroups: CgroupTree, boot_timeout: float) -> None:
        self.images = images
        self._link = link
        self._cgroups = cgroups
        self._boot_timeout = boot_timeout
        self._sandboxes: set[GvisorSandbox] = set()
        self.alarm = Alarm()
        """Rings when a sandbox's confinement is broken; then no program gets a sandbox any more."""

    @property
    def launcher_pid(self) -> int:
        """The process that holds the privileges."""
        return self._link.pid

    @property
    def sandboxes(self) -> frozenset[GvisorSandbox]:
        """Those not yet closed."""
        return frozenset(self._sandboxes)

    async def lost(self) -> None:
        """Wait until the launcher is gone, then raise LauncherLostError: no sandbox can be had or is left."""
        await self._link.lost()

    async def boot(self, runtime: str, *, disk_bytes: int) -> GvisorSandbox:
        """See `SandboxDriver`."""
        sandbox = await self._new(runtime, disk_bytes)
        try:
            await sandbox.boot()
        except BaseException:
            await sandbox.close()
            raise
        return sandbox

    async def prepare(self, runtime: str, *, disk_bytes: int) -> GvisorSandbox:
        """See `PoolableDriver`."""
        sandbox = await self._new(runtime, disk_bytes)
        sandbox.give_way()
        return sandbox

    async def _new(self, runtime: str, disk_bytes: int) -> GvisorSandbox:
        self.alarm.check()
        image = self.images.index().runtimes.get(runtime)
        if image is None:
            raise SandboxFault(Cause.IMAGE, f"no image of runtime {runtime!r} under {self.images.folder}")
        identity = secrets.token_hex(_ID_BYTES)
        sandbox = GvisorSandbox(
            identity,
            self._link,
            self._cgroups.group(identity),
            image,
            disk_bytes,
            boot_timeout=self._boot_timeout,
            alarm=self.alarm,
            on_closed=self._sandboxes.discard,
        )
        self._sandboxes.add(sandbox)
        return sandbox

    async def until_unfit(self) -> str:
        """See `SandboxDriver`: until a sandbox's confinement is found to be broken."""
        return str(await self.alarm.rung())

    async def offerable_runtimes(self) -> Offerable:
        """See `SandboxDriver`."""
        index = await asyncio.to_thread(self.images.index)
        offers: list[RuntimeOffer] = []
        refused: dict[str, str] = {}
        for name, image in index.runtimes.items():
            problem = await self._self_test(image)
            if problem:
                refused[name] = problem
            else:
                offers.append(_offer(image))
        return Offerable(tuple(offers), refused)

    async def _self_test(self, image: BuiltImage) -> str:
        definition = image.definition
        sink = _Collected()
        try:
            verdict = await run_program(
                self, definition.self_test_program(), definition.limits.default.as_limits(), sink
            )
        except SandboxError as error:
            return str(error)
        expected = dict(zip(Stream, definition.self_test.expected(), strict=True))
        if verdict.outcome is not Outcome.SUCCEEDED:
            return f"its self-test ended {verdict.outcome.value} ({verdict.signal or verdict.exit_code})"
        for stream, wanted in expected.items():
            written = bytes(sink.data[stream])
            if written != wanted:
                return f"its self-test wrote {written[:200]!r} to {stream.value}, not {wanted[:200]!r}"
        return ""

    async def close(self) -> None:
        """Close every sandbox that still is; raises ExceptionGroup with all that could not be."""
        results = await asyncio.gather(*(sandbox.close() for sandbox in set(self._sandboxes)), return_exceptions=True)
        errors = [result for result in results if isinstance(result, Exception)]
        if errors:
            raise ExceptionGroup("sandboxes could not be closed", errors)


class _Collected:
    """A sink that keeps what it gets."""

    def __init__(self) -> None:
        self.data: dict[Stream, bytearray] = {stream: bytearray() for stream in Stream}

    def write(self, stream: Stream, data: bytes) -> None:
        self.data[stream] += data


def _offer(image: BuiltImage) -> RuntimeOffer:
    definition = image.definition
    return RuntimeOffer(
        name=definition.name,
        version=image.version,
        image_digest=image.digest,
        default_limits=definition.limits.default.as_limits(),
    )


@asynccontextmanager
async def open_driver(
    config: GvisorConfig, images: ImageStore | None = None, launcher: LauncherProcess | None = None
) -> AsyncGenerator[GvisorDriver]:
    """A driver with its launcher, and at the end the launcher's removal of all that it made.

    `launcher` is one that was started for this configuration before privileges were given up; without it one is
    started here. Raises SandboxFault(INFRASTRUCTURE) when this machine cannot run sandboxes.
    """
    async with AsyncExitStack() as stack:
        try:
            link = Link(launcher or start_launcher(config.for_launcher()))
            stack.push_async_callback(link.close)
            await link.opened()
            cgroups = open_cgroup_tree(config.cgroup_parent, folder_name(config.instance))
        except (CgroupError, OSError) as error:
            raise SandboxFault(Cause.INFRASTRUCTURE, str(error)) from error
        driver = GvisorDriver(images or ImageStore(config.images_dir), link, cgroups, config.boot_timeout)
        stack.push_async_callback(driver.close)
        yield driver
