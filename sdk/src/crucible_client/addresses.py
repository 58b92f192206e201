"""Where the scheduler and the store are: argument, environment, file, default, in this order, each by itself."""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from crucible_client.errors import ConfigurationError

DEFAULT_SCHEDULER = "127.0.0.1:8081"
DEFAULT_STORE = "127.0.0.1:8082"
SCHEDULER_VARIABLE = "CRUCIBLE_SCHEDULER_URL"
STORE_VARIABLE = "CRUCIBLE_STORE_URL"


@dataclass(frozen=True, slots=True)
class Addresses:
    """gRPC targets: `host:port`, `dns:///name:port` or `ipv4:a:1,b:2`."""

    scheduler: str
    """Takes commands: create, run, cancel, requeue."""
    store: str
    """Answers reads, waits and watches."""


def config_path(environment: Mapping[str, str] = os.environ) -> Path:
    """The file that `crucible up` writes: `client.toml` with the keys `scheduler` and `store`."""
    configured = environment.get("XDG_CONFIG_HOME")
    return (Path(configured) if configured else Path.home() / ".config") / "crucible" / "client.toml"


def find_addresses(
    scheduler: str | None = None, store: str | None = None, environment: Mapping[str, str] = os.environ
) -> Addresses:
    """Both addresses. Raises ConfigurationError when the file is needed and cannot be read."""
    scheduler = scheduler or environment.get(SCHEDULER_VARIABLE)
    store = store or environment.get(STORE_VARIABLE)
    written = {} if scheduler and store else _read(config_path(environment))
    return Addresses(
        scheduler=scheduler or written.get("scheduler") or DEFAULT_SCHEDULER,
        store=store or written.get("store") or DEFAULT_STORE,
    )


def _read(path: Path) -> dict[str, str]:
    try:
        content: dict[str, Any] = tomllib.loads(path.read_text())
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as exc:
        raise ConfigurationError(f"cannot read the addresses in {path}: {exc}") from exc
    addresses: dict[str, str] = {}
    for key in ("scheduler", "store"):
        value = content.get(key)
        if value is not None and not isinstance(value, str):
            raise ConfigurationError(f"{path}: {key} must be a string such as {key} = '127.0.0.1:8081'")
        if value:
            addresses[key] = value
    return addresses
