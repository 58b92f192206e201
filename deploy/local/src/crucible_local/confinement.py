"""Command prefixes that take privileges away from a child and tie its life to its parent's.

Everything goes through setpriv(1) of util-linux: nothing runs between fork and exec, so starting a process is safe
beside threads. Owns no process.
"""

import os
import pwd
import shutil
import subprocess
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

NOLOGIN = "/usr/sbin/nologin"


class ConfinementError(RuntimeError):
    """The host cannot give a process the privileges it should have; the message says what to install or change."""


class Privileges(Enum):
    """What a child keeps of its parent's privileges when the parent is root. As another user all are the same."""

    ALL = "all"
    """Everything: only the executor, whose launcher keeps what sandboxes need before the rest of it gives all up."""
    NONE = "none"
    """The same user id without one capability, and no way to gain any."""


@dataclass(frozen=True)
class Account:
    """An unprivileged system user."""

    name: str
    uid: int
    gid: int


def confined(
    command: Sequence[str],
    *,
    privileges: Privileges = Privileges.NONE,
    account: Account | None = None,
    death_signal: str = "KILL",
) -> list[str]:
    """The command, prefixed so that it runs with those privileges and gets `death_signal` when its parent dies.

    The kernel watches the *thread* that started the child, so start it from the main thread: any other raises
    ConfinementError here rather than leave a child that dies at a surprising moment.
    """
    if threading.current_thread() is not threading.main_thread():
        raise ConfinementError("processes tied to their parent's life must be started from the main thread")
    setpriv = shutil.which("setpriv")
    if setpriv is None:
        raise ConfinementError("setpriv is missing; it is part of the package util-linux")
    prefix = [setpriv, "--pdeathsig", death_signal]
    root = os.geteuid() == 0
    if account is not None and root:
        prefix += ["--reuid", str(account.uid), "--regid", str(account.gid), "--clear-groups"]
    if privileges is Privileges.NONE or account is not None:
        prefix += ["--no-new-privs"]
        if root:
            prefix += ["--bounding-set=-all", "--inh-caps=-all"]
    return [*prefix, "--", *command]


def first_closed(paths: Sequence[str], account: Account) -> str:
    """The first of the files that this user cannot read, or nothing (root only). Raises ConfinementError."""
    setpriv = shutil.which("setpriv")
    if setpriv is None:
        raise ConfinementError("setpriv is missing; it is part of the package util-linux")
    become = [setpriv, "--reuid", str(account.uid), "--regid", str(account.gid), "--clear-groups", "--no-new-privs"]
    look = [*become, "--", "/bin/sh", "-c", 'for each; do test -r "$each" || { echo "$each"; exit; }; done', "look"]
    return subprocess.run([*look, *paths], capture_output=True, text=True, check=True).stdout.strip()


def ensure_account(name: str) -> Account:
    """The system user of that name, made when missing (root only). Raises ConfinementError."""
    try:
        return _account(name)
    except KeyError:
        pass
    useradd = shutil.which("useradd") or "/usr/sbin/useradd"
    command = [useradd, "--system", "--user-group", "--no-create-home", "--home-dir", "/nonexistent"]
    try:
        made = subprocess.run([*command, "--shell", NOLOGIN, name], capture_output=True, text=True, check=False)
    except FileNotFoundError as error:
        raise ConfinementError(f"system user {name} is missing and useradd is not installed") from error
    try:  # another process may have made it at the same moment, so the user counts and not useradd's exit code
        return _account(name)
    except KeyError:
        raise ConfinementError(f"cannot make the system user {name}: {made.stderr.strip()}") from None


def _account(name: str) -> Account:
    entry = pwd.getpwnam(name)
    return Account(name=name, uid=entry.pw_uid, gid=entry.pw_gid)


def give(path: Path, account: Account | None, *, mode: int, gid: int | None = None) -> None:
    """Makes the folder with that mode, the account's (as root) and the group's: the account's own unless another."""
    path.mkdir(parents=True, exist_ok=True)
    if account is not None and os.geteuid() == 0:
        os.chown(path, account.uid, account.gid if gid is None else gid)
    path.chmod(mode)
