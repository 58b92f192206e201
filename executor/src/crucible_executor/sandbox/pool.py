"""Sandboxes booted ahead: each waits, stopped, for the one program that it will ever run.

A pool wraps a driver and is one itself. It keeps `size` sandboxes of each runtime with that runtime's default disk.
`boot` hands out one that waits, else one that is booting for the pool just now, else boots one as if there was no
pool: nobody ever stands in a queue. What was handed out is replaced a moment later, by as many boots at once as there
are cores without a program, and by one where there is none; boots of the pool's have next to no weight beside programs.
A boot that somebody waits for is that program's, and no longer one of these: what it leaves of the cores is used.

Knows the port, and three things more that a sandbox can do: `Waiting`.
"""

from __future__ import annotations

import asyncio
import os
import random
import time
from collections import deque
from collections.abc import AsyncGenerator, Coroutine, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Final, Protocol

from crucible_chassis.logs import get_logger
from crucible_executor.sandbox.port import Offerable, Sandbox, SandboxDriver, SandboxError

MAX_AGE: Final = 600.0
"""Seconds that a sandbox waits at most; each a little more or less, so that not all are replaced at once."""
AGE_JITTER: Final = 0.1
COURTESY: Final = 0.03
"""Seconds that a program gets to itself before its sandbox is replaced: most have ended by then, and undisturbed."""
FIRST_BACKOFF: Final = 0.5
LAST_BACKOFF: Final = 30.0
"""Seconds after a boot that failed."""

log = get_logger(__name__)


class Waiting(Sandbox, Protocol):
    """A sandbox that can be booted ahead of its program."""

    async def boot(self) -> None:
        """Boot, giving way to all programs; raises SandboxFault, after which it is only closed."""
        ...

    def hurry(self) -> None:
        """Give way no more; any time before `deliver`, which does the same."""
        ...

    def freeze(self) -> None:
        """Use no CPU until `deliver`, `abandon` or `close`; raises SandboxFault."""
        ...


class PoolableDriver(SandboxDriver, Protocol):
    """A driver whose sandboxes can wait."""

    async def prepare(self, runtime: str, *, disk_bytes: int) -> Waiting:
        """A sandbox not yet booted; raises SandboxFault as `boot` does. It must be closed."""
        ...


@dataclass
class Claims:
    """How programs got their sandboxes since the pool was opened."""

    ready: int = 0
    booting: int = 0
    cold: int = 0


@dataclass(eq=False)
class _Boot:
    """A boot under way; `claimant` is who waits for it, if somebody does, and gets None when it fails."""

    runtime: str
    sandbox: Waiting | None = None
    claimant: asyncio.Future[Waiting | None] | None = None

    @property
    def claimed(self) -> bool:
        return self.claimant is not None and not self.claimant.done()


@dataclass
class _Shelf:
    """The sandboxes of one runtime that wait, the oldest first, each with its last moment."""

    disk_bytes: int
    ready: deque[tuple[Waiting, float]] = field(default_factory=deque[tuple[Waiting, float]])
    backoff: float = 0.0
    not_before: float = 0.0


class SandboxPool:
    """See the module; a `SandboxDriver`. Made by `open_pool`."""

    def __init__(self, driver: PoolableDriver, *, size: int, cores: int, max_age: float) -> None:
        self.claims = Claims()
        self._driver = driver
        self._size = size
        self._cores = cores
        self._max_age = max_age
        self._shelves: dict[str, _Shelf] = {}
        self._boots: list[_Boot] = []
        self._out: set[Sandbox] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._changed = asyncio.Event()
        self._closing = False
        self._not_before = 0.0

    @property
    def waiting(self) -> Mapping[str, int]:
        """How many sandboxes wait now, by runtime."""
        return {name: len(shelf.ready) for name, shelf in self._shelves.items()}

    async def offerable_runtimes(self) -> Offerable:
        """See `SandboxDriver`; the pool fills with what is offered."""
        found = await self._driver.offerable_runtimes()
        self.keep({offer.name: offer.default_limits.disk_bytes for offer in found.offers})
        return found

    async def until_unfit(self) -> str:
        """See `SandboxDriver`."""
        return await self._driver.until_unfit()

    def keep(self, disks: Mapping[str, int]) -> None:
        """Keep sandboxes of these runtimes with these disks ready from now on."""
        for name, disk_bytes in disks.items():
            self._shelves.setdefault(name, _Shelf(disk_bytes))
        self._changed.set()

    async def boot(self, runtime: str, *, disk_bytes: int) -> Sandbox:
        """See `SandboxDriver`: one that is ready, if there is one."""
        sandbox = await self._claim(runtime, disk_bytes)
        if sandbox is None:
            self.claims.cold += 1
            sandbox = await self._driver.boot(runtime, disk_bytes=disk_bytes)
        self._out = {each for each in self._out if each.alive} | {sandbox}
        return sandbox

    async def _claim(self, runtime: str, disk_bytes: int) -> Sandbox | None:
        shelf = self._shelves.get(runtime)
        if shelf is None or shelf.disk_bytes != disk_bytes or self._closing:
            return None
        self._changed.set()
        while shelf.ready:
            sandbox, _ = shelf.ready.popleft()
            if sandbox.alive:
                self.claims.ready += 1
                self._not_before = time.monotonic() + COURTESY
                return sandbox
            self._discard(sandbox)
        self._not_before = 0.0
        for boot in self._boots:
            if boot.runtime == runtime and not boot.claimed:
                sandbox = await self._adopt(boot)
                if sandbox is not None:
                    self.claims.booting += 1
                return sandbox
        return None

    async def _adopt(self, boot: _Boot) -> Waiting | None:
        """Wait for a boot of the pool's; None when it failed. Who is cancelled leaves it to the pool."""
        boot.claimant = claimant = asyncio.get_running_loop().create_future()
        if boot.sandbox is not None:
            boot.sandbox.hurry()
        try:
            return await claimant
        except asyncio.CancelledError:
            if not claimant.cancelled() and (sandbox := claimant.result()) is not None:
                self._put(boot.runtime, sandbox)
            raise

    # Keeping it full

    async def run(self) -> None:
        """Fill, replace what grew old or died, for ever."""
        while True:
            self._changed.clear()
            now = time.monotonic()  # one for the whole turn: no moment may pass between a look and the sleep after it
            self._drop_old(now)
            while (runtime := self._wanting(now)) is not None and len(self._unclaimed()) < self._allowed():
                boot = _Boot(runtime)
                self._boots.append(boot)
                self._spawn(f"pool-boot-{runtime}", self._boot(boot))
            try:
                async with asyncio.timeout(self._patience(now)):
                    await self._changed.wait()
            except TimeoutError:
                continue

    def _allowed(self) -> int:
        """How many may boot at once: each needs a core, and one more program than cores does not stop the last boot."""
        return max(1, self._cores - sum(sandbox.alive for sandbox in self._out))

    def _unclaimed(self) -> list[str]:
        """Of the boots that nobody waits for, the runtimes."""
        return [boot.runtime for boot in self._boots if not boot.claimed]

    def _wanting(self, now: float) -> str | None:
        """The runtime that lacks the most."""
        if now < self._not_before:
            return None
        unclaimed = self._unclaimed()
        lacking = {
            name: self._size - len(shelf.ready) - unclaimed.count(name)
            for name, shelf in self._shelves.items()
            if shelf.not_before <= now
        }
        most = max(lacking, key=lambda name: lacking[name], default=None)
        return most if most is not None and lacking[most] > 0 else None

    def _patience(self, now: float) -> float | None:
        """Seconds until something changes by time alone."""
        moments = [expires for shelf in self._shelves.values() for _, expires in shelf.ready]
        moments += [
            each for each in (self._not_before, *(shelf.not_before for shelf in self._shelves.values())) if each > now
        ]
        return max(0.0, min(moments) - now) if moments else None

    def _drop_old(self, now: float) -> None:
        for shelf in self._shelves.values():
            fresh = deque[tuple[Waiting, float]]()
            for sandbox, expires in shelf.ready:
                if sandbox.alive and expires > now:
                    fresh.append((sandbox, expires))
                else:
                    self._discard(sandbox)
            shelf.ready = fresh

    async def _boot(self, boot: _Boot) -> None:
        shelf = self._shelves[boot.runtime]
        try:
            sandbox = boot.sandbox = await self._driver.prepare(boot.runtime, disk_bytes=shelf.disk_bytes)
            try:
                if boot.claimed:
                    sandbox.hurry()
                await sandbox.boot()
            except BaseException:
                self._discard(sandbox)  # who waits for this boot does not wait for its removal
                raise
        except Exception as error:  # noqa: BLE001 - the pool outlives any boot of its own
            shelf.backoff = min(2 * shelf.backoff or FIRST_BACKOFF, LAST_BACKOFF)
            shelf.not_before = time.monotonic() + shelf.backoff
            log.warning("pool.boot_failed", runtime=boot.runtime, error=repr(error), again_in=shelf.backoff)
        else:
            shelf.backoff = 0.0
            if (claimant := boot.claimant) is not None and not claimant.done():
                claimant.set_result(sandbox)
            else:
                self._put(boot.runtime, sandbox)
        finally:
            self._boots.remove(boot)
            if (claimant := boot.claimant) is not None and not claimant.done():
                claimant.set_result(None)
            self._changed.set()

    def _put(self, runtime: str, sandbox: Waiting) -> None:
        if len(self._shelves[runtime].ready) >= self._size:  # its claimant left after it had been replaced
            self._discard(sandbox)
            return
        try:
            sandbox.freeze()
        except SandboxError as error:
            log.warning("pool.freeze_failed", runtime=runtime, error=str(error))
            self._discard(sandbox)
            return
        lifetime = self._max_age * random.uniform(1 - AGE_JITTER, 1 + AGE_JITTER)  # noqa: S311 - it spreads load
        self._shelves[runtime].ready.append((sandbox, time.monotonic() + lifetime))
        self._changed.set()

    # Ending

    def _discard(self, sandbox: Waiting) -> None:
        self._spawn(f"pool-discard-{sandbox.id}", _close(sandbox))

    def _spawn(self, name: str, work: Coroutine[None, None, None]) -> None:
        task = asyncio.get_running_loop().create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def close(self) -> None:
        """End every boot and every sandbox that waits; those handed out are their owners'."""
        self._closing = True
        for task in self._tasks:
            if not task.get_name().startswith("pool-discard-"):
                task.cancel()
        for shelf in self._shelves.values():
            while shelf.ready:
                self._discard(shelf.ready.popleft()[0])
        while self._tasks:
            await asyncio.wait(set(self._tasks))


async def _close(sandbox: Waiting) -> None:
    try:
        await sandbox.close()
    except Exception as error:  # nobody waits for it: the operator and the sweep remain
        log.error("pool.not_removed", sandbox=sandbox.id, exc_info=error)


@asynccontextmanager
async def open_pool(
    driver: PoolableDriver, *, size: int, cores: int | None = None, max_age: float = MAX_AGE
) -> AsyncGenerator[SandboxPool]:
    """A pool over an open driver until the end of the block; with `size` 0 it keeps none."""
    pool = SandboxPool(driver, size=size, cores=cores or os.cpu_count() or 1, max_age=max_age)
    keeper = asyncio.get_running_loop().create_task(pool.run(), name="pool-keeper")
    try:
        yield pool
    finally:
        keeper.cancel()
        await asyncio.wait([keeper])
        await pool.close()
        if not keeper.cancelled() and (error := keeper.exception()) is not None:
            raise error
