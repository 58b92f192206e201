"""The port between the executor and a sandbox: what goes in, what comes out, and what may be raised.

Owns the plain data of a run and two small protocols. Knows no NATS, no protobuf, no gVisor. A run is four steps, so
that a pool of ready sandboxes can stand between the first and the second:

    sandbox = await driver.boot("python", disk_bytes=limits.disk_bytes)  # it waits, and holds nothing of a caller's
    try:
        await sandbox.deliver(program, limits, sink)  # the program starts: wall time runs from here
        verdict = await sandbox.observe()  # the host's judgement, pipes drained
    finally:
        await sandbox.close()  # always; nothing of the sandbox is left after it

`run_program` in `crucible_executor.sandbox.run` is these four steps.

Bounds that every implementation keeps:

* One sandbox runs one program, once.
* The program has no network, no capability and no way to write to the host; its root is read-only, `/work` (its working
  folder) and `/tmp` are its own and vanish with it.
* Verdicts come from facts of the host alone. Nothing that the program writes can change one.
* Output is always drained, so a program is never slowed by whoever watches it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Protocol

from crucible_executor.sandbox.containment.report import Containment, Look


class Stream(StrEnum):
    """One of the two output streams of a program."""

    STDOUT = "stdout"
    STDERR = "stderr"


class Outcome(StrEnum):
    """The headline of a verdict; the names are those of `ExecutionResult.Outcome`."""

    SUCCEEDED = "SUCCEEDED"
    NONZERO_EXIT = "NONZERO_EXIT"
    SIGNALED = "SIGNALED"
    WALL_TIME_EXCEEDED = "WALL_TIME_EXCEEDED"
    CPU_TIME_EXCEEDED = "CPU_TIME_EXCEEDED"
    MEMORY_EXCEEDED = "MEMORY_EXCEEDED"
    OUTPUT_EXCEEDED = "OUTPUT_EXCEEDED"


class Cause(StrEnum):
    """Who is answerable; the names are those of `ExecutionResult.Cause`."""

    PROGRAM = "PROGRAM"
    LIMIT = "LIMIT"
    SANDBOX = "SANDBOX"
    IMAGE = "IMAGE"
    INFRASTRUCTURE = "INFRASTRUCTURE"


@dataclass(frozen=True, slots=True)
class ProgramFile:
    """A file placed in the working folder before the program starts.

    `path` is relative, with `/` between its parts; no part is empty, `.` or `..`. `data` is its exact content.
    """

    path: str
    data: bytes


@dataclass(frozen=True, slots=True)
class Program:
    """What a caller wants run. Nothing of it reaches a command line or a specification on the host."""

    runtime: str
    """Name of the runtime: `python`, `bash`."""
    files: Sequence[ProgramFile]
    entrypoint: str = ""
    """Path of one of `files`; empty means the runtime's default (`main.py`, `main.sh`)."""
    args: Sequence[str] = ()
    """Arguments after the entrypoint; no NUL."""
    env: Mapping[str, str] = field(default_factory=dict[str, str])
    """Added to the runtime's environment, winning over it; names hold no `=`, nothing holds NUL."""
    stdin: bytes = b""
    """Exactly what the program reads, then the end of file."""


@dataclass(frozen=True, slots=True)
class SandboxLimits:
    """The limits of one run. All are enforced; none is advice."""

    wall_time: float
    """Seconds from delivery to exit."""
    cpu_time: float
    """Seconds of CPU of the whole sandbox from delivery on; checked every 50 ms, so a run may use a little more."""
    memory_bytes: int
    """Memory of the program. The host's limit is this plus `disk_bytes` plus 32 MiB for the sandbox's own needs."""
    disk_bytes: int
    """Size of `/work` and of `/tmp`, each; what both hold together is bounded by memory_bytes + disk_bytes as well."""
    output_bytes: int
    """Kept of each stream; one byte more ends the run with OUTPUT_EXCEEDED."""
    processes: int
    """Processes and threads at once, the program's first included; one more is EAGAIN inside."""
    open_files: int
    """File descriptors of one process; one more is EMFILE inside."""


class OutputSink(Protocol):
    """Receives output as it comes."""

    def write(self, stream: Stream, data: bytes) -> None:
        """Take the next bytes of a stream, in order, at most 128 KiB at once.

        Called in the event loop: it returns at once and does not raise. Only the kept bytes come here, never one beyond
        `output_bytes` of a stream.
        """
        ...


@dataclass(frozen=True, slots=True)
class UsageSample:
    """One look at a running program."""

    elapsed: float
    """Seconds since delivery."""
    cpu_time: float
    """Seconds of CPU since delivery."""
    memory_bytes: int
    """Memory in use, without page cache, the sandbox's own included."""


class PressureScope(StrEnum):
    """Whose waiting was counted; the names are those of `Pressure.Scope`."""

    SANDBOX = "SANDBOX"
    MACHINE = "MACHINE"


@dataclass(frozen=True, slots=True)
class Pressure:
    """Seconds in which some process had to wait for a resource while the run lasted; None: the kernel does not tell."""

    scope: PressureScope
    """The sandbox's processes where the kernel counts by group, else any of this machine's."""
    cpu: float | None
    memory: float | None
    io: float | None


@dataclass(frozen=True, slots=True)
class Usage:
    """What a run took."""

    wall_time: float
    """Seconds from delivery to the end."""
    cpu_time: float
    """Seconds of CPU from delivery to the end, the sandbox's own work for the program included."""
    peak_memory_bytes: int
    """The highest memory seen, without page cache, the sandbox's own included; sampled every 50 ms and at the end."""
    user_time: float | None = None
    """The part of `cpu_time` in the host's user mode; like what follows, None for a run of less than some 10 ms."""
    system_time: float | None = None
    """The rest of it: work of the host's kernel."""
    throttled_time: float | None = None
    """Seconds that a quota kept the sandbox from the CPU; None where the kernel does not tell."""
    pressure: Pressure | None = None
    """What it waited for; None where the kernel counts no pressure."""


@dataclass(frozen=True, slots=True)
class StreamSummary:
    """What was kept of one stream."""

    size_bytes: int
    sha256: str
    """Lower-case hex, of the kept bytes."""
    truncated: bool
    """The program wrote more than was kept."""


@dataclass(frozen=True, slots=True)
class Phases:
    """When each phase of the sandbox came, by the host's wall clock, in UTC."""

    booted: datetime
    """The sandbox began to boot; for a pre-booted one this is long before the run."""
    ready: datetime
    """It waited for a program."""
    started: datetime
    """The program was handed in; wall time runs from here."""
    finished: datetime
    """Its end was known."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """The host's judgement of a finished run."""

    outcome: Outcome
    findings: tuple[Outcome, ...]
    """All that applied, the most decisive first; `outcome` is the first of them."""
    cause: Cause
    """PROGRAM or LIMIT."""
    exit_code: int | None
    """0 to 255 when the program's first process exited by itself."""
    signal: str | None
    """`SIGSEGV` and the like when a signal ended it, ours (`SIGKILL`) included; exactly one of the two is set."""
    usage: Usage
    stdout: StreamSummary
    stderr: StreamSummary
    phases: Phases
    image_digest: str
    containment: Containment | None = None
    """What was known of the sandbox's confinement before the program came; None of a kind that does not look."""


class SandboxError(Exception):
    """Base of all that this port raises."""


class SandboxFault(SandboxError):  # noqa: N818 - a fault of the platform, as opposed to a caller's error
    """There is no verdict, and it is not the program's doing.

    `cause` is SANDBOX (the sandbox died or misbehaved), IMAGE (the runtime's image is missing or broken) or
    INFRASTRUCTURE (this machine could not run it). `detail` is for operators; it holds no output of the program.
    """

    def __init__(self, cause: Cause, detail: str) -> None:
        super().__init__(f"{cause.value}: {detail}")
        self.cause = cause
        self.detail = detail


class SandboxAbandoned(SandboxError):  # noqa: N818 - an order that was followed, no error
    """`abandon` was called before there was a verdict."""


class InvalidProgramError(SandboxError):
    """The program or its limits break the port's rules; nothing was started. The message names the field."""


class Sandbox(Protocol):
    """A booted sandbox: waits for one program, runs it, judges it."""

    @property
    def id(self) -> str:
        """Random, of fixed length."""
        ...

    @property
    def runtime(self) -> str:
        """Name of its runtime."""
        ...

    @property
    def image_digest(self) -> str:
        """`sha256:<hex>` of the root image."""
        ...

    @property
    def disk_bytes(self) -> int:
        """The disk it was booted with; a program is delivered only with this `disk_bytes`."""
        ...

    @property
    def alive(self) -> bool:
        """False as soon as the sandbox is known to have died or was abandoned; a pool discards such a one."""
        ...

    @property
    def after(self) -> Look | None:
        """What was left of it, after `close`; None when nobody looked."""
        ...

    async def deliver(self, program: Program, limits: SandboxLimits, sink: OutputSink) -> None:
        """Hand the program in, once; when this returns it runs and its wall time counts.

        Raises InvalidProgramError (the sandbox is as it was), SandboxFault, SandboxAbandoned.
        """
        ...

    async def observe(self) -> Verdict:
        """Wait for the end and judge it. Both pipes are drained and `sink` has had everything when this returns.

        Call it once, after `deliver`. Raises SandboxFault, SandboxAbandoned. Cancelling the waiting task kills nothing
        by itself: `close` does.
        """
        ...

    def sample(self) -> UsageSample | None:
        """The newest look at what its program uses; None before the first."""
        ...

    def abandon(self) -> None:
        """Kill whatever runs, in any phase, at once; `deliver` and `observe` then raise SandboxAbandoned. Idempotent.

        After a verdict is known it changes nothing.
        """
        ...

    async def close(self) -> None:
        """Leave no process, cgroup or file of the sandbox, in whatever state it is. Idempotent; ends even if cancelled.

        Raises ExceptionGroup with all errors of the clean-up when something could not be removed.
        """
        ...


@dataclass(frozen=True, slots=True)
class RuntimeOffer:
    """A runtime that this machine can run now: its image is there and its self-test passed."""

    name: str
    version: str
    """As the runtime itself reports it, such as `3.11.2`."""
    image_digest: str
    default_limits: SandboxLimits


@dataclass(frozen=True, slots=True)
class Offerable:
    """What this machine can run, and what it cannot although its image is here."""

    offers: tuple[RuntimeOffer, ...]
    refused: Mapping[str, str]
    """Why, by the runtime's name."""


class SandboxDriver(Protocol):
    """Boots sandboxes on this machine."""

    async def boot(self, runtime: str, *, disk_bytes: int) -> Sandbox:
        """Start a sandbox and wait until it is ready for a program.

        Raises SandboxFault: IMAGE when the runtime is not here, INFRASTRUCTURE when this machine cannot boot one,
        SANDBOX when it died while booting. Cancelling it leaves nothing behind.
        """
        ...

    async def until_unfit(self) -> str:
        """Wait until no program may be given to this machine's sandboxes any more, and say why; it stays so."""
        ...

    async def offerable_runtimes(self) -> Offerable:
        """Run each runtime's self-test in a sandbox and offer those that passed; SandboxFault without any image."""
        ...
