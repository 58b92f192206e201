"""A stack of clean-up steps that runs once, in reverse, to its end, whatever a step raises and whoever is cancelled."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

Step = Callable[[], Awaitable[None] | None]


class Cleanup:
    """Steps are pushed as resources are taken; `run` gives all of them back."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._steps: list[tuple[str, Step]] = []
        self._task: asyncio.Task[None] | None = None

    def push(self, what: str, step: Step) -> None:
        """Add a step; `what` stands in the error that it may cause."""
        if self._task is not None:
            raise RuntimeError(f"{self._name}: the clean-up has begun")
        self._steps.append((what, step))

    async def run(self) -> None:
        """Run every step, once. A second call waits for the first; a cancelled caller leaves it running to its end.

        Raises ExceptionGroup with every error of a step.
        """
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._run(), name=f"cleanup-{self._name}")
        await asyncio.shield(self._task)

    async def _run(self) -> None:
        errors: list[Exception] = []
        while self._steps:
            what, step = self._steps.pop()
            try:
                pending = step()
                if pending is not None:
                    await pending
            except Exception as error:  # noqa: BLE001 - every step runs; all errors are raised together below
                error.add_note(f"while cleaning up {self._name}: {what}")
                errors.append(error)
        if errors:
            raise ExceptionGroup(f"the clean-up of {self._name} is not complete", errors)
