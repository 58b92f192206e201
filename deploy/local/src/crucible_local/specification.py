"""What a supervisor is told to run: daemons that must live, jobs that must end well, in stages."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from signal import SIGTERM, Signals


def _nothing() -> None:
    return None


@dataclass(frozen=True)
class Daemon:
    """A process that lives as long as the stack; one that ends is started again."""

    name: str
    command: Sequence[str]
    """Through `confinement.confined`, so that it dies with its supervisor."""
    env: Mapping[str, str]
    """The whole environment."""
    ready: Callable[[], bool]
    """Whether it does its work; a blocking probe of at most a few seconds, called in a thread."""
    address: str
    """Where it is reached, for people."""
    ready_url: str | None = None
    """Where anybody can ask whether it is ready now."""
    grace_seconds: float = 15
    """From the stop signal to SIGKILL."""
    stop_signal: Signals = SIGTERM
    umask: int = 0o022
    cleanup: Callable[[], None] = field(default=_nothing)
    """Removes what a killed predecessor left; called before each start and after the last end."""


@dataclass(frozen=True)
class Job:
    """A process that does something once, before the next stage begins."""

    name: str
    command: Sequence[str]
    env: Mapping[str, str]
    purpose: str
    """What it does, for people who wait for it."""


@dataclass(frozen=True)
class Gate:
    """A condition that must come true before the next stage begins."""

    name: str
    ready: Callable[[], bool]
    """A blocking probe, called in a thread."""
    purpose: str


Step = Daemon | Job | Gate
Stage = Sequence[Step]
"""Steps that start together; all must be ready before the next stage. All steps stop one by one, in reverse order."""
