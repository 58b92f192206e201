"""What a sandbox tries before its program comes, a row for each check, and the judgement of all of it together.

What is tried would do no harm if it succeeded: addresses are those reserved for documentation, values are those that
are in force already, or none.
"""

from __future__ import annotations

import errno
from collections.abc import Collection, Mapping
from functools import cache
from typing import Final

from crucible_executor.sandbox.containment import trials
from crucible_executor.sandbox.containment.report import Check, Look, judged
from crucible_executor.sandbox.containment.script import Report, Script
from crucible_executor.sandbox.containment.trials import (
    ABSENT,
    CREATE,
    DATAGRAM,
    DENIED,
    INET,
    INET6,
    NEW_MOUNTS,
    NEW_NETWORK,
    NEW_PROCESSES,
    NEW_USER,
    NO_FAMILY,
    PACKET,
    PRCTL,
    RAW,
    REFUSED,
    SETGID,
    SETGROUPS,
    SETRESGID,
    SETRESUID,
    SETUID,
    STREAM,
    WRITE_ONLY,
    Expected,
    Probe,
    all_of,
    calls,
    opens,
    outwards,
    plain,
    sockets,
    tells,
    texts,
)
from crucible_executor.sandbox.gvisor.spec import HOSTNAME, WORK_DIR

PROBES: Final[Mapping[Check, Probe]] = {
    # First, while nothing else is open.
    Check.DESCRIPTORS: trials.descriptors,
    Check.TCP_EGRESS: outwards(STREAM, {"192.0.2.1": 443, "2001:db8::1": 443}),
    Check.UDP_EGRESS: outwards(DATAGRAM, {"192.0.2.1": 9, "2001:db8::1": 9}),
    Check.DNS: trials.dns,
    Check.METADATA_SERVICE: trials.metadata,
    Check.NETWORK_INTERFACES: trials.interfaces,
    Check.RAW_SOCKETS: sockets({"ICMP": (INET, RAW, 1), "ICMPv6": (INET6, RAW, 58)}, REFUSED | NO_FAMILY),
    Check.PACKET_SOCKETS: sockets(
        {"raw packets": (PACKET, RAW, 0x300), "packets": (PACKET, DATAGRAM, 0x300)}, REFUSED | NO_FAMILY
    ),
    Check.EXOTIC_SOCKETS: sockets(
        {"the hypervisor": (40, STREAM, 0), "cryptography": (38, 5, 0), "XDP": (44, RAW, 0), "Bluetooth": (31, 3, 0),
         "CAN": (29, RAW, 1), "TIPC": (30, STREAM, 0), "RDS": (21, 5, 0), "SMC": (43, STREAM, 0),
         "IPsec keys": (15, RAW, 2), "netfilter": (16, RAW, 12), "audit": (16, RAW, 9)},
        REFUSED | NO_FAMILY,
    ),
    Check.HOST_SOCKETS: trials.host_sockets,
    Check.HOST_PATHS: opens(
        dict.fromkeys(("/run/crucible", "/var/lib/crucible", "/etc/machine-id", "/boot", "/sys/class/net/eth0"), 0),
        ABSENT,
    ),
    Check.MOUNTS: trials.mounts,
    Check.READ_ONLY_ROOT: opens(
        dict.fromkeys(("/crucible-probe", "/usr/bin/crucible-probe", "/etc/crucible-probe"), WRITE_ONLY | CREATE),
        {errno.EROFS},
    ),
    Check.DISK_LIMIT: trials.disk_limit,
    Check.DEVICES: trials.devices,
    Check.KERNEL_FILES: opens(
        {"/proc/kcore": 0, "/proc/kmsg": 0, "/proc/kallsyms": 0, "/sys/kernel/debug/tracing": 0, "/sys/firmware/efi": 0,
         "/proc/sysrq-trigger": WRITE_ONLY, "/proc/sys/kernel/core_pattern": WRITE_ONLY,
         "/proc/sys/net/ipv4/ip_forward": WRITE_ONLY},
        REFUSED | ABSENT,
    ),
    Check.MOUNTING: calls(
        {"mount": texts(165, "none", WORK_DIR, "tmpfs", 0, 0), "umount2": texts(166, WORK_DIR, 0),
         "pivot_root": texts(155, WORK_DIR, WORK_DIR), "chroot": texts(161, WORK_DIR),
         "fsopen": texts(430, "tmpfs", 1), "open_tree": texts(428, -100, WORK_DIR, 0x80001)},
        REFUSED,
    ),
    Check.NAMESPACES: calls(
        {"a new user namespace": plain(272, NEW_USER), "a new network namespace": plain(272, NEW_NETWORK),
         "a new mount namespace": plain(272, NEW_MOUNTS), "a new PID namespace": plain(272, NEW_PROCESSES),
         "setns": plain(308, 0, 0)},
        REFUSED,
    ),
    Check.KERNEL_CODE: calls(
        {"init_module": plain(175, 0, 0, 0), "finit_module": plain(313, -1, 0, 0),
         "delete_module": texts(176, "crucible-probe", 0), "kexec_load": plain(246, 0, 0, 0, 0),
         "bpf": plain(321, 0, 0, 0), "perf_event_open": plain(298, 0, 0, -1, -1, 0),
         "io_uring_setup": plain(425, 1, 0), "userfaultfd": plain(323, 0o2000000)},
        REFUSED,
    ),
    Check.MACHINE_CONTROL: calls(
        {"reboot": plain(169, 0xFEE1DEAD, 0x28121969, 0, 0), "sethostname": texts(170, HOSTNAME, len(HOSTNAME)),
         "setdomainname": texts(171, "(none)", 6), "clock_settime": plain(227, 0, 0),
         "settimeofday": plain(164, 0, 0),
         "swapon": texts(167, "/crucible-probe", 0), "swapoff": texts(168, "/crucible-probe"),
         "acct": plain(163, 0), "iopl": plain(172, 3), "ioperm": plain(173, 0x80, 1, 1)},
        REFUSED,
    ),
    Check.KEY_RINGS: calls(
        {"add_key": texts(248, "user", "crucible-probe", "", 0, -1),
         "request_key": texts(249, "user", "crucible-probe", 0, 0), "keyctl": plain(250, 0, -3, 0)},
        REFUSED,
    ),
    Check.USER: trials.user,
    Check.SETUID: calls(
        {"setuid": plain(SETUID, 0), "setresuid": plain(SETRESUID, 0, 0, 0), "setgid": plain(SETGID, 0),
         "setresgid": plain(SETRESGID, 0, 0, 0),
         "setgroups": lambda script: script.call(SETGROUPS, 1, script.data(bytes(4)))},
        REFUSED,
    ),
    Check.CAPABILITIES: trials.capabilities,
    Check.NO_NEW_PRIVILEGES: tells("no_new_privs", PRCTL, (39, 0, 0, 0, 0), 1),
    Check.SYSTEM_CALL_FILTER: all_of(
        tells("the mode of seccomp", PRCTL, (21, 0, 0, 0, 0), 2),
        calls(
            {"keyctl": plain(250, 0, -3, 0), "perf_event_open": plain(298, 0, 0, -1, -1, 0),
             "open_by_handle_at": plain(304, -100, 0, 0), "setns": plain(308, 0, 0),
             "unshare": plain(272, NEW_USER)},
            DENIED,
        ),
    ),
    Check.PROCESSES: trials.processes,
    Check.RESOURCE_LIMITS: trials.resource_limits,
    Check.KERNEL_IDENTITY: trials.kernel_identity,
}  # fmt: skip


class ProbeSet:
    """The script of a set of probes, and the judgement of what the agent reports of it."""

    def __init__(self, probes: Mapping[Check, Probe]) -> None:
        script = Script()
        self._judges = {check: probe(script) for check, probe in probes.items()}
        self.script = script.image()
        """As the agent reads it."""

    @property
    def checks(self) -> Collection[Check]:
        """What is checked."""
        return self._judges.keys()

    def judge(self, content: bytes, expected: Expected) -> Look:
        """What the agent's report says; raises ValueError when it is none."""
        report = Report(content)
        return judged({check: judge(report, expected) for check, judge in self._judges.items()})


@cache
def probe_set() -> ProbeSet:
    """All of `PROBES`; the same for every sandbox."""
    return ProbeSet(PROBES)
