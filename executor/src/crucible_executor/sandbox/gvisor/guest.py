"""The service's handle of one sandbox: its ends of the pipes, its figures, and orders to the launcher that built it.

Knows nothing of programs, limits or verdicts. All that a sandbox writes is read here, without any privilege.
"""

from __future__ import annotations

import io
import os
import socket
from collections.abc import Callable
from typing import Any, Final

from crucible_executor.sandbox.capture import CappedLog, PipeReader, PipeWriter
from crucible_executor.sandbox.cgroup import Cgroup
from crucible_executor.sandbox.cleanup import Cleanup
from crucible_executor.sandbox.containment.report import Check, dump, judged
from crucible_executor.sandbox.gvisor.exit_events import ExitEvents
from crucible_executor.sandbox.gvisor.link import LauncherLostError, Link
from crucible_executor.sandbox.launcher.wire import DESCRIPTORS
from crucible_executor.sandbox.port import SandboxFault

LOG_BYTES: Final = 16 * 1024
"""Kept of each of runsc's logs; the rest is read and dropped."""


class Guest:
    """`start` has a sandbox built, `cleanup` has it removed, whatever happened between."""

    channel: socket.socket
    stdin: PipeWriter

    def __init__(
        self,
        identity: str,
        link: Link,
        cgroup: Cgroup,
        *,
        on_exit: Callable[[int], None],
        on_gone: Callable[[], None],
    ) -> None:
        """`on_exit` gets the program's raw wait status; `on_gone` tells that the sentry or its supervisor is gone."""
        self.identity = identity
        self.cgroup = cgroup
        """For reading."""
        self.log = CappedLog(LOG_BYTES)
        self.panic = CappedLog(LOG_BYTES)
        self.agent = False
        """It begins with the agent, which awaits a script on the channel."""
        self.supervisor_code: int | None = None
        """Return code of `runsc run`, negative for a signal; None while it runs."""
        self.after: object = None
        """What the launcher saw of its removal, when it was inspected before."""
        self.cleanup = Cleanup(f"sandbox {identity}")
        self._link = link
        self._on_gone = on_gone
        self._events = ExitEvents(on_exit, on_gone)
        self._log_readers: list[PipeReader] = []
        self._output_fds: list[int] = []

    async def start(self, runtime: str, disk_bytes: int, *, ahead: bool) -> str:
        """Have it built and started; the digest of its image. Raises SandboxFault."""
        self.cleanup.push("have it removed", self._remove)
        self._link.on_ended(self.identity, self._ended)
        answer = await self._link.ask("boot", self.identity, runtime=runtime, disk_bytes=disk_bytes, ahead=ahead)
        ends: dict[str, int] = dict(zip(DESCRIPTORS, answer.descriptors, strict=True))
        self.channel = socket.socket(fileno=ends["channel"])
        self.cleanup.push("close its channel", self.channel.close)
        self.channel.setblocking(False)
        self._freezer = io.FileIO(ends["freezer"], "wb")
        self.cleanup.push("close its freezer", self._freezer.close)
        self.stdin = PipeWriter(ends["stdin"])
        self.cleanup.push("close its input", self.stdin.close)
        self._output_fds += [ends["stdout"], ends["stderr"]]
        self.cleanup.push("close its outputs", self._close_outputs)
        for name, log in (("log", self.log), ("panic", self.panic)):
            reader = PipeReader(ends[name], log.take)
            self.cleanup.push(f"close its {name}", reader.close)
            reader.start()
            self._log_readers.append(reader)
        self.cleanup.push("close its exit events", self._events.close)
        self._events.listen(socket.socket(fileno=ends["events"]))
        self.cleanup.push("kill it", self.kill)
        self.agent = bool(answer.fields["agent"])
        return str(answer.fields["digest"])

    def hurry(self) -> None:
        """Give it its full part of the CPU while it boots."""
        self._link.tell("hurry", self.identity)

    def ready(self) -> None:
        """It is up: the same, and `runsc run` out of its memory limit."""
        self._link.tell("ready", self.identity)

    async def inspect(self) -> Any:  # noqa: ANN401 - any JSON
        """The launcher's look at its confinement, as JSON; before `freeze`. Raises SandboxFault."""
        return (await self._link.ask("inspect", self.identity)).fields["report"]

    def freeze(self) -> None:
        """Stop it until it is claimed or ended. Raises OSError."""
        self._freezer.write(self.cgroup.frozen)

    async def bound(self, memory_bytes: int, processes: int) -> None:
        """Put limits in force that are not the runtime's defaults; before `claim`. Raises SandboxFault."""
        await self._link.ask("bound", self.identity, memory_bytes=memory_bytes, processes=processes)

    def claim(self, wall_time: float) -> None:
        """Let it go on, for a program; its deadline runs from here. Raises OSError."""
        self._link.tell("claim", self.identity, wall_time=float(wall_time))
        self._freezer.write(self.cgroup.thawed)

    def kill(self) -> None:
        """SIGKILL to every process of the sandbox; returns at once."""
        self._link.tell("kill", self.identity)

    async def end(self) -> None:
        """Kill it and wait until every process is gone; raises SandboxFault."""
        await self._link.ask("end", self.identity)

    def take_outputs(self) -> tuple[int, int]:
        """Hand over the descriptors of standard output and error: who takes them closes them."""
        stdout, stderr = self._output_fds
        self._output_fds.clear()
        return stdout, stderr

    def boot_noise(self) -> str:
        """What was written to standard error before any program was delivered: runsc's and the starter's own words."""
        if not self._output_fds:
            return ""
        os.set_blocking(self._output_fds[1], False)
        try:
            return os.read(self._output_fds[1], LOG_BYTES).decode(errors="replace").strip()
        except BlockingIOError:
            return ""

    def poll(self) -> None:
        """Take the exit events and logs that have come, without waiting for the event loop."""
        self._events.poll()
        for reader in self._log_readers:
            reader.drain()

    def _ended(self, code: int) -> None:
        self.supervisor_code = code
        self._on_gone()

    async def _remove(self) -> None:
        try:
            self.after = (await self._link.ask("close", self.identity)).fields["after"]
        except LauncherLostError:
            return  # it ended with its launcher, and a later one sweeps what is left
        except SandboxFault as fault:
            self.after = dump(judged({Check.PROCESSES_GONE: fault.detail}))
            raise
        finally:
            self._link.forget(self.identity)

    def _close_outputs(self) -> None:
        for descriptor in self._output_fds:
            os.close(descriptor)
        self._output_fds.clear()
