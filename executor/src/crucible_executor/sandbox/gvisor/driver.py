"""The gVisor driver of one executor: opens its ground, sweeps what dead ones left, boots sandboxes, tests runtimes."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from crucible_executor.sandbox import leftovers
from crucible_executor.sandbox.cgroup import CgroupError
from crucible_executor.sandbox.gvisor.guest import Ground
from crucible_executor.sandbox.gvisor.runsc import Runsc, RunscError
from crucible_executor.sandbox.gvisor.sandbox import GvisorSandbox
from crucible_executor.sandbox.image import DEFAULT_IMAGES_DIR, BuiltImage, ImageStore
from crucible_executor.sandbox.leftovers import Instance
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
    """Seconds."""


class GvisorDriver:
    """See `SandboxDriver`, the port. Made by `open_driver`."""

    def __init__(self, images: ImageStore, ground: Ground) -> None:
        self.images = images
        self._ground = ground
        self._sandboxes: set[GvisorSandbox] = set()

    @property
    def runsc_version(self) -> str:
        """Of the installed binary."""
        return self._ground.runsc.version

    @property
    def cgroup_version(self) -> int:
        """1 or 2."""
        return self._ground.cgroups.version

    @property
    def sandboxes(self) -> frozenset[GvisorSandbox]:
        """Those not yet closed."""
        return frozenset(self._sandboxes)

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
        image, path = await asyncio.to_thread(self.images.find, runtime)
        sandbox = GvisorSandbox(
            secrets.token_hex(_ID_BYTES), self._ground, image, path, disk_bytes, self._sandboxes.discard
        )
        self._sandboxes.add(sandbox)
        return sandbox

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
        display_name=definition.display_name,
        version=image.version,
        image_digest=image.digest,
        default_limits=definition.limits.default.as_limits(),
        maximum_limits=definition.limits.maximum.as_limits(),
        default_entrypoint=definition.default_entrypoint,
    )


@asynccontextmanager
async def open_driver(config: GvisorConfig, images: ImageStore | None = None) -> AsyncGenerator[GvisorDriver]:
    """Sweep what dead executors left, take this one's ground, and give all of it back at the end.

    `images` is for those who open several drivers: it remembers which images it hashed already. Use this in the thread
    that lives as long as the executor: its sandboxes are killed when that thread ends. Raises
    SandboxFault(INFRASTRUCTURE) when this machine cannot run sandboxes.
    """
    async with AsyncExitStack() as stack:
        try:
            runsc = await asyncio.to_thread(Runsc.probe, config.runsc)
            await asyncio.to_thread(leftovers.sweep, config.state_root, config.cgroup_parent)
            instance = Instance(config.state_root, config.cgroup_parent, config.instance)
            stack.callback(instance.give_back)
            instance.take()
            empty_root = instance.dir / "empty"
            empty_root.mkdir(mode=0o700)
        except (RunscError, CgroupError, OSError) as error:
            raise SandboxFault(Cause.INFRASTRUCTURE, str(error)) from error
        ground = Ground(
            instance_dir=instance.dir,
            empty_root=empty_root,
            cgroups=instance.cgroups,
            runsc=runsc,
            platform=config.platform,
            boot_timeout=config.boot_timeout,
        )
        driver = GvisorDriver(images or ImageStore(config.images_dir), ground)
        stack.push_async_callback(driver.close)
        yield driver
