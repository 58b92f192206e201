"""What one stack is started with."""

import importlib.util
import json
import os
import pwd
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from crucible_local.confinement import Account, ensure_account, first_closed
from crucible_local.ports import free_port, is_free

DEFAULT_PORT_BASE = 8080
SERVICE_ACCOUNT = "crucible"
NOBODY = Account(name="nobody", uid=65534, gid=65534)
JAEGER_UI, JAEGER_OTLP = 16686, 4318
OFFSETS = {
    "gateway": 0,
    "scheduler": 1,
    "store": 2,
    "nats": 3,
    "scheduler_admin": 11,
    "store_admin": 12,
    "executor_admin": 13,
    "jaeger_ui": 20,
    "jaeger_otlp": 21,
}


class PortTakenError(RuntimeError):
    """Something listens where the stack should; the message names the port and what moves it."""


@dataclass(frozen=True)
class Ports:
    """TCP ports on 127.0.0.1."""

    gateway: int
    scheduler: int
    store: int
    nats: int
    scheduler_admin: int
    store_admin: int
    executor_admin: int
    jaeger_ui: int
    jaeger_otlp: int

    @staticmethod
    def choose(base: int | None, gateway: int | None) -> "Ports":
        """The ports from `base` on, Jaeger on its usual ones with the default base; any free ones with base 0."""
        if base == 0:
            chosen = {name: free_port() for name in OFFSETS}
            while len(set(chosen.values())) < len(chosen):  # drawn at random: two may be the same
                chosen = {name: free_port() for name in OFFSETS}
        else:
            chosen = {name: (base or DEFAULT_PORT_BASE) + offset for name, offset in OFFSETS.items()}
            if (base or DEFAULT_PORT_BASE) == DEFAULT_PORT_BASE:
                chosen |= {"jaeger_ui": JAEGER_UI, "jaeger_otlp": JAEGER_OTLP}
        if gateway is not None:
            chosen["gateway"] = gateway
        return Ports(**chosen)

    def require_free(self, *, jaeger: bool) -> None:
        """Raises PortTakenError for the first that is taken."""
        for name in OFFSETS:
            port = int(getattr(self, name))
            if (jaeger or not name.startswith("jaeger")) and not is_free(port):
                own = "choose another with --port, or move" if name == "gateway" else "move"
                raise PortTakenError(
                    f"port {port} on 127.0.0.1, for the {name.replace('_', ' ')}, is already in use; {own} all ports"
                    " with --port-base or CRUCIBLE_PORT_BASE (0 takes any free ones)"
                )


@dataclass(frozen=True)
class StackOptions:
    """All a supervisor needs to know; it travels to it as JSON."""

    data: Path
    ports: Ports
    jaeger: bool = False
    client_config: Path | None = None
    """Where to write the client's addresses."""

    def dump(self) -> str:
        """As JSON."""
        return json.dumps(asdict(self), default=str)

    @staticmethod
    def load(text: str) -> "StackOptions":
        """From JSON."""
        raw: dict[str, Any] = json.loads(text)
        config = raw["client_config"]
        return StackOptions(
            data=Path(raw["data"]),
            ports=Ports(**raw["ports"]),
            jaeger=bool(raw["jaeger"]),
            client_config=Path(config) if config else None,
        )


def invoking_user(environment: Mapping[str, str]) -> Account | None:
    """Who called sudo; None when nobody did."""
    uid = environment.get("SUDO_UID", "0")
    if os.geteuid() != 0 or not uid.isdigit() or int(uid) == 0:
        return None
    try:
        entry = pwd.getpwuid(int(uid))
    except KeyError:
        return None
    return Account(name=entry.pw_name, uid=entry.pw_uid, gid=entry.pw_gid)


def service_user(environment: Mapping[str, str]) -> Account | None:
    """Who the services run as: who called sudo, else a system user of Crucible's own, made when missing.

    None, which is root without capabilities, when neither could read the code. Raises ConfinementError.
    """
    if os.geteuid() != 0:
        return None
    user = invoking_user(environment)
    if user is not None and not closed_code(user):  # its home may be closed to every other
        return user
    return None if closed_code() else ensure_account(SERVICE_ACCOUNT)


def closed_code(user: Account = NOBODY) -> str:
    """A file of the services' code, Python's own included, that this user cannot read; nothing when it can read all.

    Root only. Raises ConfinementError.
    """
    packages = ("crucible_executor", "crucible_local", "crucible_store", "grpc")
    found = [spec.origin for name in packages if (spec := importlib.util.find_spec(name)) and spec.origin]
    return first_closed([os.path.realpath(sys.executable), os.__file__, *found], user)


assert {field.name for field in fields(Ports)} == set(OFFSETS)
