"""Whether this executor may run programs: no more, once the confinement of one of its sandboxes was broken."""

from __future__ import annotations

import asyncio
from typing import Protocol

from prometheus_client import Gauge

from crucible_executor.sandbox.port import SandboxDriver

UNFIT = Gauge("crucible_executor_unfit", "1 when a sandbox's confinement was broken: no work is taken until a restart")


class Announcer(Protocol):
    """Who tells the schedulers of this executor."""

    def announce_no_slots(self) -> None:
        """It takes no more work."""
        ...


class Puller(Protocol):
    """Who takes jobs."""

    async def stop(self, task: asyncio.Task[None]) -> None:
        """Take no more; `task` is what pulls."""
        ...


class Fitness:
    """Fit until `keep` learns otherwise; then for as long as the process lives."""

    def __init__(self) -> None:
        self.why_not = ""
        """Empty while it is fit."""
        UNFIT.set(0)

    async def keep(
        self, driver: SandboxDriver, announcer: Announcer, puller: Puller, pulling: asyncio.Task[None]
    ) -> None:
        """Wait, and when the time has come take no more work. Programs that run go on: each had a sandbox that held."""
        self.why_not = await driver.until_unfit()
        UNFIT.set(1)
        announcer.announce_no_slots()
        await puller.stop(pulling)
