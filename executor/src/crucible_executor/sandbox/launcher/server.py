"""The launcher at work: takes its ground, serves one service until that hangs up, and leaves nothing behind.

What it is sent is checked against the runtime's own definition before anything is done. A deadline is the launcher's:
nothing that the service does or fails to do moves it.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import select
import selectors
import signal
import socket
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, cast

from crucible_executor.sandbox import leftovers
from crucible_executor.sandbox.cgroup import CgroupError
from crucible_executor.sandbox.containment import posture
from crucible_executor.sandbox.containment.agent import open_agent
from crucible_executor.sandbox.gvisor.runsc import Runsc, RunscError
from crucible_executor.sandbox.launcher import privileges, wire
from crucible_executor.sandbox.launcher.catalogue import Catalogue, Image
from crucible_executor.sandbox.launcher.cell import Cell, CellError, Ground, close_all
from crucible_executor.sandbox.launcher.config import LauncherConfig
from crucible_executor.sandbox.launcher.loop import Job, Loop, Timer
from crucible_executor.sandbox.launcher.privileges import Capability, PrivilegeError
from crucible_executor.sandbox.launcher.subject import Subject
from crucible_executor.sandbox.leftovers import Instance
from crucible_executor.sandbox.port import Cause, SandboxFault

_ALWAYS_KEPT: Final = (
    Capability.DAC_OVERRIDE,  # the root folders of control groups are closed even to root without it
    Capability.SETUID,  # runsc makes its kernel nobody
    Capability.SETGID,  # same
)
_NAMESPACES_FOR_ALL: Final = {
    Path("/proc/sys/kernel/unprivileged_userns_clone"): "1",
    Path("/proc/sys/kernel/apparmor_restrict_unprivileged_userns"): "0",
}
"""Where a distribution keeps user namespaces from those without SYS_ADMIN, and what it says when it does not."""
MOST_UNSENT: Final = 64
"""Answers that may wait for a service that does not take them; then it is not listened to until it does."""
SPARE_DESCRIPTORS: Final = 256 + MOST_UNSENT * len(wire.DESCRIPTORS)
"""Beside what each sandbox holds: whatever the service does, there is always one to read a control group with."""
DESCRIPTORS_OF_A_CELL: Final = 2
LINE_BYTES: Final = 4000
"""Of a line in the log, at most: what a pipe that is ready takes whole, without waiting."""
LEAVING_SECONDS: Final = 30.0
"""For all sandboxes to be removed at the end."""
STUBBORN_SECONDS: Final = 5.0
"""Until a sandbox that outlived its deadline is killed again, or one that could not be removed is removed again."""
_STANDARD_ERROR: Final = 2
REFUSALS: Final = (OSError, CgroupError, RunscError, PrivilegeError, ExceptionGroup)


def kept() -> Sequence[Capability]:
    """What a launcher needs on this machine.

    runsc makes its namespaces inside a user namespace of its own, whose owner may also kill and look at what
    is in there: SYS_ADMIN is of use only where the machine forbids others to make one. KILL and SYS_PTRACE are not.
    """
    forbidden = any(
        path.exists() and path.read_text(encoding="ascii").strip() != free for path, free in _NAMESPACES_FOR_ALL.items()
    )
    return (*_ALWAYS_KEPT, Capability.SYS_ADMIN) if forbidden else _ALWAYS_KEPT


class Launcher:
    """One launcher. Everything but the sweep happens in the main thread."""

    def __init__(self, config: LauncherConfig, service: socket.socket, service_pid: int, ground: Ground) -> None:
        self._config = config
        self._service = service
        self._service_pid = service_pid
        self._watched = 0
        self._ground = ground
        self._loop = Loop()
        self._catalogue = Catalogue(config.images_dir, config.image_record)
        self._cells: dict[str, Cell] = {}
        self._deadlines: dict[str, Timer] = {}
        self._subjects: dict[str, Subject] = {}
        self._closing: set[str] = set()
        self._unsent: deque[tuple[bytes, list[int]]] = deque()
        self._sweeping: threading.Thread | None = None
        self._leaving = False
        self._most_cells = min(config.most_sandboxes, (_descriptors() - SPARE_DESCRIPTORS) // DESCRIPTORS_OF_A_CELL)

    def run(self) -> None:
        """Serve until the service hangs up or ends, and every sandbox is gone."""
        self._service.setblocking(False)
        self._send({"event": "opened"})
        # Its socket may outlive it, in a process that it left behind.
        parent = os.pidfd_open(self._service_pid)
        self._loop.watch(parent, self._leave)
        self._loop.later(self._config.sweep_interval, self._sweep)
        self._loop.run()
        os.close(parent)

    # What the service says

    def _receive(self) -> None:
        try:
            data = self._service.recv(wire.REQUEST_BYTES + 1)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._leave()
            return
        try:
            if len(data) > wire.REQUEST_BYTES:
                raise wire.WireError("too long")
            packet = wire.unpack(data)
            name, identity, number = wire.check_request(packet)
        except wire.WireError as error:
            # Only a service that is no longer itself sends such a thing.
            say("critical", "launcher.bad_packet", error=str(error))
            self._leave()
            return
        try:
            self._do(name, identity, number, packet)
        except SandboxFault as fault:
            self._answer(number, identity, wire.fault_fields(fault))
        except (OSError, CgroupError, CellError) as error:
            self._answer(number, identity, wire.fault_fields(SandboxFault(Cause.INFRASTRUCTURE, _words(error))))

    def _do(self, name: str, identity: str, number: int, fields: dict[str, Any]) -> None:
        if name == "boot":
            self._loop.start(self._boot(identity, number, **fields))
            return
        cell = self._cells.get(identity)
        if name == "close":
            self._close(identity, cell, number)
            return
        if cell is None:
            if name in wire.ASKED:
                raise CellError("there is no such sandbox")
            return  # told of one that was just closed
        if name == "bound":
            self._bound(cell, number, **fields)
        elif name == "claim":
            self._claim(cell, **fields)
        elif name == "end":
            self._loop.start(cell.end(lambda error: self._answer(number, identity, _outcome(error))))
        elif name == "inspect":
            self._answer(number, identity, {"report": self._inspect(cell)})
        elif name == "kill":
            cell.kill()
        elif name == "hurry":
            cell.hurry()
        elif name == "ready":
            cell.settle()

    def _boot(self, identity: str, number: int, *, runtime: str, disk_bytes: int, ahead: bool) -> Job:
        if identity in self._cells:
            raise CellError("there is such a sandbox already")
        if len(self._cells) >= self._most_cells:
            raise CellError(f"there are {len(self._cells)} sandboxes, and no more are made at one time")
        cell = self._cells[identity] = Cell(
            identity, self._ground, self._loop, lambda code: self._ended(identity, code)
        )
        self._set_deadline(cell, self._config.unclaimed_age)
        try:
            image: Image = yield from self._catalogue.find(runtime)
            if not 0 < disk_bytes <= image.maximum.disk_bytes:
                raise CellError(f"disk_bytes: {disk_bytes} is not above 0 and at most {image.maximum.disk_bytes}")
            if identity in self._closing or self._cells.get(identity) is not cell:
                raise CellError("it was closed")
            self._set_deadline(cell, self._config.unclaimed_age)
            descriptors = cell.start(image, disk_bytes, ahead=ahead)
        except SandboxFault as fault:
            self._answer(number, identity, wire.fault_fields(fault))
        except (OSError, CgroupError, CellError) as error:
            fault = SandboxFault(Cause.INFRASTRUCTURE, f"a sandbox cannot be started: {_words(error)}")
            self._answer(number, identity, wire.fault_fields(fault))
        else:
            probed = self._ground.agent is not None
            self._answer(number, identity, {"digest": image.digest, "agent": probed}, descriptors)

    def _bound(self, cell: Cell, number: int, *, memory_bytes: int, processes: int) -> None:
        _check(cell, memory_bytes=memory_bytes, processes=processes)
        cell.bound(memory_bytes, processes)
        self._answer(number, cell.identity, {})

    def _claim(self, cell: Cell, *, wall_time: float) -> None:
        _check(cell, wall_time=wall_time)
        cell.claim()
        self._set_deadline(cell, wall_time + self._config.deadline_grace)

    def _close(self, identity: str, cell: Cell | None, number: int) -> None:
        if cell is None or identity in self._closing:
            self._answer(number, identity, {"after": None})
            return
        self._closing.add(identity)

        def removed(error: Exception | None) -> None:
            self._closing.discard(identity)
            self._deadlines.pop(identity).cancel()
            if error is None:
                del self._cells[identity]
            else:  # who asked hears of it, and it is tried until it succeeds
                self._deadlines[identity] = self._loop.later(STUBBORN_SECONDS, lambda: self._close(identity, cell, 0))
            after = self._inspect_after(self._subjects.pop(identity, None))
            self._answer(number, identity, {**_outcome(error), "after": after})

        self._loop.start(cell.remove(removed))

    # A look at the confinement

    def _inspect(self, cell: Cell) -> object:
        subject = self._subjects[cell.identity] = cell.subject()
        return _report(posture.inspect, subject)

    def _inspect_after(self, subject: Subject | None) -> object:
        return None if subject is None else _report(posture.inspect_after, subject)

    # Time

    def _set_deadline(self, cell: Cell, seconds: float) -> None:
        if (before := self._deadlines.get(cell.identity)) is not None:
            before.cancel()
        self._deadlines[cell.identity] = self._loop.later(seconds, lambda: self._out_of_time(cell))

    def _out_of_time(self, cell: Cell) -> None:
        def ended(error: Exception | None) -> None:
            if error is not None:
                say("error", "sandbox.outlives_deadline", sandbox=cell.identity, error=_words(error))
                self._deadlines[cell.identity] = self._loop.later(STUBBORN_SECONDS, lambda: self._out_of_time(cell))

        if cell.identity in self._closing:
            return
        say("warning", "sandbox.deadline", sandbox=cell.identity, claimed=cell.claimed)
        self._loop.start(cell.end(ended))

    def _sweep(self) -> None:
        """In a thread of its own: it waits for processes of the dead to go, and deadlines do not."""
        if self._sweeping is None or not self._sweeping.is_alive():
            self._sweeping = threading.Thread(target=_sweep, args=(self._config,), name="sweep", daemon=True)
            self._sweeping.start()
        self._loop.later(self._config.sweep_interval, self._sweep)

    # The end

    def _leave(self) -> None:
        """The service is gone: end all of its sandboxes, then stop."""
        if self._leaving:
            return
        self._leaving = True
        self._loop.forget(self._service.fileno())
        self._service.close()
        while self._unsent:
            close_all(self._unsent.popleft()[1])
        for identity, cell in list(self._cells.items()):
            self._close(identity, cell, 0)
        self._loop.start(self._wait_empty())

    def _wait_empty(self) -> Job:
        left = LEAVING_SECONDS
        while self._cells and left > 0:
            yield 0.005
            left -= 0.005
        self._loop.stop()

    # What the service is told

    def _ended(self, identity: str, code: int) -> None:
        self._send({"event": "ended", "id": identity, "code": code})

    def _answer(
        self, number: int, identity: str, fields: Mapping[str, object], descriptors: list[int] | None = None
    ) -> None:
        if number:
            self._send({"n": number, **fields}, descriptors)
            return
        if "fault" in fields:
            say("error", "sandbox.failed", sandbox=identity, **fields)
            self._kill(identity)

    def _kill(self, identity: str) -> None:
        """What could not be done for a sandbox that nobody waits for ends it: the service sees that."""
        cell = self._cells.get(identity)
        if cell is not None and identity not in self._closing:
            self._loop.start(cell.end(lambda _: None))

    def _send(self, packet: dict[str, object], descriptors: list[int] | None = None) -> None:
        self._unsent.append((wire.pack(packet), descriptors or []))
        self._flush()

    def _flush(self) -> None:
        while self._unsent:
            data, descriptors = self._unsent[0]
            try:
                socket.send_fds(self._service, [data], descriptors)
            except BlockingIOError:  # a service that is stopped: it gets them when it goes on
                break
            except OSError:  # it is gone: what is received next says so
                pass
            self._unsent.popleft()
            close_all(descriptors)
        self._watch_service()

    def _watch_service(self) -> None:
        events = selectors.EVENT_READ if len(self._unsent) < MOST_UNSENT else 0
        events |= selectors.EVENT_WRITE if self._unsent else 0
        if events != self._watched and not self._leaving:
            self._watched = events
            self._loop.watch(self._service.fileno(), self._serve, events=events)

    def _serve(self) -> None:
        if self._unsent:
            self._flush()
        if len(self._unsent) < MOST_UNSENT:
            self._receive()


def _check(cell: Cell, **asked: float) -> None:
    """That its runtime allows these limits; raises CellError."""
    if cell.image is None:
        raise CellError("it is not there yet")
    for field, value in asked.items():
        most = getattr(cell.image.maximum, field)
        if not 0 < value <= most:
            raise CellError(f"{field}: {value} is not above 0 and at most {most}")


def say(level: str, event: str, **fields: object) -> None:
    """One JSON line on standard error, as the services write them.

    The service has the same standard error: whatever it does to that, no deadline waits for a line, so one that finds
    no room is lost.
    """
    base = {
        "time": datetime.now(UTC).isoformat().replace("+00:00", "Z"),
        "level": level,
        "event": event,
        "service": "launcher",
    }
    line = json.dumps({**base, **fields}, default=str)
    if len(line) > LINE_BYTES:
        line = json.dumps({**base, "cut": line[: LINE_BYTES // 3]})
    with contextlib.suppress(OSError):
        if select.select([], [_STANDARD_ERROR], [], 0)[1]:
            os.write(_STANDARD_ERROR, f"{line}\n".encode())


def _sweep(config: LauncherConfig) -> None:
    """What cannot be removed now is tried again at the next sweep, and keeps nobody from running programs."""
    try:
        swept = leftovers.sweep(config.state_root, config.cgroup_parent)
    except (OSError, CgroupError, ExceptionGroup) as error:
        say("error", "launcher.sweep_failed", error=_words(error))
    else:
        if swept:
            say("warning", "launcher.swept", executors=swept)


def _words(error: Exception) -> str:
    if isinstance(error, ExceptionGroup):
        parts = cast("ExceptionGroup[Exception]", error).exceptions
        return f"{error.message}: {'; '.join(map(_words, parts))}"
    return str(error)


def _outcome(error: Exception | None) -> dict[str, object]:
    if error is None:
        return {}
    return dict(wire.fault_fields(SandboxFault(Cause.INFRASTRUCTURE, _words(error))))


def _report(look: Callable[[Subject], object], subject: Subject) -> object:
    try:
        report = json.dumps(look(subject), default=str)
    except Exception as error:  # noqa: BLE001 - no look at a sandbox may end the launcher
        return {"error": repr(error)}
    return json.loads(report) if len(report) <= wire.REPORT_BYTES else {"error": "the report is too long"}


def main(descriptor: int, config: LauncherConfig) -> int:
    """Run a launcher whose service is at the other end of the descriptor; 0 when nothing is left behind."""
    # What asks a whole group of processes to end asks the service first, and that hangs up.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda _number, _frame: None)
    os.umask(0o022)
    os.set_inheritable(descriptor, False)
    service_pid = os.getppid()
    with socket.socket(fileno=descriptor) as service:
        try:
            if os.geteuid() != 0:
                raise PrivilegeError(f"sandboxes need root, not user id {os.geteuid()}")
            privileges.keep_only(kept())
            resource.setrlimit(resource.RLIMIT_NOFILE, (_descriptors(), _descriptors()))
            runsc = Runsc.probe(config.runsc)
            _sweep(config)
            instance = Instance(config.state_root, config.cgroup_parent, config.instance)
            return _serve(config, service, service_pid, instance, runsc)
        except REFUSALS as error:
            with contextlib.suppress(OSError):
                service.send(wire.pack({"event": "refused", "detail": _words(error)}))
            return 1


def _serve(config: LauncherConfig, service: socket.socket, service_pid: int, instance: Instance, runsc: Runsc) -> int:
    try:
        instance.take()
        empty_root = instance.dir / "empty"
        empty_root.mkdir(mode=0o700)
    except (OSError, CgroupError):
        with contextlib.suppress(OSError, CgroupError):
            instance.give_back()
        raise
    ground = Ground(
        instance.dir, empty_root, instance.cgroups, runsc, config.platform, config.gone_timeout, open_agent()
    )
    Launcher(config, service, service_pid, ground).run()
    try:
        instance.give_back()
    except (OSError, CgroupError) as error:
        say("error", "launcher.leftovers", error=str(error))
        return 1
    return 0


def _descriptors() -> int:
    """That this process may have."""
    return resource.getrlimit(resource.RLIMIT_NOFILE)[1]
