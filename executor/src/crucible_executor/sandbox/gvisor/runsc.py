"""The `runsc` command, thinly: which flags this binary knows, and the command lines made of them. No policy."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

PROBE_TIMEOUT = 20.0

REQUIRED_FLAGS = frozenset(
    {
        "root",
        "log",
        "panic-log",
        "network",
        "platform",
        "directfs",
        "overlay2",
        "ignore-cgroups",
        "oci-seccomp",
        "pod-init-config",
    }
)
"""Without one of these the sandbox would not be what it must be: such a binary is refused."""


class RunscError(Exception):
    """The binary is missing, does not run, or cannot do what is needed."""


@dataclass(frozen=True, slots=True)
class Runsc:
    """One installed binary."""

    path: Path
    version: str
    flags: frozenset[str]

    @classmethod
    def probe(cls, binary: str = "runsc") -> Runsc:
        """Ask the binary what it is and what it knows; takes about 0.1 s. Raises RunscError."""
        found = shutil.which(binary)
        if found is None:
            raise RunscError(f"{binary} is not installed")
        version = _output(found, "--version")
        match = re.search(r"runsc version (\S+)", version)
        flags = frozenset(re.findall(r"^\s+-([A-Za-z0-9_-]+)", _output(found, "flags"), flags=re.MULTILINE))
        missing = REQUIRED_FLAGS - flags
        if missing:
            raise RunscError(f"{found} does not know {', '.join(sorted(missing))}: a newer gVisor is needed")
        return cls(Path(found), match.group(1) if match else "unknown", flags)

    def run_command(
        self,
        options: Sequence[tuple[str, str]],
        *,
        bundle: Path,
        pass_fds: Sequence[tuple[int, int]],
        first: int | None,
        container: str,
    ) -> list[str]:
        """The command line of `runsc run`; an option that this binary does not know is left out.

        `pass_fds` are pairs of our descriptor and the program's; `first` is a descriptor of ours of the file that is
        executed instead of the one that the specification names, with the same arguments.
        """
        known = [f"--{name}={value}" for name, value in options if name in self.flags]
        passed = [f"--pass-fd={ours}:{theirs}" for ours, theirs in pass_fds]
        if first is not None:
            passed.append(f"--exec-fd={first}")
        return [str(self.path), *known, "run", f"--bundle={bundle}", *passed, container]


def _output(*command: str) -> str:
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            timeout=PROBE_TIMEOUT, check=False,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired) as error:
        raise RunscError(f"{' '.join(command)} does not run: {error}") from error
    if done.returncode not in (0, 128):
        raise RunscError(f"{' '.join(command)} failed with {done.returncode}: {done.stdout[:500]}")
    return done.stdout
