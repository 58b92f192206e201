"""The runtimes of the store, remembered for a short time."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from typing import Protocol

from crucible.v1 import runtime_pb2

FRESH_SECONDS = 30.0
"""What was read is used for this long."""
MISS_SECONDS = 1.0
"""An unknown name makes the store be asked again, at most this often."""


class RuntimeSource(Protocol):
    """Where runtimes are read."""

    async def runtimes(self) -> Sequence[runtime_pb2.Runtime]:
        """All that the platform knows. Raises ServiceError."""
        ...


class RuntimeCatalogue:
    """Runtimes by name. A name that is not there is looked for in the store again before it counts as unknown."""

    def __init__(self, source: RuntimeSource) -> None:
        self._source = source
        self._known: Mapping[str, runtime_pb2.Runtime] = {}
        self._read_at = -FRESH_SECONDS
        self._reading = asyncio.Lock()

    async def naming(self, names: set[str]) -> Mapping[str, runtime_pb2.Runtime]:
        """All runtimes, fresh enough to judge these names. Raises ServiceError."""
        if not self._serves(names):
            async with self._reading:
                if not self._serves(names):
                    self._known = {runtime.name: runtime for runtime in await self._source.runtimes()}
                    self._read_at = time.monotonic()
        return self._known

    def _serves(self, names: set[str]) -> bool:
        age = time.monotonic() - self._read_at
        return age < (FRESH_SECONDS if names <= self._known.keys() else MISS_SECONDS)
