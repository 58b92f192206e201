"""Which TCP ports of the loopback address are free."""

import random
import socket
from pathlib import Path

FIRST, LAST = 12_000, 31_999
"""Below Linux's ephemeral range: no client's outgoing connection takes the port while its server restarts."""


def is_free(port: int, host: str = "127.0.0.1") -> bool:
    """Whether a server could listen there now, a port in TIME_WAIT counting as free."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
            probe.listen(1)
        except OSError:
            return False
    return True


def free_port() -> int:
    """A port that nothing listens on, drawn at random so that two who ask at the same time rarely collide."""
    floor = _ephemeral_floor()
    ceiling = min(LAST, floor - 1) if floor > FIRST else LAST
    for _ in range(1000):
        port = random.randint(FIRST, ceiling)  # noqa: S311 - no secret
        if is_free(port):
            return port
    raise RuntimeError(f"no free port between {FIRST} and {ceiling}")


def _ephemeral_floor() -> int:
    try:
        return int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    except (OSError, ValueError):
        return 32_768
