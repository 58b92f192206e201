"""What is known of a stack by anyone who asks: one JSON file, replaced whole at each change by its supervisor."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from crucible_local.kernel import ProcessIdentity

Phase = Literal["starting", "ready", "stopping", "failed", "stopped"]
Condition = Literal["waiting", "starting", "ready", "restarting", "stopping", "stopped", "done", "failed"]


@dataclass
class ProcessState:
    """One process as last seen by its supervisor."""

    name: str
    kind: Literal["daemon", "job", "gate"]
    condition: Condition = "waiting"
    address: str = ""
    detail: str = ""
    """What it waits for, or how it last ended."""
    identity: ProcessIdentity | None = None
    restarts: int = 0
    seconds: float = 0
    """From start to ready, or done."""
    log: str = ""
    ready_url: str | None = None


@dataclass
class StackState:
    """A whole stack."""

    supervisor: ProcessIdentity
    phase: Phase = "starting"
    failure: str = ""
    """Why it could not start, with the last words of the process at fault."""
    addresses: dict[str, str] = field(default_factory=dict[str, str])
    """Where clients find it: gateway, scheduler, store, nats, and jaeger when there."""
    processes: list[ProcessState] = field(default_factory=list[ProcessState])

    def write(self, path: Path) -> None:
        """Replaces the file."""
        partial = path.with_suffix(".partial")
        partial.write_text(json.dumps(asdict(self), indent=1))
        partial.chmod(0o644)
        partial.replace(path)

    @staticmethod
    def read(path: Path) -> "StackState | None":
        """The last written state; None when there is none, or one that cannot be understood."""
        try:
            raw: dict[str, Any] = json.loads(path.read_text())
            processes: list[ProcessState] = []
            for entry in raw.pop("processes"):
                identity = entry.pop("identity")
                processes.append(ProcessState(**entry, identity=identity and ProcessIdentity(**identity)))
            return StackState(supervisor=ProcessIdentity(**raw.pop("supervisor")), processes=processes, **raw)
        except (OSError, ValueError, TypeError, KeyError):
            return None
