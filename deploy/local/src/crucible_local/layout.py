"""Where a stack keeps what: data that outlive it, and what is known of it while it runs."""

import fcntl
import hashlib
import os
import time
from dataclasses import dataclass
from pathlib import Path

DEFAULT_DATA = Path("/var/lib/crucible")
RUNTIME_ROOT = Path("/run/crucible")
MARKER = ".crucible-stack"
LOCK_TRIES = 10
LOCK_SECONDS = 0.02
"""Between tries: `is_held` takes the lock for a moment, and such a moment is no running stack."""


class LayoutError(RuntimeError):
    """The data folder cannot be used; the message says why and what to do."""


@dataclass(frozen=True)
class Layout:
    """All paths of one stack, which its data folder names: two stacks are two data folders."""

    data: Path

    @property
    def lock(self) -> Path:
        """Locked for as long as the stack has a supervisor. Its being there marks the folder as ours."""
        return self.data / MARKER

    @property
    def logs(self) -> Path:
        """One file per process."""
        return self.data / "logs"

    @property
    def images(self) -> Path:
        """Root images of runtimes."""
        return self.data / "images"

    @property
    def objects(self) -> Path:
        """Outputs and inputs of programs, in files."""
        return self.data / "objects"

    @property
    def streams(self) -> Path:
        """JetStream's files."""
        return self.data / "streams"

    @property
    def database(self) -> Path:
        """PostgreSQL's data directory."""
        return self.data / "database"

    @property
    def programs(self) -> Path:
        """Copies of PostgreSQL's programs."""
        return self.data / "postgres"

    @property
    def identity(self) -> str:
        """A short name, the same for the same data folder."""
        return hashlib.sha256(str(self.data).encode()).hexdigest()[:8]

    @property
    def runtime(self) -> Path:
        """What a reboot may forget. Short: unix socket paths hold 107 bytes."""
        return RUNTIME_ROOT / self.identity

    @property
    def state(self) -> Path:
        """What is known of the stack's processes."""
        return self.runtime / "state.json"

    @property
    def sockets(self) -> Path:
        """Where PostgreSQL's socket is."""
        return self.runtime / "postgres"

    def claim(self) -> None:
        """Makes the data folder. Raises LayoutError for a folder that holds anything else."""
        if self.data.is_dir() and not self.lock.exists() and any(self.data.iterdir()):
            known = {"images"}  # images may be built before the first start
            if strangers := sorted(entry.name for entry in self.data.iterdir() if entry.name not in known):
                raise LayoutError(
                    f"{self.data} holds other files ({', '.join(strangers[:3])}); choose another folder with --data"
                )
        for folder in (self.data, self.logs, RUNTIME_ROOT):
            make_public(folder)
        RUNTIME_ROOT.chmod(0o755)  # an executor may have made it under another umask
        self.lock.touch(mode=0o600)
        closed = [str(parent) for parent in self.data.parents if not parent.stat().st_mode & 0o001]
        if os.geteuid() == 0 and closed:
            raise LayoutError(
                f"{self.data} cannot hold a database: PostgreSQL runs as a user of its own, which may not enter"
                f" {closed[-1]}; choose another folder with --data"
            )


def make_public(folder: Path) -> None:
    """Makes the folder; others may enter and list it, whatever the umask."""
    if not folder.is_dir():
        folder.mkdir(parents=True)
        folder.chmod(0o755)


def take_lock(path: Path) -> int | None:
    """The descriptor that holds the lock, for this process and for any that inherits it; None when another holds it.

    Raises FileNotFoundError when the stack was never started.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    for _ in range(LOCK_TRIES):
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(LOCK_SECONDS)
        else:
            return descriptor
    os.close(descriptor)
    return None


def is_held(path: Path) -> bool:
    """Whether a supervisor holds the lock."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False
