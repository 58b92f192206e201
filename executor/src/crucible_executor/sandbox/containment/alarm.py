"""The alarm of a node: the first sandbox whose confinement is broken rings it, and it rings until the process ends."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from crucible_chassis.logs import get_logger
from crucible_executor.sandbox.containment.report import Containment, Finding, words
from crucible_executor.sandbox.port import Cause, SandboxFault

_DETAIL_CHARS: Final = 900

log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Breach:
    """What was broken, and of which sandbox."""

    sandbox: str
    runtime: str
    findings: tuple[Finding, ...]

    def __str__(self) -> str:
        return f"the confinement of sandbox {self.sandbox} ({self.runtime}) is broken: {words(self.findings)}"


class ConfinementError(SandboxFault):
    """No program is given to any sandbox of this node any more."""

    def __init__(self, breach: Breach) -> None:
        super().__init__(Cause.INFRASTRUCTURE, str(breach)[:_DETAIL_CHARS])


class Alarm:
    """One for a driver."""

    def __init__(self) -> None:
        self.breach: Breach | None = None
        """What rang it."""
        self._latest: dict[str, Containment] = {}
        self._rung = asyncio.Event()

    @property
    def latest(self) -> Mapping[str, Containment]:
        """What was found of the newest sandbox of each runtime."""
        return self._latest

    def check(self) -> None:
        """Raises ConfinementError once it rang."""
        if self.breach is not None:
            raise ConfinementError(self.breach)

    def take(self, sandbox: str, runtime: str, found: Containment) -> None:
        """What was found of a sandbox before its program came; raises ConfinementError when it is broken."""
        self._latest[runtime] = found
        if broken := found.broken:
            self.ring(Breach(sandbox, runtime, broken))
            raise ConfinementError(Breach(sandbox, runtime, broken))

    def ring(self, breach: Breach) -> None:
        """A confinement is broken."""
        say = log.critical if self.breach is None else log.error
        say(
            "containment.broken",
            sandbox=breach.sandbox,
            runtime=breach.runtime,
            checks=[finding.check.value for finding in breach.findings],
            detail=words(breach.findings),
        )
        if self.breach is None:
            self.breach = breach
            self._rung.set()

    async def rung(self) -> Breach:
        """Wait until it rings."""
        await self._rung.wait()
        assert self.breach is not None
        return self.breach
