"""Starts the steps of a stack in order, keeps its daemons alive, and ends them in reverse.

Knows no noun of Crucible's.
"""

import asyncio
import os
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from crucible_local import kernel, logfiles
from crucible_local.kernel import ProcessIdentity
from crucible_local.specification import Daemon, Gate, Job, Stage, Step
from crucible_local.state import ProcessState

FIRST_BACKOFF = 0.2
LAST_BACKOFF = 10.0
STEADY_SECONDS = 30.0
"""A daemon that lived this long starts again without delay."""
STARTS_BEFORE_READY = 3
"""A daemon that dies this often before it was ever ready cannot start."""
PROBE_SECONDS = 0.1
HOUSEKEEPING_SECONDS = 5.0
KILL_SECONDS = 5.0


class StartError(RuntimeError):
    """A step failed; the message names it and ends with its last words."""


@dataclass
class _Run:
    """One step and what became of it."""

    step: Step
    state: ProcessState
    process: asyncio.subprocess.Process | None = None
    keeper: asyncio.Task[None] | None = None
    ready: asyncio.Event = field(default_factory=asyncio.Event)


class Supervisor:
    """Runs stages; use it in the main thread.

    `changed` is called with the states after each change.
    """

    def __init__(self, stages: Sequence[Stage], *, logs: Path, changed: Callable[[list[ProcessState]], None]) -> None:
        self._logs = logs
        self._changed = changed
        self._stages = [[self._describe(step) for step in stage] for stage in stages]
        self._stopping = False

    def _describe(self, step: Step) -> _Run:
        state = ProcessState(name=step.name, kind="gate")
        match step:
            case Daemon():
                state.kind, state.address, state.ready_url = "daemon", step.address, step.ready_url
            case Job():
                state.kind, state.detail = "job", step.purpose
            case Gate():
                state.detail = step.purpose
        if not isinstance(step, Gate):
            state.log = str(self._log(step.name))
        return _Run(step=step, state=state)

    @property
    def states(self) -> list[ProcessState]:
        """All steps, in order."""
        return [run.state for stage in self._stages for run in stage]

    async def start(self) -> None:
        """Returns when every stage is ready. Raises StartError; `stop` is due in any case."""
        self._logs.mkdir(parents=True, exist_ok=True)
        self._note()
        for stage in self._stages:
            try:
                async with asyncio.TaskGroup() as group:
                    for run in stage:
                        group.create_task(self._bring_up(run), name=f"start {run.step.name}")
            except* StartError as errors:
                raise StartError(str(errors.exceptions[0])) from None

    async def watch(self) -> None:
        """Bounds the logs and reaps adopted orphans until cancelled. Raises what ended a daemon's keeper."""
        seen: set[int] = set()
        while True:
            await asyncio.sleep(HOUSEKEEPING_SECONDS)
            dead = kernel.dead_children()
            kernel.reap(dead & seen)  # our own are collected at once by whoever waits for them
            seen = dead
            for run in (run for stage in self._stages for run in stage):
                if run.keeper is not None and run.keeper.done():
                    await run.keeper
            for state in self.states:
                if state.log:
                    logfiles.cap(Path(state.log))

    async def stop(self) -> None:
        """Ends all, the last step first: each leaves while what it works with is there.

        Orphans of theirs that this process adopted are left to it.
        """
        self._stopping = True
        for stage in reversed(self._stages):
            for run in reversed(stage):
                await self._bring_down(run)

    async def _bring_up(self, run: _Run) -> None:
        started = time.monotonic()
        match run.step:
            case Daemon() as daemon:
                run.keeper = asyncio.create_task(self._keep(run, daemon), name=f"keep {daemon.name}")
                ready = asyncio.create_task(run.ready.wait(), name=f"ready {daemon.name}")
                try:
                    await asyncio.wait((ready, run.keeper), return_when=asyncio.FIRST_COMPLETED)
                finally:
                    ready.cancel()
                if not run.ready.is_set():
                    await run.keeper
            case Job() as job:
                await self._do(run, job)
            case Gate() as gate:
                self._note(run, condition="starting")
                await _becomes_true(gate.ready)
                self._note(run, condition="done")
        run.state.seconds = round(time.monotonic() - started, 2)
        self._note()

    async def _do(self, run: _Run, job: Job) -> None:
        process = await self._spawn(run, job)
        code = await process.wait()
        run.process = run.state.identity = None
        if code != 0 and not self._stopping:
            self._note(run, condition="failed", detail=_ending(code))
            raise StartError(f"{job.purpose}: {job.name} {_ending(code)}\n{self._last_words(job)}")
        self._note(run, condition="done")

    async def _keep(self, run: _Run, daemon: Daemon) -> None:
        """Starts the daemon again and again. Raises StartError when it never becomes ready."""
        backoff = FIRST_BACKOFF
        while not self._stopping:
            begun = time.monotonic()
            daemon.cleanup()
            ending = await self._live_once(run, daemon)
            if self._stopping:
                break
            run.state.restarts += 1
            if not run.ready.is_set() and run.state.restarts >= STARTS_BEFORE_READY:
                self._note(run, condition="failed", detail=ending)
                raise StartError(f"{daemon.name} cannot start: it {ending}\n{self._last_words(daemon)}")
            if time.monotonic() - begun > STEADY_SECONDS:
                backoff = FIRST_BACKOFF
            self._note(run, condition="restarting", detail=f"{ending}; starts again in {backoff:.1f} s")
            await asyncio.sleep(backoff)
            backoff = min(LAST_BACKOFF, backoff * 2)

    async def _live_once(self, run: _Run, daemon: Daemon) -> str:
        """One life of the daemon; says how it ended."""
        try:
            process = await self._spawn(run, daemon)
        except OSError as error:
            return f"could not be started: {error}"
        probe = asyncio.create_task(self._await_ready(run, daemon), name=f"probe {daemon.name}")
        try:
            return _ending(await process.wait())
        finally:
            probe.cancel()
            run.process = run.state.identity = None

    async def _spawn(self, run: _Run, step: Daemon | Job) -> asyncio.subprocess.Process:
        with self._log(step.name).open("ab") as log:
            run.process = await asyncio.create_subprocess_exec(
                *step.command, env=dict(step.env), cwd="/", stdin=asyncio.subprocess.DEVNULL, stdout=log, stderr=log,
                start_new_session=True, umask=step.umask if isinstance(step, Daemon) else 0o022,
            )  # fmt: skip
        run.state.identity = ProcessIdentity.of(run.process.pid)
        self._note(run, condition="starting")
        return run.process

    async def _await_ready(self, run: _Run, daemon: Daemon) -> None:
        await _becomes_true(daemon.ready)
        if run.process is not None and run.process.returncode is None:  # it was this one that answered
            run.ready.set()
            self._note(run, condition="ready", detail="")

    async def _bring_down(self, run: _Run) -> None:
        process = run.process
        if process is not None and process.returncode is None:
            self._note(run, condition="stopping")
            daemon = run.step if isinstance(run.step, Daemon) else None
            _signal_group(process.pid, daemon.stop_signal if daemon else signal.SIGTERM, leader_only=daemon is not None)
            try:
                async with asyncio.timeout(daemon.grace_seconds if daemon else KILL_SECONDS):
                    await process.wait()
            except TimeoutError:
                _signal_group(process.pid, signal.SIGKILL, leader_only=False)
                await process.wait()
        if run.keeper is not None:
            run.keeper.cancel()
            await asyncio.gather(run.keeper, return_exceptions=True)
        if isinstance(run.step, Daemon) and run.keeper is not None:
            run.step.cleanup()
        if run.state.condition not in ("done", "failed"):
            self._note(run, condition="stopped")

    def _log(self, name: str) -> Path:
        return self._logs / f"{name}.log"

    def _last_words(self, step: Daemon | Job) -> str:
        log = self._log(step.name)
        words = logfiles.tail(log)
        return f"the last lines of {log}:\n{words}" if words else f"{log} is empty"

    def _note(self, run: _Run | None = None, **changes: object) -> None:
        if run is not None:
            for name, value in changes.items():
                setattr(run.state, name, value)
        self._changed(self.states)


async def _becomes_true(probe: Callable[[], bool]) -> None:
    while not await asyncio.to_thread(probe):  # noqa: ASYNC110 - another process makes it true, and tells nobody
        await asyncio.sleep(PROBE_SECONDS)


def _ending(code: int) -> str:
    if code >= 0:
        return f"ended with exit code {code}"
    try:
        return f"was killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"was killed by signal {-code}"


def _signal_group(leader: int, number: signal.Signals, *, leader_only: bool) -> None:
    """A daemon ends its own children in its own order; a job's children get the signal with it."""
    try:
        if leader_only:
            os.kill(leader, number)
        else:
            os.killpg(leader, number)
    except ProcessLookupError:
        return
