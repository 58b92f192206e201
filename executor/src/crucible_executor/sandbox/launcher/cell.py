"""The privileged half of one sandbox: its folder, control group and processes, made, bounded, ended and removed.

What a program is and what it wrote is not known here: the service holds the other ends of the pipes.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from crucible_executor.sandbox.cgroup import Cgroup, CgroupError, CgroupTree
from crucible_executor.sandbox.gvisor import spec
from crucible_executor.sandbox.gvisor.runsc import Runsc
from crucible_executor.sandbox.launcher.catalogue import Image
from crucible_executor.sandbox.launcher.loop import Job, Loop
from crucible_executor.sandbox.launcher.subject import Subject
from crucible_executor.sandbox.launcher.supervisor import Supervisor
from crucible_executor.sandbox.launcher.wire import DESCRIPTORS

OVERHEAD_BYTES: Final = 32 * 1024 * 1024
"""Added to a program's memory and disk for the sentry, its stubs and what the kernel keeps for them."""
NORMAL_WEIGHT: Final = 100
AHEAD_WEIGHT: Final = 2
"""Part of the CPU of a sandbox that boots for nobody yet."""
_LOOK: Final = 0.002
"""Seconds between two looks at whether something is gone."""
_AGAIN: Final = 0.1
"""Seconds after which what does not end is killed once more."""


@dataclass(frozen=True, slots=True)
class Ground:
    """What every sandbox of an executor stands on."""

    instance_dir: Path
    empty_root: Path
    cgroups: CgroupTree
    runsc: Runsc
    platform: str
    gone_timeout: float
    """Seconds for what was killed to be gone, and for what it leaves to be removed."""
    agent: int | None
    """Descriptor of the program that looks at a sandbox from inside, where there is one for this machine."""


class CellError(Exception):
    """A sandbox is not in a state for what was asked, or does not go."""


class Cell:
    """One sandbox. `start` takes, `remove` gives back, whatever happened between."""

    def __init__(self, identity: str, ground: Ground, loop: Loop, on_ended: Callable[[int], None]) -> None:
        """`on_ended` gets the return code of `runsc run`, negative for a signal."""
        self.identity = identity
        self.image: Image | None = None
        self.claimed = False
        self._ground = ground
        self._dir = ground.instance_dir / identity
        self._supervisor = Supervisor(loop, on_ended)
        self._group: Cgroup = ground.cgroups.group(identity)
        self._disk_bytes = self._memory_bytes = self._processes = 0
        self._weight = NORMAL_WEIGHT

    def start(self, image: Image, disk_bytes: int, *, ahead: bool) -> list[int]:
        """Take everything and start `runsc run`; the descriptors of `wire.DESCRIPTORS`, the caller's to close.

        Raises OSError, CgroupError; `remove` is due in any case.
        """
        self.image = image
        self._disk_bytes = disk_bytes
        for folder in (self._dir, self._dir / "root", self._dir / "bundle"):
            folder.mkdir(mode=0o700)
        # The limits that most programs have, so that little is left to be done when one comes.
        self._memory_bytes = memory_bound(image.default.memory_bytes, disk_bytes)
        self._processes = backstop(image.default.processes)
        self._ground.cgroups.create(self.identity, memory_bytes=self._memory_bytes, processes=self._processes)
        if ahead:
            self._weigh(AHEAD_WEIGHT)
        specification = spec.build(
            image, most=image.maximum, image=image.path, empty_root=self._ground.empty_root, disk_bytes=disk_bytes
        )
        (self._dir / "bundle" / "config.json").write_text(json.dumps(specification), encoding="utf-8")
        (self._dir / "session.json").write_text(spec.session(self._dir / "events.sock"), encoding="utf-8")
        theirs: list[int] = []
        ours: dict[str, int] = {}
        try:
            for name in ("log", "panic"):
                ours[name] = self._make_pipe(name)
            ours["events"] = self._listen()
            ours["freezer"] = self._group.open_freezer()
            stdin, ours["stdin"] = os.pipe()
            theirs.append(stdin)
            for name in ("stdout", "stderr"):
                ours[name], write_end = os.pipe()
                theirs.append(write_end)
            near, far = socket.socketpair()
            ours["channel"] = near.detach()
            theirs.append(far.detach())
            self._supervisor.start(
                self._command(theirs[3]),
                join=self._group.join_files,
                stdio=(theirs[0], theirs[1], theirs[2]),
                pass_fds=(theirs[3],) if self._ground.agent is None else (theirs[3], self._ground.agent),
            )
        except BaseException:
            close_all(list(ours.values()))
            raise
        finally:
            close_all(theirs)
        return [ours[name] for name in DESCRIPTORS]

    def _make_pipe(self, name: str) -> int:
        # A pipe, not a file: a panic of the sentry writes megabytes, of which the beginning is enough.
        path = self._dir / name
        os.mkfifo(path, mode=0o600)
        return os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)

    def _listen(self) -> int:
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
        listener.bind(str(self._dir / "events.sock"))
        listener.listen(1)
        return listener.detach()

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
            first=self._ground.agent,
            container=self.identity,
        )

    def hurry(self) -> None:
        """Give it everybody's part of the CPU; raises CgroupError."""
        self._weigh(NORMAL_WEIGHT)

    def settle(self) -> None:
        """It is up: its supervisor must not be killed for the sandbox's memory, and a new peak begins.

        Raises OSError, CgroupError.
        """
        if self._supervisor.running:
            self._group.release(self._supervisor.pid)
        self.hurry()
        self._group.reset_peak()

    def bound(self, memory_bytes: int, processes: int) -> None:
        """Put a program's limits in force; before it gets it. Raises CellError, CgroupError."""
        self._check_unclaimed()
        self._memory_bytes, self._processes = memory_bound(memory_bytes, self._disk_bytes), backstop(processes)
        self._group.limit_memory(self._memory_bytes)
        self._group.limit_processes(self._processes)

    def claim(self) -> None:
        """It gets its program; once. Raises CellError."""
        self._check_unclaimed()
        self.claimed = True

    def _check_unclaimed(self) -> None:
        if self.claimed:
            raise CellError("it has its program already")

    def kill(self) -> None:
        """SIGKILL to every process of it; returns at once. Raises CgroupError."""
        # The supervisor first: it could write its own complaint into the program's standard error.
        self._supervisor.kill()
        if self._memory_bytes:
            self._weigh(NORMAL_WEIGHT)  # to end takes CPU time, too
            self._group.kill()

    def end(self, done: Callable[[Exception | None], None]) -> Job:
        """Kill it until it is empty; `done` gets what stood in the way to the end."""
        done((yield from self._persist(self._killer())))

    def remove(self, done: Callable[[Exception | None], None]) -> Job:
        """End it and leave nothing of it; `done` gets what stood in the way to the end."""
        error = yield from self._persist(self._killer())
        if error is None:
            error = yield from self._persist(self._clear)
        done(error)

    def _persist(self, attempt: Callable[[], None]) -> Generator[float, None, Exception | None]:
        """Try until it raises nothing; what it raised when its time was over."""
        until = time.monotonic() + self._ground.gone_timeout
        while True:
            try:
                attempt()
            except (OSError, CgroupError, CellError) as error:
                if time.monotonic() > until:
                    return error
            else:
                return None
            yield _LOOK

    def _killer(self) -> Callable[[], None]:
        """Kills all of it at first, then who was begun by one that was just being killed, and all of it now and then.

        Each call raises OSError, CgroupError, and CellError while there is somebody left.
        """
        killed: set[int] = set()
        again = time.monotonic()

        def kill() -> None:
            nonlocal again
            if time.monotonic() >= again:
                again = time.monotonic() + _AGAIN
                self.kill()
            left = self._group.pids()
            if left - killed:
                self._group.kill()
                killed.update(left)
            if left or self._supervisor.running:
                raise CellError(f"processes {sorted(left)} of sandbox {self.identity} do not end")

        return kill

    def _clear(self) -> None:
        """Raises OSError, and CgroupError: who is just ending still counts when it has left the list of members."""
        self._group.remove()
        if self._dir.exists():
            shutil.rmtree(self._dir)

    def subject(self) -> Subject:
        """What it is, for a look at its confinement; raises OSError, CgroupError, CellError when it is not running."""
        if self.image is None or not self._supervisor.running:
            raise CellError("it does not run")
        supervisor, sentry = self._supervisor.pid, self._find_sentry()
        return Subject(
            identity=self.identity,
            runtime=self.image.runtime,
            image=self.image.path,
            image_digest=self.image.digest,
            image_identity=self.image.identity,
            folder=self._dir,
            cgroup=self._group,
            memory_bytes=self._memory_bytes,
            processes=self._processes,
            supervisor=supervisor,
            sentry=sentry,
            stubs=tuple(sorted(self._group.pids() - {supervisor, sentry})),
        )

    def _weigh(self, weight: int) -> None:
        if weight != self._weight:
            self._group.weigh(weight)
            self._weight = weight

    def _find_sentry(self) -> int:
        supervisor = self._supervisor.pid
        for pid in self._group.pids() - {supervisor}:
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                if parent(pid) == supervisor:
                    return pid
        raise ProcessLookupError("its sentry is gone")


def parent(pid: int) -> int:
    """The process that started this one; raises OSError."""
    return int(Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rsplit(")", 1)[1].split()[1])


def close_all(descriptors: Sequence[int]) -> None:
    """Close each."""
    for descriptor in descriptors:
        os.close(descriptor)


def memory_bound(memory_bytes: int, disk_bytes: int) -> int:
    """What a sandbox may hold for a program with this memory and disk: files in its tmpfs are memory too."""
    return memory_bytes + disk_bytes + OVERHEAD_BYTES


def backstop(processes: int) -> int:
    """Host processes for so many of the program's: far off, since reaching the limit makes the sentry panic."""
    return 4 * processes + 64
