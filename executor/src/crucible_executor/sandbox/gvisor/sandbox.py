"""One gVisor sandbox through a run: its states, the limits put on it, and the facts gathered for its verdict."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections.abc import Callable
from datetime import UTC, datetime
from enum import Enum, auto
from typing import Final

from crucible_chassis.logs import get_logger
from crucible_executor.sandbox.capture import CappedLog, OutputCapture, PipeReader
from crucible_executor.sandbox.cgroup import Cgroup, CgroupError, OomFacts
from crucible_executor.sandbox.containment.agent import REPORT_BYTES
from crucible_executor.sandbox.containment.alarm import Alarm, Breach
from crucible_executor.sandbox.containment.probes import probe_set
from crucible_executor.sandbox.containment.report import Containment, Look, load, unchecked
from crucible_executor.sandbox.containment.trials import Expected
from crucible_executor.sandbox.gvisor import bundle
from crucible_executor.sandbox.gvisor.guest import Guest
from crucible_executor.sandbox.gvisor.link import Link
from crucible_executor.sandbox.image import BuiltImage
from crucible_executor.sandbox.metering import Meter
from crucible_executor.sandbox.port import (
    Cause,
    InvalidProgramError,
    OutputSink,
    Phases,
    Program,
    SandboxAbandoned,
    SandboxFault,
    SandboxLimits,
    Stream,
    UsageSample,
    Verdict,
)
from crucible_executor.sandbox.verdict import Facts, Kill, judge

SEND_TIMEOUT: Final = 10.0
"""Seconds for a waiting starter to take its program; no more than the deadline's grace, which covers it."""
TICK: Final = 0.002
"""Seconds by which a timer may be early: uvloop counts milliseconds, and nobody is stopped before the limit."""
SAID_BYTES: Final = 2048
AHEAD_PATIENCE: Final = 6
"""So many times as long may a boot take that gives way to programs."""

_PACKAGE: Final = {"python": bundle.for_python, "sh": bundle.for_sh}
_READY, _GO, _ERROR = b"R", "G", "E"

log = get_logger(__name__)


class State(Enum):
    """Where a sandbox stands; see `_MOVES`."""

    NEW = auto()
    BOOTING = auto()
    READY = auto()
    DELIVERING = auto()
    RUNNING = auto()
    JUDGED = auto()
    CLOSED = auto()


_MOVES: Final = {
    State.NEW: {State.BOOTING, State.CLOSED},
    State.BOOTING: {State.READY, State.CLOSED},
    State.READY: {State.DELIVERING, State.CLOSED},
    State.DELIVERING: {State.RUNNING, State.CLOSED},
    State.RUNNING: {State.JUDGED, State.CLOSED},
    State.JUDGED: {State.CLOSED},
    State.CLOSED: {State.CLOSED},
}


class GvisorSandbox:
    """See `Sandbox`, the port."""

    def __init__(
        self,
        identity: str,
        link: Link,
        cgroup: Cgroup,
        image: BuiltImage,
        disk_bytes: int,
        *,
        boot_timeout: float,
        alarm: Alarm,
        on_closed: Callable[[GvisorSandbox], None],
    ) -> None:
        self._on_closed = on_closed
        self._image = image
        self._disk_bytes = disk_bytes
        self._boot_timeout = boot_timeout
        self._alarm = alarm
        self._containment: Containment | None = None
        self._after: Look | None = None
        self._guest = Guest(identity, link, cgroup, on_exit=self._exited, on_gone=self._end)
        self._state = State.NEW
        self._ended = asyncio.Event()
        self._ended_at = 0.0
        self._booted = self._ready = self._started = self._finished = datetime.now(UTC)
        self._kill: Kill | None = None
        self._wait_status: int | None = None
        self._abandoned = False
        self._failure: CgroupError | None = None
        self._said = CappedLog(SAID_BYTES)
        self._outputs: list[PipeReader] = []
        self._captures: list[OutputCapture] = []
        self._wall_timer: asyncio.TimerHandle | None = None
        self._meter: Meter | None = None
        self._ahead = False
        self._boot_until: asyncio.Timeout | None = None

    @property
    def id(self) -> str:
        """See `Sandbox`."""
        return self._guest.identity

    @property
    def runtime(self) -> str:
        """See `Sandbox`."""
        return self._image.definition.name

    @property
    def image_digest(self) -> str:
        """See `Sandbox`."""
        return self._image.digest

    @property
    def disk_bytes(self) -> int:
        """See `Sandbox`."""
        return self._disk_bytes

    @property
    def alive(self) -> bool:
        """See `Sandbox`."""
        return not self._ended.is_set() and self._state is not State.CLOSED

    def cpu_seconds(self) -> float:
        """CPU time that it took so far, its boot included; raises CgroupError."""
        return self._guest.cgroup.cpu_seconds()

    async def boot(self) -> None:
        """Start it and wait for the starter's word; the caller closes it, also after an error. Raises SandboxFault."""
        self._move(State.BOOTING)
        self._booted = datetime.now(UTC)
        patience = self._boot_timeout * (AHEAD_PATIENCE if self._ahead else 1)
        try:
            async with asyncio.timeout(patience) as self._boot_until:
                await self._come_up()
        except TimeoutError as error:
            seconds = (datetime.now(UTC) - self._booted).total_seconds()
            raise SandboxFault(Cause.SANDBOX, self._boot_detail(f"not ready after {seconds:.1f} s")) from error
        except OSError as error:
            raise SandboxFault(Cause.SANDBOX, self._boot_detail(f"it died while booting: {error}")) from error
        except ValueError as error:
            raise SandboxFault(Cause.SANDBOX, self._boot_detail(f"it died while it was looked at: {error}")) from error
        finally:
            self._boot_until = None
        self._ready = datetime.now(UTC)
        self._move(State.READY)

    async def _come_up(self) -> None:
        """Raises SandboxFault, OSError, ValueError."""
        digest = await self._guest.start(self.runtime, self._disk_bytes, ahead=self._ahead)
        inside = await self._look_inside()
        if inside.broken:  # it may die of the same
            self._alarm.take(self.id, self.runtime, Containment(inside, await self._look_from_outside()))
        word = await asyncio.get_running_loop().sock_recv(self._guest.channel, len(_READY))
        if word != _READY:
            raise SandboxFault(Cause.SANDBOX, self._boot_detail("it died while booting"))
        if digest != self.image_digest:
            raise SandboxFault(Cause.IMAGE, f"the image of {self.runtime} was replaced a moment ago")
        self._guest.ready()
        self._containment = Containment(inside, await self._look_from_outside())
        self._alarm.take(self.id, self.runtime, self._containment)

    def give_way(self) -> None:
        """Boot with hardly any weight beside programs; before `boot`."""
        self._ahead = True

    def hurry(self) -> None:
        """See `Waiting`."""
        if self._state is State.BOOTING:
            self._guest.hurry()
            if self._boot_until is not None and not self._boot_until.expired():
                # Who waits for it now waits no longer than for one of his own.
                self._boot_until.reschedule(asyncio.get_running_loop().time() + self._boot_timeout)
        elif self._state is State.NEW:
            self._ahead = False

    @property
    def containment(self) -> Containment | None:
        """What is known of its confinement, once it is booted."""
        return self._containment

    @property
    def after(self) -> Look | None:
        """What was left of it, after `close`; None when nobody could look."""
        return self._after

    def freeze(self) -> None:
        """See `Waiting`."""
        try:
            self._guest.freeze()
        except OSError as error:
            raise SandboxFault(Cause.INFRASTRUCTURE, f"it cannot be stopped: {error}") from error

    async def deliver(self, program: Program, limits: SandboxLimits, sink: OutputSink) -> None:
        """See `Sandbox`."""
        self._check_abandoned()
        self._alarm.check()
        launch = bundle.prepare(self._image.definition, program, limits)
        if limits.disk_bytes != self._disk_bytes:
            raise InvalidProgramError(f"limits.disk_bytes: this sandbox was booted with {self._disk_bytes}")
        package = _PACKAGE[self._image.definition.starter](launch)
        self._move(State.DELIVERING)
        try:
            default = self._image.definition.limits.default
            if (limits.memory_bytes, limits.processes) != (default.memory_bytes, default.processes):
                await self._guest.bound(limits.memory_bytes, limits.processes)
            self._guest.claim(limits.wall_time)
            if self._ended.is_set():
                raise SandboxFault(Cause.SANDBOX, "it died before it had its program")
            self._meter = Meter(self._guest.cgroup, limits.cpu_time, self._cpu_exceeded, self._failed)
            self._meter.prime()
            self._start_capture(limits.output_bytes, sink)
            async with asyncio.timeout(SEND_TIMEOUT):
                await self._send(package)
        except SandboxFault:
            self._check_abandoned()
            raise
        except TimeoutError as error:
            raise SandboxFault(Cause.SANDBOX, "the starter did not take its program") from error
        except ConnectionError as error:
            self._check_abandoned()
            raise SandboxFault(Cause.SANDBOX, "it died before it had its program") from error
        except (OSError, CgroupError) as error:
            raise SandboxFault(Cause.INFRASTRUCTURE, f"the program cannot be delivered: {error}") from error
        self._check_abandoned()
        self._started = datetime.now(UTC)
        self._meter.start()
        loop = asyncio.get_running_loop()
        self._wall_timer = loop.call_later(limits.wall_time + TICK, self._limit_reached, Kill.WALL_TIME)
        self._guest.stdin.feed(program.stdin)
        self._move(State.RUNNING)

    async def observe(self) -> Verdict:
        """See `Sandbox`."""
        if self._state is not State.RUNNING or self._meter is None:
            self._check_abandoned()
            raise RuntimeError(f"observe in state {self._state.name}")
        await self._ended.wait()
        self._stop_watching()
        try:
            self._guest.poll()
            if self._wait_status is None and self._kill is None and self._out_of_time():
                self._kill = Kill.WALL_TIME  # this process was stopped meanwhile, and its launcher kept the deadline
            if self._wait_status is None or self._kill is not None:
                await self._guest.end()
                self._guest.poll()
            self._meter.finish()
            oom = self._guest.cgroup.oom()
        except SandboxFault:
            self._check_abandoned()
            raise
        except CgroupError as error:
            self._check_abandoned()
            raise SandboxFault(Cause.INFRASTRUCTURE, f"the sandbox cannot be watched: {error}") from error
        for reader in self._outputs:
            reader.drain()
        self._take_said()
        self._check_abandoned()
        if self._failure is not None:
            raise SandboxFault(
                Cause.INFRASTRUCTURE, f"the sandbox cannot be watched: {self._failure}"
            ) from self._failure
        return self._verdict(self._meter, oom)

    def sample(self) -> UsageSample | None:
        """See `Sandbox`."""
        return self._meter.latest if self._meter is not None else None

    def abandon(self) -> None:
        """See `Sandbox`."""
        if self._state in (State.JUDGED, State.CLOSED):
            return
        self._abandoned = True
        self._kill_now()
        self._end()

    async def close(self) -> None:
        """See `Sandbox`."""
        self._move(State.CLOSED)
        self._stop_watching()
        self._end()
        try:
            await self._guest.cleanup.run()
        finally:
            self._look_after()
        self._on_closed(self)

    # What happens to it

    def _exited(self, wait_status: int) -> None:
        self._wait_status = wait_status
        if self._state is State.RUNNING:  # before, somebody may wait for the end of what it says
            # It takes itself down when it is removed, not now: that holds up a core for milliseconds, in the kernel,
            # where no weight and no priority help whoever is to publish and store the verdict.
            with contextlib.suppress(OSError):
                self._guest.freeze()
        self._end()

    def _end(self) -> None:
        if not self._ended.is_set():
            self._ended_at = time.monotonic()
            self._finished = datetime.now(UTC)
            self._ended.set()

    def _limit_reached(self, kill: Kill) -> None:
        self._guest.poll()  # what ended before we came to look, ended by itself
        if not self._ended.is_set():
            self._kill = kill
            self._kill_now()
            self._end()

    def _out_of_time(self) -> bool:
        return self._wall_timer is not None and self._ended_at >= self._wall_timer.when()

    def _cpu_exceeded(self) -> None:
        self._limit_reached(Kill.CPU_TIME)

    def _output_exceeded(self) -> None:
        self._limit_reached(Kill.OUTPUT)

    def _failed(self, error: CgroupError) -> None:
        self._failure = error
        self._end()

    def _kill_now(self) -> None:
        self._guest.kill()

    # A look at its confinement

    async def _look_inside(self) -> Look:
        """From inside, by the agent that it begins with. Raises OSError, ValueError."""
        probes = probe_set()
        if not self._guest.agent:
            return unchecked(probes.checks, "there is no probe for machines of this kind")
        loop, channel = asyncio.get_running_loop(), self._guest.channel
        await loop.sock_sendall(channel, probes.script)
        report = bytearray()
        while len(report) < REPORT_BYTES and (part := await loop.sock_recv(channel, REPORT_BYTES - len(report))):
            report += part
        most = self._image.definition.limits.maximum
        return probes.judge(bytes(report), Expected(self._disk_bytes, most.processes, most.open_files))

    async def _look_from_outside(self) -> Look:
        """By its launcher. Raises SandboxFault."""
        try:
            return load(await self._guest.inspect())
        except ValueError as error:
            raise SandboxFault(Cause.SANDBOX, f"it cannot be looked at: {error}") from error

    def _look_after(self) -> None:
        """What its launcher saw of its removal; not of one that was never up, and not when the launcher is gone."""
        if self._after is not None or self._containment is None or self._guest.after is None:
            return
        try:
            self._after = load(self._guest.after)
        except ValueError as error:
            log.warning("containment.not_looked_after", sandbox=self.id, error=str(error))
            return
        if broken := self._after.broken:
            self._alarm.ring(Breach(self.id, self.runtime, broken))

    # Its parts

    def _start_capture(self, output_bytes: int, sink: OutputSink) -> None:
        for stream, descriptor in zip(Stream, self._guest.take_outputs(), strict=True):
            capture = OutputCapture(stream, output_bytes, sink, self._output_exceeded)
            reader = PipeReader(descriptor, capture.take)
            self._guest.cleanup.push(f"close its {stream.value}", reader.close)
            self._captures.append(capture)
            self._outputs.append(reader)
            reader.start()

    async def _send(self, package: bytes) -> None:
        await asyncio.get_running_loop().sock_sendall(self._guest.channel, package)
        self._guest.channel.shutdown(socket.SHUT_WR)

    def _take_said(self) -> None:
        with contextlib.suppress(OSError):
            self._said.take(self._guest.channel.recv(SAID_BYTES))

    def _stop_watching(self) -> None:
        if self._wall_timer is not None:
            self._wall_timer.cancel()
        if self._meter is not None:
            self._meter.stop()

    def _verdict(self, meter: Meter, oom: OomFacts) -> Verdict:
        stdout, stderr = (capture.summary() for capture in self._captures)
        said = self._said.text
        judgement = judge(
            Facts(
                kill=self._kill,
                wait_status=self._wait_status,
                begun=said.startswith(_GO),
                cpu_exceeded=meter.cpu_exceeded,
                output_exceeded=stdout.truncated or stderr.truncated,
                oom_kills=oom.kills,
                memory_limit_reached=oom.limit_reached,
                starter_error=said[1:] if said.startswith(_ERROR) else "",
                panic=self._guest.panic.text,
                log=self._guest.log.text,
                supervisor_code=self._guest.supervisor_code,
            )
        )
        self._move(State.JUDGED)
        return Verdict(
            outcome=judgement.outcome,
            findings=judgement.findings,
            cause=judgement.cause,
            exit_code=judgement.exit_code,
            signal=judgement.signal,
            usage=meter.usage(self._ended_at),
            stdout=stdout,
            stderr=stderr,
            phases=Phases(self._booted, self._ready, self._started, max(self._started, self._finished)),
            image_digest=self.image_digest,
            containment=self._containment,
        )

    def _boot_detail(self, what: str) -> str:
        self._guest.poll()
        words = (self._guest.boot_noise(), self._guest.log.text, self._guest.panic.text)
        return "; ".join((what, *(word for word in words if word)))[:SAID_BYTES]

    def _check_abandoned(self) -> None:
        if self._abandoned:
            raise SandboxAbandoned(f"sandbox {self.id} was abandoned")

    def _move(self, state: State) -> None:
        if state not in _MOVES[self._state]:
            raise RuntimeError(f"sandbox {self.id}: no way from {self._state.name} to {state.name}")
        self._state = state
