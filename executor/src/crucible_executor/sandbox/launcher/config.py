"""How a launcher is set up: by who starts it, before anything else could speak to it."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True)
class LauncherConfig:
    """All of it; it travels on the launcher's command line, so no secret is in it."""

    images_dir: Path
    state_root: Path
    image_record: Path
    """Which images were found to be what was built; a file in a folder that only root may write."""
    cgroup_parent: str
    instance: str
    runsc: str
    platform: str
    deadline_grace: float
    """Seconds beyond its wall time after which a sandbox is ended without being asked."""
    unclaimed_age: float
    """Seconds that a sandbox may be there without a program."""
    gone_timeout: float
    """Seconds for what was killed to be gone, and as many for what it leaves to be removed."""
    sweep_interval: float
    """Seconds between two sweeps of what dead executors left."""
    most_sandboxes: int
    """That may be there at one time, those that are being removed among them."""

    def dump(self) -> str:
        """As JSON."""
        return json.dumps(asdict(self), default=str, separators=(",", ":"))

    @classmethod
    def load(cls, text: str) -> LauncherConfig:
        """From JSON."""
        raw: dict[str, Any] = json.loads(text)
        raw |= {name: Path(raw[name]) for name in ("images_dir", "state_root", "image_record")}
        return cls(**raw)
