"""The runs an executor holds, and its slots: what is running, what is kept until it is settled."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence

from crucible.internal.v1 import heartbeat_pb2, job_pb2
from crucible_chassis.logs import get_logger
from crucible_chassis.tasks import TaskSupervisor
from crucible_executor.run import Run, Tools

KILL_SECONDS = 2.0
"""After the grace: for sandboxes to be gone."""
FLUSH_SECONDS = 2.0
"""After that: for the last messages to reach the broker."""

log = get_logger(__name__)


class HeldRuns:
    """Every run from its pull until it is settled, fenced or cancelled.

    `began` is called after each pull, so that a heartbeat tells of it soon.
    """

    def __init__(self, tools: Tools, tasks: TaskSupervisor, *, slots: int, began: Callable[[], None]) -> None:
        self._tools = tools
        self._tasks = tasks
        self._began = began
        self._free = asyncio.Semaphore(slots)
        self._held: dict[str, Run] = {}
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
        run = Run(job, headers, self._tools, sandbox_gone=self._free.release)
        self._held[run.id] = run
        self._publishing[run.id] = self._tasks.spawn_job(f"journal-{run.id}", run.journal.run())
        executing = self._tasks.spawn_job(f"run-{run.id}", run.execute())
        self._executing[run.id] = executing
        executing.add_done_callback(lambda _task: self._ended(run))
        self._began()

    def held(self) -> Sequence[heartbeat_pb2.HeldRun]:
        """Every run as a heartbeat names it."""
        return [run.held() for run in self._held.values()]

    def confirm(self, run_id: str, stored: int, asked_at: float) -> None:
        """The store has the run's messages below `stored`."""
        if (run := self._held.get(run_id)) is not None:
            run.journal.confirm(stored, asked_at)

    def abandon(self, run_id: str, reason: str) -> None:
        """Kills the run if it runs, and forgets it."""
        run = self._held.pop(run_id, None)
        if run is None:
            return
        run.abandon(reason)
        self._publishing.pop(run_id).cancel()
        if run_id not in self._executing:
            run.release()

    def abandon_token(self, token: str) -> None:
        """The same for every run of a lease."""
        for run_id in [run_id for run_id, run in self._held.items() if run.job.token == token]:
            self.abandon(run_id, "CANCELLED")

    async def drain(self, grace: float) -> None:
        """Gives running programs `grace` seconds, ends the rest, and sees to it that the broker has all messages."""
        await self._wait_executing(grace)
        for run_id in list(self._executing):
            if (run := self._held.get(run_id)) is not None:
                run.give_up("the executor was stopped")
        await self._wait_executing(KILL_SECONDS)
        try:
            async with asyncio.timeout(FLUSH_SECONDS):
                for run in list(self._held.values()):
                    await run.journal.flushed.wait()
        except TimeoutError:
            unsent = [run.id for run in self._held.values() if not run.journal.flushed.is_set()]
            log.error("drain.messages_lost", runs=unsent)

    async def _wait_executing(self, seconds: float) -> None:
        if self._executing:
            await asyncio.wait(set(self._executing.values()), timeout=seconds)

    def _ended(self, run: Run) -> None:
        self._executing.pop(run.id, None)
        if run.id not in self._held:
            run.release()
