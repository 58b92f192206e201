"""The file from which the client takes the addresses of the local stack."""

import os
from collections.abc import Mapping
from pathlib import Path

from crucible_local.confinement import Account

HEADER = "# Written by `crucible up`, removed by `crucible down`.\n"


def client_config_path(environment: Mapping[str, str], user: Account | None) -> Path:
    """`$XDG_CONFIG_HOME/crucible/client.toml` of whoever started the stack, behind sudo or not."""
    configured = environment.get("XDG_CONFIG_HOME")
    home = os.path.expanduser(f"~{user.name}" if user else "~")  # noqa: PTH111 - Path.expanduser raises for no home
    return (Path(configured) if configured else Path(home) / ".config") / "crucible" / "client.toml"


def write_client_config(path: Path, addresses: Mapping[str, str], user: Account | None) -> None:
    """Writes scheduler, store and gateway, unless there is such a file that somebody else wrote."""
    if path.exists() and not path.read_text().startswith(HEADER):
        return
    made: list[Path] = []
    for folder in (path.parent.parent, path.parent):
        if not folder.is_dir():
            folder.mkdir(parents=True)
            made.append(folder)
    lines = [f'{name} = "{addresses[name]}"\n' for name in ("scheduler", "store", "gateway")]
    path.write_text(HEADER + "".join(lines))
    if user is not None:
        for entry in (*made, path):
            os.chown(entry, user.uid, user.gid)


def remove_client_config(path: Path) -> None:
    """Removes what `write_client_config` wrote."""
    if path.exists() and path.read_text().startswith(HEADER):
        path.unlink()
