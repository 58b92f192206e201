"""What is known of a sandbox's confinement, as plain data: checks, what each found, and the looks they were made in.

The names are those of the contract, `crucible.v1.Containment`, which says what each check means.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from types import MappingProxyType
from typing import Any, Final, cast

DETAIL_CHARS: Final = 500
"""Of a finding."""


class Check(StrEnum):
    """What is checked."""

    TCP_EGRESS = "TCP_EGRESS"
    UDP_EGRESS = "UDP_EGRESS"
    DNS = "DNS"
    METADATA_SERVICE = "METADATA_SERVICE"
    NETWORK_INTERFACES = "NETWORK_INTERFACES"
    RAW_SOCKETS = "RAW_SOCKETS"
    PACKET_SOCKETS = "PACKET_SOCKETS"
    EXOTIC_SOCKETS = "EXOTIC_SOCKETS"
    HOST_SOCKETS = "HOST_SOCKETS"
    HOST_PATHS = "HOST_PATHS"
    MOUNTS = "MOUNTS"
    READ_ONLY_ROOT = "READ_ONLY_ROOT"
    DISK_LIMIT = "DISK_LIMIT"
    DEVICES = "DEVICES"
    KERNEL_FILES = "KERNEL_FILES"
    MOUNTING = "MOUNTING"
    NAMESPACES = "NAMESPACES"
    KERNEL_CODE = "KERNEL_CODE"
    MACHINE_CONTROL = "MACHINE_CONTROL"
    KEY_RINGS = "KEY_RINGS"
    USER = "USER"
    SETUID = "SETUID"
    CAPABILITIES = "CAPABILITIES"
    NO_NEW_PRIVILEGES = "NO_NEW_PRIVILEGES"
    SYSTEM_CALL_FILTER = "SYSTEM_CALL_FILTER"
    PROCESSES = "PROCESSES"
    DESCRIPTORS = "DESCRIPTORS"
    RESOURCE_LIMITS = "RESOURCE_LIMITS"
    KERNEL_IDENTITY = "KERNEL_IDENTITY"

    SENTRY_USER = "SENTRY_USER"
    SENTRY_CAPABILITIES = "SENTRY_CAPABILITIES"
    SENTRY_SYSTEM_CALL_FILTER = "SENTRY_SYSTEM_CALL_FILTER"
    SENTRY_NO_NEW_PRIVILEGES = "SENTRY_NO_NEW_PRIVILEGES"
    SENTRY_NAMESPACES = "SENTRY_NAMESPACES"
    SENTRY_ROOT = "SENTRY_ROOT"
    SENTRY_DESCRIPTORS = "SENTRY_DESCRIPTORS"
    SENTRY_OPTIONS = "SENTRY_OPTIONS"
    SANDBOX_PROCESSES = "SANDBOX_PROCESSES"
    SUPERVISOR = "SUPERVISOR"
    ROOT_IMAGE = "ROOT_IMAGE"
    CONTROL_GROUP = "CONTROL_GROUP"
    MEMORY_LIMIT = "MEMORY_LIMIT"
    PROCESS_LIMIT = "PROCESS_LIMIT"

    PROCESSES_GONE = "PROCESSES_GONE"
    CONTROL_GROUP_GONE = "CONTROL_GROUP_GONE"
    FOLDER_GONE = "FOLDER_GONE"
    IMAGE_UNCHANGED = "IMAGE_UNCHANGED"


class Found(StrEnum):
    """What a check found; the names are those of `Containment.Verdict`."""

    HELD = "HELD"
    BROKEN = "BROKEN"
    NOT_CHECKED = "NOT_CHECKED"


@dataclass(frozen=True, slots=True)
class Finding:
    """One check with what it found; `detail` is empty where it held."""

    check: Check
    found: Found
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Look:
    """The checks made at one time from one side."""

    time: datetime
    findings: tuple[Finding, ...]

    @property
    def broken(self) -> tuple[Finding, ...]:
        """What is not as it must be."""
        return tuple(finding for finding in self.findings if finding.found is Found.BROKEN)


@dataclass(frozen=True, slots=True)
class Containment:
    """What is known before a program comes."""

    inside: Look
    before: Look

    @property
    def broken(self) -> tuple[Finding, ...]:
        """What is not as it must be, from either side."""
        return (*self.inside.broken, *self.before.broken)


def judged(wrong: Mapping[Check, str], unknown: Mapping[Check, str] = MappingProxyType({})) -> Look:
    """A look made now: what is wrong with each check, nothing where it held, and why others could not be made."""
    findings = [Finding(check, Found.BROKEN if why else Found.HELD, why[:DETAIL_CHARS]) for check, why in wrong.items()]
    findings += [Finding(check, Found.NOT_CHECKED, why[:DETAIL_CHARS]) for check, why in unknown.items()]
    return Look(datetime.now(UTC), tuple(findings))


def unchecked(checks: Iterable[Check], why: str) -> Look:
    """A look that could not be made."""
    return judged({}, dict.fromkeys(checks, why))


def words(findings: Sequence[Finding]) -> str:
    """Findings for a person."""
    return "; ".join(f"{finding.check}: {finding.detail}" for finding in findings)


def dump(look: Look) -> dict[str, object]:
    """A look as plain JSON, for the line between launcher and service."""
    return {
        "time": look.time.timestamp(),
        "findings": [[each.check.value, each.found.value, each.detail] for each in look.findings],
    }


def load(report: Any) -> Look:  # noqa: ANN401 - any JSON
    """Back again; raises ValueError for anything else, such as a look that failed."""
    try:
        findings = cast("list[list[str]]", report["findings"])
        return Look(
            datetime.fromtimestamp(report["time"], UTC),
            tuple(Finding(Check(check), Found(found), detail) for check, found, detail in findings),
        )
    except (KeyError, TypeError) as error:
        raise ValueError(f"no look at a sandbox: {str(report)[:DETAIL_CHARS]}") from error
