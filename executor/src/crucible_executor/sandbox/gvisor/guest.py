"""All that one sandbox holds of the host: its folder, control group, pipes and processes, taken and given back.

Knows nothing of programs, limits or verdicts.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import signal
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from crucible_executor.sandbox.capture import CappedLog, PipeReader, PipeWriter
from crucible_executor.sandbox.cgroup import Cgroup, CgroupError, CgroupTree
from crucible_executor.sandbox.cleanup import Cleanup
from crucible_executor.sandbox.gvisor import spec
from crucible_executor.sandbox.gvisor.exit_events import ExitEvents, session_config
from crucible_executor.sandbox.gvisor.runsc import Runsc
from crucible_executor.sandbox.gvisor.supervisor import Supervisor
from crucible_executor.sandbox.image import BuiltImage

OVERHEAD_BYTES: Final = 32 * 1024 * 1024
"""Added to a program's memory and disk for the sentry, its stubs and what the kernel keeps for them."""
LOG_BYTES: Final = 16 * 1024
"""Kept of each of runsc's logs; the rest is read and dropped."""
NORMAL_WEIGHT: Final = 100
AHEAD_WEIGHT: Final = 2
"""Part of the CPU of a sandbox that boots for nobody yet."""
GONE_TIMEOUT: Final = 10.0
"""Seconds for killed processes to be gone."""


@dataclass(frozen=True, slots=True)
class Ground:
    """What every sandbox of an executor stands on."""

    instance_dir: Path
    empty_root: Path
    cgroups: CgroupTree
    runsc: Runsc
    platform: str
    boot_timeout: float


class Guest:
    """The host's side of one sandbox. `start` takes, `close` gives back, whatever happened between."""

    cgroup: Cgroup
    channel: socket.socket
    stdin: PipeWriter

    def __init__(
        self, identity: str, ground: Ground, *, on_exit: Callable[[int], None], on_gone: Callable[[], None]
    ) -> None:
        """`on_exit` gets the program's raw wait status; `on_gone` tells that the sentry or its supervisor is gone."""
        self.identity = identity
        self.log = CappedLog(LOG_BYTES)
        self.panic = CappedLog(LOG_BYTES)
        self.cleanup = Cleanup(f"sandbox {identity}")
        self._ground = ground
        self._dir = ground.instance_dir / identity
        self._supervisor = Supervisor(on_gone)
        self._events = ExitEvents(self._dir / "events.sock", on_exit, on_gone)
        self._log_readers: list[PipeReader] = []
        self._output_fds: list[int] = []
        self._limited = False
        self._memory_bytes = self._processes = 0
        self._sentry = -1

    def start(self, image: BuiltImage, image_path: Path, disk_bytes: int, weight: int) -> None:
        """Take everything and start `runsc run`; raises OSError, CgroupError."""
        limits = image.definition.limits.default
        self.cleanup.push("remove its folder", self._remove_dir)
        for folder in (self._dir, self._dir / "root", self._dir / "bundle"):
            folder.mkdir(mode=0o700)
        self.cleanup.push("remove its control group", self._remove_cgroup)
        # The limits that most programs have, so that little is left to be done when one comes.
        self._memory_bytes = memory_bound(limits.memory_bytes, disk_bytes)
        self._processes = backstop(limits.processes)
        self.cgroup = self._ground.cgroups.create(
            self.identity, memory_bytes=self._memory_bytes, processes=self._processes
        )
        self._limited = True
        if weight != NORMAL_WEIGHT:
            self.cgroup.weigh(weight)
        specification = spec.build(
            image.definition, image=image_path, empty_root=self._ground.empty_root, disk_bytes=disk_bytes
        )
        (self._dir / "bundle" / "config.json").write_text(json.dumps(specification), encoding="utf-8")
        (self._dir / "session.json").write_text(session_config(self._dir / "events.sock"), encoding="utf-8")
        self._open_log("log", self.log)
        self._open_log("panic", self.panic)
        self.cleanup.push("close its exit events", self._events.close)
        self._events.listen()
        self._launch()

    def _launch(self) -> None:
        theirs: list[int] = []
        try:
            stdin_read, stdin_write = os.pipe()
            theirs.append(stdin_read)
            self.stdin = PipeWriter(stdin_write)
            self.cleanup.push("close its input", self.stdin.close)
            for _ in range(2):
                read_end, write_end = os.pipe()
                theirs.append(write_end)
                self._output_fds.append(read_end)
            self.cleanup.push("close its outputs", self._close_outputs)
            self.channel, remote = socket.socketpair()
            theirs.append(remote.detach())
            self.cleanup.push("close its channel", self.channel.close)
            self.channel.setblocking(False)
            self.cleanup.push("end its processes", self._end_processes)
            stdin, stdout, stderr, channel = theirs
            self._supervisor.start(
                self._command(channel),
                join=self.cgroup.join_files,
                stdio=(stdin, stdout, stderr),
                pass_fds=(channel,),
            )
        finally:
            for descriptor in theirs:
                os.close(descriptor)

    def _command(self, channel: int) -> list[str]:
        options = (
            ("root", str(self._dir / "root")),
            ("log", str(self._dir / "log")),
            ("log-format", "json"),
            ("panic-log", str(self._dir / "panic")),
            ("platform", self._ground.platform),
            ("network", "none"),
            ("directfs", "false"),
            ("overlay2", "none"),
            ("host-uds", "none"),
            ("host-fifo", "none"),
            ("ignore-cgroups", "true"),
            ("oci-seccomp", "true"),
            ("allow-suid", "false"),
            ("character-device-policy", "emulated-only"),
            ("pod-init-config", str(self._dir / "session.json")),
        )
        return self._ground.runsc.run_command(
            options,
            bundle=self._dir / "bundle",
            pass_fds=((channel, spec.CHANNEL_FD),),
            container=self.identity,
        )

    def limit(self, memory_bytes: int, processes: int) -> None:
        """Bound the whole sandbox by `memory_bound` and `backstop`; raises CgroupError."""
        if memory_bytes != self._memory_bytes:
            self.cgroup.limit_memory(memory_bytes)
        if processes != self._processes:
            self.cgroup.limit_processes(processes)

    def take_outputs(self) -> tuple[int, int]:
        """Hand over the descriptors of standard output and error: who takes them closes them."""
        stdout, stderr = self._output_fds
        self._output_fds.clear()
        return stdout, stderr

    def boot_noise(self) -> str:
        """What was written to standard error before any program was delivered: runsc's and the launcher's own words."""
        if not self._output_fds:
            return ""
        os.set_blocking(self._output_fds[1], False)
        try:
            return os.read(self._output_fds[1], LOG_BYTES).decode(errors="replace").strip()
        except BlockingIOError:
            return ""

    @property
    def supervisor_code(self) -> int | None:
        """Return code of `runsc run`; None while it runs."""
        return self._supervisor.returncode

    def free_supervisor(self) -> None:
        """Take `runsc run` out of the memory limit, now that the sandbox is up: it must not be killed for it."""
        self.cgroup.release(self._supervisor.pid)

    def poll(self) -> None:
        """Take the exit events and logs that have come, without waiting for the event loop."""
        self._events.poll()
        for reader in self._log_readers:
            reader.drain()

    def freeze(self) -> None:
        """Stop the sentry, and all inside with it; what is stopped can still be killed. Raises OSError, CgroupError."""
        if self._sentry < 0:
            self._sentry = os.pidfd_open(self._find_sentry())
            self.cleanup.push("let go of its sentry", lambda: os.close(self._sentry))
        signal.pidfd_send_signal(self._sentry, signal.SIGSTOP)

    def thaw(self) -> None:
        """Let it go on; one that was never stopped, or is dead, is no error."""
        if self._sentry >= 0:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._sentry, signal.SIGCONT)

    def _find_sentry(self) -> int:
        supervisor = self._supervisor.pid
        for pid in self.cgroup.pids() - {supervisor}:
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                if parent(pid) == supervisor:
                    return pid
        raise ProcessLookupError("its sentry is gone")

    def kill(self) -> None:
        """SIGKILL to every process of the sandbox; returns at once. Raises CgroupError."""
        # The supervisor first: it could write its own complaint into the program's standard error.
        self._supervisor.kill()
        if self._limited:
            self.cgroup.kill()

    async def wait_gone(self) -> None:
        """Wait until every killed process is gone; raises TimeoutError, CgroupError."""
        await self._supervisor.end()
        deadline = time.monotonic() + GONE_TIMEOUT
        while self.cgroup.pids():
            if time.monotonic() > deadline:
                raise TimeoutError(f"processes {sorted(self.cgroup.pids())} do not end")
            self.cgroup.kill()
            await asyncio.sleep(0.002)

    async def _end_processes(self) -> None:
        self.kill()
        await self.wait_gone()

    def _open_log(self, name: str, log: CappedLog) -> None:
        # A pipe, not a file: a panic of the sentry writes megabytes, of which the beginning is enough.
        path = self._dir / name
        os.mkfifo(path, mode=0o600)
        reader = PipeReader(os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC), log.take)
        self.cleanup.push(f"close its {name}", reader.close)
        reader.start()
        self._log_readers.append(reader)

    def _close_outputs(self) -> None:
        for descriptor in self._output_fds:
            os.close(descriptor)
        self._output_fds.clear()

    async def _remove_cgroup(self) -> None:
        if not self._limited:
            return
        deadline = time.monotonic() + GONE_TIMEOUT
        while True:
            try:
                self.cgroup.remove()
            except CgroupError:
                # A process that is just ending still counts for a moment after it left the list of members.
                if time.monotonic() > deadline:
                    raise
                await asyncio.sleep(0.002)
            else:
                return

    def _remove_dir(self) -> None:
        if self._dir.exists():
            shutil.rmtree(self._dir)


def parent(pid: int) -> int:
    """The process that started this one; raises OSError."""
    return int(Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rsplit(")", 1)[1].split()[1])


def memory_bound(memory_bytes: int, disk_bytes: int) -> int:
    """What a sandbox may hold for a program with this memory and disk: files in its tmpfs are memory too."""
    return memory_bytes + disk_bytes + OVERHEAD_BYTES


def backstop(processes: int) -> int:
    """Host processes for so many of the program's: far off, since reaching the limit makes the sentry panic."""
    return 4 * processes + 64
