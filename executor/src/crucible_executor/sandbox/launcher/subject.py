"""What the launcher knows of one sandbox, for whoever looks at its confinement."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from crucible_executor.sandbox.cgroup import Cgroup


@dataclass(frozen=True, slots=True)
class Subject:
    """One sandbox, as the launcher built it; process ids are its own as long as it is neither ended nor closed."""

    identity: str
    runtime: str
    image: Path
    """The verified root image."""
    image_digest: str
    image_identity: tuple[int, ...]
    """`catalogue.identity` of the image, as it was verified."""
    folder: Path
    """Its state: bundle, sockets, runsc's root."""
    cgroup: Cgroup
    memory_bytes: int
    """Bound of its memory that was asked for."""
    processes: int
    """Bound of its host processes that was asked for."""
    supervisor: int
    """`runsc run`."""
    sentry: int
    """gVisor's kernel."""
    stubs: tuple[int, ...]
    """The host processes of the program's address spaces, and whatever else is in the control group."""
