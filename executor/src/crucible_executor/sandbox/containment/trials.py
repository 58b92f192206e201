"""How one thing is tried from inside a sandbox, and how the host judges what came of it: what probes are made of.

A trial adds its system calls to the agent's script and gives back the judgement of their results. Nothing in here runs
inside a sandbox. The numbers are x86-64's.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Final

from crucible_executor.sandbox.containment.script import Buffer, Called, Report, Script
from crucible_executor.sandbox.gvisor.spec import CHANNEL_FD, HOSTNAME, SANDBOX_UID, TMPFS_FOLDERS, file_size_bound

Judge = Callable[[Report, "Expected"], str]
"""What is wrong; empty where the check held."""
Probe = Callable[[Script], Judge]


@dataclass(frozen=True, slots=True)
class Expected:
    """How the sandbox was to be built."""

    disk_bytes: int
    processes: int
    open_files: int


# System calls of x86-64, by their names in the kernel's table.
_OPEN, _SOCKET, _CONNECT, _SENDTO, _IOCTL, _READ, _GETDENTS = 2, 41, 42, 44, 16, 0, 217
_UNAME, _SYSLOG, PRCTL, _PRLIMIT, _STATFS, _GETPID, _GETPPID, _GETGROUPS = 63, 103, 157, 302, 137, 39, 110, 115
_CAPSET, SETUID, SETGID, SETGROUPS, SETRESUID, SETRESGID = 126, 105, 106, 116, 117, 119

INET, INET6, _UNIX, PACKET = 2, 10, 1, 17
STREAM, DATAGRAM, RAW = 1, 2, 3
_NONBLOCK, _CLOSED_ON_EXEC = 0o4000, 0o2000000
WRITE_ONLY, CREATE, _FOLDER = 0o1, 0o100, 0o200000
_DONTWAIT_NOSIGNAL = 0x4040

_UNREACHABLE: Final = frozenset({errno.ENETUNREACH, errno.EHOSTUNREACH, errno.ENETDOWN})
NO_FAMILY: Final = frozenset({errno.EAFNOSUPPORT, errno.EPROTONOSUPPORT, errno.ESOCKTNOSUPPORT})
REFUSED: Final = frozenset({errno.EPERM, errno.EACCES, errno.ENOSYS})
ABSENT: Final = frozenset({errno.ENOENT})
DENIED: Final = frozenset({errno.EPERM})
"""What the list of denied system calls answers; gVisor alone would answer otherwise."""


def _words(result: int) -> str:
    if result >= 0:
        return "succeeded"
    return f"failed with {errno.errorcode.get(-result, -result)}"


def _all_fail(calls: Mapping[str, Called], allowed: Collection[int]) -> Judge:
    """Each call must fail with one of these errors."""

    def judge(report: Report, _: Expected) -> str:
        wrong = {what: report.result(call) for what, call in calls.items()}
        return "; ".join(f"{what} {_words(result)}" for what, result in wrong.items() if -result not in allowed)

    return judge


def _both(*judges: Judge) -> Judge:
    return lambda report, expected: "; ".join(filter(None, (judge(report, expected) for judge in judges)))


# The network


def _address(place: str, port: int) -> bytes:
    if ":" in place:
        return struct.pack("<H2s4x16s4x", INET6, port.to_bytes(2, "big"), socket.inet_pton(socket.AF_INET6, place))
    return struct.pack("<H2s4s8x", INET, port.to_bytes(2, "big"), socket.inet_aton(place))


def outwards(kind: int, places: Mapping[str, int]) -> Probe:
    """No way to these addresses: to connect with a stream, to send with a datagram."""

    def probe(script: Script) -> Judge:
        tried: dict[str, tuple[Called, Called]] = {}
        for place, port in places.items():
            address = _address(place, port)
            family = INET6 if ":" in place else INET
            opened = script.call(_SOCKET, family, kind | _NONBLOCK | _CLOSED_ON_EXEC, 0)
            where = script.data(address)
            if kind == STREAM:
                way = script.call_on(opened, _CONNECT, where, len(address))
            else:
                way = script.call_on(opened, _SENDTO, script.text("?"), 1, _DONTWAIT_NOSIGNAL, where, len(address))
            tried[f"{place} port {port}"] = opened, way

        def judge(report: Report, _: Expected) -> str:
            return "; ".join(
                f"the way to {place} {_words(report.result(way))}"
                for place, (opened, way) in tried.items()
                if -report.result(opened) not in NO_FAMILY and -report.result(way) not in _UNREACHABLE
            )

        return judge

    return probe


def dns(script: Script) -> Judge:
    """No name server is configured, and there is no way to one."""
    configured = script.call(_OPEN, script.text("/etc/resolv.conf"), _CLOSED_ON_EXEC)
    return _both(
        _all_fail({"opening /etc/resolv.conf": configured}, ABSENT),
        outwards(DATAGRAM, {"192.0.2.53": 53, "2001:db8::53": 53})(script),
    )


_METADATA = {"169.254.169.254": 80, "fd00:ec2::254": 80}


def metadata(script: Script) -> Judge:
    """No way to where clouds hand out credentials."""
    return _both(outwards(STREAM, _METADATA)(script), outwards(DATAGRAM, _METADATA)(script))


_INTERFACE_BYTES: Final = 40
_SIOCGIFCONF: Final = 0x8912


def interfaces(script: Script) -> Judge:
    """No interface but the loopback."""
    found = script.buffer(16 * _INTERFACE_BYTES)
    opened = script.call(_SOCKET, INET, DATAGRAM | _CLOSED_ON_EXEC, 0)
    listed = script.call_on(opened, _IOCTL, _SIOCGIFCONF, script.data(struct.pack("<i4xQ", found.size, found.address)))

    def judge(report: Report, _: Expected) -> str:
        if report.result(listed) != 0:
            return f"listing interfaces {_words(report.result(listed))}"
        entries = report.filled(found)
        names = [entries[at : at + 16].rstrip(b"\0") for at in range(0, len(entries), _INTERFACE_BYTES)]
        there = {name.decode("ascii", "replace") for name in names if name}
        return "" if there == {"lo"} else f"there is {', '.join(sorted(there)) or 'none'}"

    return judge


def sockets(kinds: Mapping[str, tuple[int, int, int]], allowed: Collection[int]) -> Probe:
    """Sockets of these families, kinds and protocols must fail so."""

    def probe(script: Script) -> Judge:
        calls = {
            f"a socket of {name}": script.call(_SOCKET, family, kind | _CLOSED_ON_EXEC, protocol)
            for name, (family, kind, protocol) in kinds.items()
        }
        return _all_fail(calls, allowed)

    return probe


_HOST_SOCKETS = (
    "/run/docker.sock",
    "/run/containerd/containerd.sock",
    "/run/dbus/system_bus_socket",
    "/run/systemd/private",
    "/run/systemd/journal/socket",
    "/var/run/docker.sock",
)


def host_sockets(script: Script) -> Judge:
    """Nothing listens where a host's services do."""
    opened = script.call(_SOCKET, _UNIX, STREAM | _NONBLOCK | _CLOSED_ON_EXEC, 0)
    calls: dict[str, Called] = {}
    for path in _HOST_SOCKETS:
        address = struct.pack("<H", _UNIX) + path.encode() + b"\0"
        calls[f"connecting to {path}"] = script.call_on(opened, _CONNECT, script.data(address), len(address))
    return _all_fail(calls, ABSENT)


# Files


def opens(paths: Mapping[str, int], allowed: Collection[int]) -> Probe:
    """Opening each path with these flags must fail so."""

    def probe(script: Script) -> Judge:
        calls = {
            f"opening {path}{' to write' if flags & WRITE_ONLY else ''}": script.call(
                _OPEN, script.text(path), flags | _CLOSED_ON_EXEC, 0o600
            )
            for path, flags in paths.items()
        }
        return _all_fail(calls, allowed)

    return probe


def _content(script: Script, path: str, size: int) -> Callable[[Report], str]:
    """A text file, read at once; raises ValueError when it could not be read whole."""
    found = script.buffer(size)
    opened = script.call(_OPEN, script.text(path), _CLOSED_ON_EXEC)
    read = script.call_on(opened, _READ, found.address, size)

    def take(report: Report) -> str:
        if not 0 < report.result(read) < size:
            raise ValueError(f"reading {path} {_words(report.result(read))}")
        return report.filled(found, read).decode("utf-8", "replace")

    return take


def _folder(script: Script, path: str, size: int) -> tuple[Callable[[Report], set[str]], Called]:
    """Names in a folder, and the call that opened it; raises ValueError when they could not be read."""
    found = script.buffer(size)
    opened = script.call(_OPEN, script.text(path), _FOLDER | _CLOSED_ON_EXEC)
    read = script.call_on(opened, _GETDENTS, found.address, size)
    again = script.call_on(opened, _GETDENTS, script.buffer(32).address, 32)

    def take(report: Report) -> set[str]:
        # What does not fit is told by the next call, which then finds the buffer too small, or a name.
        if report.result(read) <= 0 or report.result(again) != 0:
            raise ValueError(f"listing {path} {_words(report.result(read))}")
        entries, at, names = report.filled(found, read), 0, set[str]()
        while at + 19 < len(entries):
            length = struct.unpack_from("<H", entries, at + 16)[0]
            names.add(entries[at + 19 : at + length].split(b"\0", 1)[0].decode("utf-8", "replace"))
            at += max(length, 1)
        return names - {".", ".."}

    return take, opened


_MOUNTED: Final[Mapping[str, Collection[str]]] = {
    "/": {"erofs"},
    "/dev": {"tmpfs", "dev"},  # by older and by newer releases
    "/dev/pts": {"devpts"},
    "/proc": {"proc"},
    "/sys": {"sysfs"},
    **{folder: {"tmpfs"} for folder in TMPFS_FOLDERS},
}
_MUST_BE_MOUNTED: Final = {"/", "/proc", *TMPFS_FOLDERS}


def mounts(script: Script) -> Judge:
    """What is mounted is what the specification and gVisor mount."""
    content = _content(script, "/proc/self/mountinfo", 1536)

    def judge(report: Report, _: Expected) -> str:
        try:
            lines = [line.split() for line in content(report).splitlines()]
            found = {fields[4]: (fields[fields.index("-") + 1], fields[5].split(",")) for fields in lines}
        except (ValueError, IndexError) as error:
            return str(error)
        wrong = [f"{place} is {kind}" for place, (kind, _) in found.items() if kind not in _MOUNTED.get(place, ())]
        wrong += [f"{place} is not mounted" for place in sorted(_MUST_BE_MOUNTED - found.keys())]
        if "ro" not in found.get("/", ("", [""]))[1]:
            wrong.append("/ is not read-only")
        return "; ".join(wrong)

    return judge


def disk_limit(script: Script) -> Judge:
    """What can be written to is as large as the disk limit."""
    looked: dict[str, tuple[Buffer, Called]] = {}
    for place in TMPFS_FOLDERS:
        found = script.buffer(120)
        looked[place] = found, script.call(_STATFS, script.text(place), found.address)

    def judge(report: Report, expected: Expected) -> str:
        wrong: list[str] = []
        for place, (found, called) in looked.items():
            _, block, blocks = struct.unpack_from("<qqq", report.filled(found))
            if report.result(called) != 0 or block * blocks != expected.disk_bytes:
                wrong.append(f"{place} holds {block * blocks} bytes, not {expected.disk_bytes}")
        return "; ".join(wrong)

    return judge


_HARMLESS_DEVICES: Final = frozenset(
    {
        "fd",
        "stdin",
        "stdout",
        "stderr",
        "shm",
        "pts",
        "ptmx",
        "tty",
        "console",
        "null",
        "zero",
        "full",
        "random",
        "urandom",
        "fuse",
        "net",
        "char",
    }
)
"""What gVisor has of its own, in newer releases with links by number in `char`.

Its FUSE and its tun are of no use without a capability.
"""


def devices(script: Script) -> Judge:
    """No device but gVisor's own."""
    names, _ = _folder(script, "/dev", 1024)

    def judge(report: Report, _: Expected) -> str:
        try:
            others = names(report) - _HARMLESS_DEVICES
        except ValueError as error:
            return str(error)
        return f"there is /dev/{', /dev/'.join(sorted(others))}" if others else ""

    return judge


# The kernel


def calls(tried: Mapping[str, Callable[[Script], Called]], allowed: Collection[int]) -> Probe:
    """Each of these calls must fail so."""

    def probe(script: Script) -> Judge:
        return _all_fail({name: add(script) for name, add in tried.items()}, allowed)

    return probe


def plain(number: int, *arguments: int) -> Callable[[Script], Called]:
    """A call with numbers for arguments."""
    return lambda script: script.call(number, *arguments)


def texts(number: int, *arguments: int | str) -> Callable[[Script], Called]:
    """A call with strings among its arguments."""
    return lambda script: script.call(
        number, *(script.text(word) if isinstance(word, str) else word for word in arguments)
    )


NEW_USER, NEW_NETWORK, NEW_MOUNTS, NEW_PROCESSES = 0x1000_0000, 0x4000_0000, 0x2_0000, 0x2000_0000
_ALL_CAPABILITIES: Final = b"\xff" * 24


def kernel_identity(script: Script) -> Judge:
    """It is gVisor's kernel, and says nothing of the host."""
    names = script.buffer(6 * 65)
    named = script.call(_UNAME, names.address)
    boot = script.buffer(128)
    told = script.call(_SYSLOG, 3, boot.address, boot.size)

    def judge(report: Report, _: Expected) -> str:
        raw = report.filled(names)
        fields = [raw[at : at + 65].split(b"\0", 1)[0].decode("ascii", "replace") for at in range(0, len(raw), 65)]
        wrong: list[str] = []
        host = os.uname()
        if report.result(named) != 0 or fields[1] != HOSTNAME:
            wrong.append(f"its name is {fields[1]}")
        if (fields[2], fields[3]) == (host.release, host.version):
            wrong.append("the kernel is the host's")
        if b"gVisor" not in report.filled(boot, told):
            wrong.append("the kernel is not gVisor's")
        return "; ".join(wrong)

    return judge


# Who it is


def _status(script: Script) -> Callable[[Report], dict[str, str]]:
    content = _content(script, "/proc/self/status", 1024)
    return lambda report: {
        name: value.strip() for name, _, value in (line.partition(":") for line in content(report).splitlines())
    }


def user(script: Script) -> Judge:
    """Nobody, in no further group."""
    status = _status(script)
    groups = script.call(_GETGROUPS, 0, 0)

    def judge(report: Report, _: Expected) -> str:
        try:
            found = status(report)
            ids = {name: found[name].split() for name in ("Uid", "Gid")}
        except (ValueError, KeyError) as error:
            return str(error)
        wrong = [f"{name} {' '.join(each)}" for name, each in ids.items() if set(each) != {str(SANDBOX_UID)}]
        if report.result(groups) != 0:
            wrong.append(f"{report.result(groups)} groups")
        return "; ".join(wrong)

    return judge


def capabilities(script: Script) -> Judge:
    """None in any set, and none to be had."""
    status = _status(script)
    header = script.data(struct.pack("<Ii", 0x2008_0522, 0))
    gained = script.call(_CAPSET, header, script.data(_ALL_CAPABILITIES))

    def judge(report: Report, _: Expected) -> str:
        try:
            sets = {name: value for name, value in status(report).items() if name.startswith("Cap")}
        except ValueError as error:
            return str(error)
        if not sets:
            return "nothing is told of them"
        return "; ".join(f"{name} {value}" for name, value in sets.items() if int(value, 16) != 0)

    return _both(judge, _all_fail({"taking all of them": gained}, REFUSED))


def tells(name: str, number: int, arguments: tuple[int, ...], wanted: int) -> Probe:
    """A call that answers with what is in force."""

    def probe(script: Script) -> Judge:
        asked = script.call(number, *arguments)
        return lambda report, _: (
            "" if report.result(asked) == wanted else f"{name} is {report.result(asked)}, not {wanted}"
        )

    return probe


def all_of(*probes: Probe) -> Probe:
    """Several probes as one."""
    return lambda script: _both(*[probe(script) for probe in probes])


def processes(script: Script) -> Judge:
    """It is the first process, and there is no other."""
    names, _ = _folder(script, "/proc", 1536)
    me, parent = script.call(_GETPID), script.call(_GETPPID)

    def judge(report: Report, _: Expected) -> str:
        try:
            found = {name for name in names(report) if name.isdecimal()}
        except ValueError as error:
            return str(error)
        if found != {"1"} or report.result(me) != 1 or report.result(parent) != 0:
            return f"it is {report.result(me)}, started by {report.result(parent)}, among {', '.join(sorted(found))}"
        return ""

    return judge


def descriptors(script: Script) -> Judge:
    """None but standard input, output, error and the channel."""
    names, opened = _folder(script, "/proc/self/fd", 1024)

    def judge(report: Report, _: Expected) -> str:
        try:
            others = names(report) - {"0", "1", "2", str(CHANNEL_FD), str(report.result(opened))}
        except ValueError as error:
            return str(error)
        return f"there is {', '.join(sorted(others))}" if others else ""

    return judge


_FILE_SIZE, _CORE, _PROCESSES, _OPEN_FILES = 1, 4, 6, 7


def resource_limits(script: Script) -> Judge:
    """Limits are those of the specification."""
    asked: dict[int, tuple[Buffer, Called]] = {}
    for resource in (_FILE_SIZE, _CORE, _PROCESSES, _OPEN_FILES):
        found = script.buffer(16)
        asked[resource] = found, script.call(_PRLIMIT, 0, resource, 0, found.address)

    def judge(report: Report, expected: Expected) -> str:
        wanted = {
            _FILE_SIZE: ("file size", file_size_bound(expected.disk_bytes)),
            _CORE: ("core file", 0),
            _PROCESSES: ("processes", expected.processes),
            _OPEN_FILES: ("open files", expected.open_files),
        }
        wrong: list[str] = []
        for resource, (found, called) in asked.items():
            name, value = wanted[resource]
            limits = struct.unpack("<QQ", report.filled(found))
            if report.result(called) != 0 or limits != (value, value):
                wrong.append(f"{name}: {limits[0]} and {limits[1]}, not {value}")
        return "; ".join(wrong)

    return judge
