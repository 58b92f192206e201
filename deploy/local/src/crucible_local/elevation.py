"""Becoming root, once, with the reason said."""

import os
import shutil
import sys
from collections.abc import Mapping

REASON = "gVisor sandboxes need namespaces, cgroups and mounts, which only root makes."
PROMPT = f"[crucible] {REASON} All other processes run without privileges. Password of %u: "
PASSED_ON = ("XDG_CONFIG_HOME", "PATH", "LANG", "TZ")


class ElevationError(RuntimeError):
    """We are not root and cannot become it."""


def become_root(environment: Mapping[str, str]) -> None:
    """Replaces this process by itself under sudo; returns when it is root already. Raises ElevationError."""
    if os.geteuid() == 0:
        return
    sudo = shutil.which("sudo")
    if sudo is None:
        raise ElevationError(f"{REASON} Run it as root: sudo is not installed.")
    kept = [f"{k}={v}" for k, v in environment.items() if k in PASSED_ON or k.startswith(("CRUCIBLE_", "OTEL_"))]
    os.execv(sudo, [sudo, "-p", PROMPT, "--", "env", *kept, sys.executable, *sys.orig_argv[1:]])  # noqa: S606 - no shell
