"""The runs an executor holds, and its slots: what is running, what is kept until it is settled."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence

from crucible.internal.v1 import heartbeat_pb2, job_pb2
from crucible_chassis.logs import get_logger
from crucible_chassis.tasks import TaskSupervisor
from crucible_executor.attempts import Attempt, Tools

KILL_SECONDS = 2.0
"""After the grace: for sandboxes to be gone."""
FLUSH_SECONDS = 2.0
"""After that: for the last messages to reach the broker."""

log = get_logger(__name__)


class HeldRuns:
    """Every run from its pull until it is settled, fenced or cancelled.

    `began` is called after each pull, so that a heartbeat tells of it at once.
    """

    def __init__(self, tools: Tools, tasks: TaskSupervisor, *, slots: int, began: Callable[[], None]) -> None:
        self.slots = slots
        self._tools = tools
        self._tasks = tasks
        self._began = began
        self._free = asyncio.Semaphore(slots)
        self._held: dict[str, Attempt] = {}
        self._executing: dict[str, asyncio.Task[None]] = {}
        self._publishing: dict[str, asyncio.Task[None]] = {}

    async def slot(self) -> None:
        """Waits for a free slot and takes it."""
        await self._free.acquire()

    def give_back_slot(self) -> None:
        """A slot that was taken for no run after all."""
        self._free.release()

    def begin(self, job: job_pb2.Job, headers: Mapping[str, str]) -> None:
        """Starts a run of a job in the slot that was taken for it."""
        attempt = Attempt(job, headers, self._tools, sandbox_gone=self._free.release)
        self._held[attempt.run] = attempt
        self._publishing[attempt.run] = self._tasks.spawn_job(f"journal-{attempt.run}", attempt.journal.run())
        executing = self._tasks.spawn_job(f"attempt-{attempt.run}", attempt.execute())
        self._executing[attempt.run] = executing
        executing.add_done_callback(lambda _task: self._ended(attempt))
        self._began()

    def held(self) -> Sequence[heartbeat_pb2.HeldRun]:
        """Every run as a heartbeat names it."""
        return [attempt.held() for attempt in self._held.values()]

    def confirm(self, run: str, stored: int, asked_at: float) -> None:
        """The store has the run's messages below `stored`."""
        if (attempt := self._held.get(run)) is not None:
            attempt.journal.confirm(stored, asked_at)

    def abandon(self, run: str, reason: str) -> None:
        """Kills the run if it runs, and forgets it."""
        attempt = self._held.pop(run, None)
        if attempt is None:
            return
        attempt.abandon(reason)
        self._publishing.pop(run).cancel()
        if run not in self._executing:
            attempt.release()

    def abandon_token(self, token: str) -> None:
        """The same for every run of a lease."""
        for run in [run for run, attempt in self._held.items() if attempt.job.token == token]:
            self.abandon(run, "CANCELLED")

    async def drain(self, grace: float) -> None:
        """Gives running programs `grace` seconds, ends the rest, and sees to it that the broker has all messages."""
        await self._wait_executing(grace)
        for run in list(self._executing):
            if (attempt := self._held.get(run)) is not None:
                attempt.give_up("the executor was stopped")
        await self._wait_executing(KILL_SECONDS)
        try:
            async with asyncio.timeout(FLUSH_SECONDS):
                for attempt in list(self._held.values()):
                    await attempt.journal.flushed.wait()
        except TimeoutError:
            unsent = [attempt.run for attempt in self._held.values() if not attempt.journal.flushed.is_set()]
            log.error("drain.messages_lost", runs=unsent)

    async def _wait_executing(self, seconds: float) -> None:
        if self._executing:
            await asyncio.wait(set(self._executing.values()), timeout=seconds)

    def _ended(self, attempt: Attempt) -> None:
        self._executing.pop(attempt.run, None)
        if attempt.run not in self._held:
            attempt.release()
