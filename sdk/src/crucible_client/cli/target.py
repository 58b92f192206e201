"""What the options before the subcommand say."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Target:
    """Where the platform is; None: by environment, file or default."""

    scheduler: str | None
    store: str | None
