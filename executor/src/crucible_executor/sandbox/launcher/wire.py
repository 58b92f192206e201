"""What launcher and service say to each other: JSON packets over a SOCK_SEQPACKET pair, descriptors beside answers.

The service asks and tells; everything that it may say is one of these, and nothing in it is a path, a command or a
piece of a specification. A request has a number, which its answer repeats; what is told has none and gets no answer.

| request | fields | answer |
|---|---|---|
| `boot` | runtime, disk_bytes, ahead | `digest`, `agent` (it awaits a script), and the descriptors of `DESCRIPTORS` |
| `bound` | memory_bytes, processes | when these are in force and not the runtime's defaults; before `claim` |
| `end` | | when every process of it is gone |
| `close` | | `after`, when nothing of it is left |
| `inspect` | | `report` |

| told | meaning |
|---|---|
| `hurry` | give it its full part of the CPU |
| `ready` | it waits for a program: the same, and its supervisor out of its memory limit |
| `claim` | it gets its program: its deadline counts from now; once |
| `kill` | kill all of it |

Each names its sandbox by `id`; where what was told cannot be done, the sandbox is ended. The launcher begins with one
packet, `opened` or `refused`, and tells `ended` when a sandbox's supervisor is gone.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any, Final, cast

from crucible_executor.sandbox.port import Cause, SandboxFault

DESCRIPTORS: Final = ("channel", "stdin", "stdout", "stderr", "log", "panic", "events", "freezer")
"""What the service gets of a sandbox: its ends of pipes and sockets, and what stops it until it is claimed or ended."""
REQUEST_BYTES: Final = 4096
ANSWER_BYTES: Final = 160 * 1024
"""Below the kernel's default for what a socket holds."""
REPORT_BYTES: Final = 64 * 1024
"""Of each of the looks at a sandbox's confinement."""

_ID: Final = re.compile(r"[0-9a-f]{32}")
_FIELDS: Final[Mapping[str, Mapping[str, type]]] = {
    "boot": {"runtime": str, "disk_bytes": int, "ahead": bool},
    "bound": {"memory_bytes": int, "processes": int},
    "end": {},
    "close": {},
    "inspect": {},
    "hurry": {},
    "ready": {},
    "claim": {"wall_time": float},
    "kill": {},
}
ASKED: Final = frozenset({"boot", "bound", "end", "close", "inspect"})


class WireError(Exception):
    """A packet that is none of those above."""


def pack(packet: Mapping[str, object]) -> bytes:
    """As bytes."""
    return json.dumps(packet, separators=(",", ":")).encode()


def unpack(data: bytes) -> dict[str, Any]:
    """Back again; raises WireError."""
    try:
        packet = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise WireError(f"no JSON: {error}") from error
    if not isinstance(packet, dict):
        raise WireError("no object")
    return cast("dict[str, Any]", packet)  # the keys of a JSON object are strings


def check_request(packet: dict[str, Any]) -> tuple[str, str, int]:
    """The request's name, its sandbox and its number (0 for what is told); raises WireError for anything unexpected."""
    name, identity, number = packet.pop("op", None), packet.pop("id", None), packet.pop("n", 0)
    if not isinstance(name, str) or name not in _FIELDS:
        raise WireError("no such request")
    if not isinstance(identity, str) or not _ID.fullmatch(identity):
        raise WireError("no sandbox is named")
    if type(number) is not int or number < 0 or (number > 0) != (name in ASKED):
        raise WireError("a wrong number")
    wanted = _FIELDS[name]
    if packet.keys() != wanted.keys() or any(type(packet[field]) is not kind for field, kind in wanted.items()):
        raise WireError("wrong fields")
    return name, identity, number


def fault_fields(error: SandboxFault) -> dict[str, str]:
    """A fault as the fields of an answer."""
    return {"fault": error.cause.value, "detail": error.detail[:2000]}


def raise_fault(packet: Mapping[str, Any]) -> None:
    """The fault that an answer tells, if it does."""
    if "fault" in packet:
        raise SandboxFault(Cause(packet["fault"]), packet["detail"])
